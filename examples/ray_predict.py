"""
Predict digits on a Ray cluster: parquet files in, parquet files of the same names out.

    pip install "vit-mnist[ray]"
    python examples/ray_predict.py scans/ predictions/ --workers 2
    python examples/ray_predict.py scans/ predictions/ --workers 64 --num_gpus 1 --address auto

A file in `predictions/` is complete, so the same command, given again, predicts only what is left. All machines of the
cluster need both folders. Images are encoded files (a column of `datasets.Image`, or of bytes); labels are not needed.
"""

import argparse
from pathlib import Path

import pyarrow.parquet
import ray
import torch

from modeling_vit_mnist.cli.errors import UsageError, run_script
from modeling_vit_mnist.cli.files import locked, replacing
from modeling_vit_mnist.data.images import decode_images
from modeling_vit_mnist.inference.arguments import InferenceArguments
from modeling_vit_mnist.inference.classes import Tally
from modeling_vit_mnist.inference.parts import hash_checkpoint, prepare_folder
from modeling_vit_mnist.inference.predict import check_apart, load_classifier, to_arrow

ADDED = ["prediction", "probability", "digit_score", "problem"]
BATCH = 1000


class Predictor:
    """An actor that holds processor and model. It predicts whole files."""

    def __init__(self, images: Path, output: Path, column: str, model: str):
        torch.set_num_threads(1)  # an actor has one core
        self.images, self.output, self.column = images, output, column
        self.classifier = load_classifier(InferenceArguments(model=model, batch_size=BATCH))

    def __call__(self, batch: dict) -> dict:
        return {"file": batch["file"], "images": [self.predict_file(str(name)) for name in batch["file"]]}

    def predict_file(self, name: str) -> int:
        """Write the columns of a file, but for the images, and the predictions. Returns the number of images."""
        source, tally = pyarrow.parquet.ParquetFile(self.images / name), Tally()
        columns = [field for field in source.schema_arrow.names if field not in (self.column, *ADDED)]
        schema = pyarrow.schema([*map(source.schema_arrow.field, columns), *to_arrow([], ADDED).schema])
        with replacing(self.output / name) as staging, pyarrow.parquet.ParquetWriter(staging, schema) as writer:
            for batch in source.iter_batches(BATCH):
                items = batch.column(self.column).to_pylist()
                items = [{"bytes": item, "path": None} if isinstance(item, bytes) else item for item in items]
                rows = [{"index": tally.images + index, "problem": None} for index in range(len(items))]
                names = [f"image {row['index']} of {name}" for row in rows]
                pixels, _ = decode_images(items, names, self.classifier.processor, skip_bad_images=False)
                no_labels = torch.empty(0, dtype=torch.int64)
                self.classifier.predict(pixels, rows, no_labels, self.classifier.names, tally)
                kept, added = batch.select(columns).columns, to_arrow(rows, ADDED).to_batches()[0].columns
                writer.write_batch(pyarrow.record_batch([*kept, *added], schema=schema))
        return tally.images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("images", type=Path, help="Folder of parquet files.")
    parser.add_argument("output", type=Path, help="Folder of the predictions.")
    parser.add_argument("--column", default="image", help="Column of the images.")
    parser.add_argument("--model", default=InferenceArguments().model, help="Checkpoint folder or Hub id.")
    parser.add_argument("--workers", type=int, default=2, help="Actors, each with a core.")
    parser.add_argument("--num_gpus", type=float, default=0, help="GPUs of an actor.")
    parser.add_argument("--address", help="Of a running cluster. Default: one on this machine, for this run.")
    args = parser.parse_args()
    images, output = args.images.resolve(), args.output.resolve()
    check_apart(output, [images])
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.parquet"))
    if not names:
        raise UsageError(f"No parquet files in {images}.")
    with locked(output):
        checkpoint = hash_checkpoint(load_classifier(InferenceArguments(model=args.model)))
        prepare_folder(output, {"images": str(images), "checkpoint": checkpoint, "column": args.column, "parts": 0})
        left = [name for name in names if not (output / name).exists()]
        print(f"{len(names):,} files, {len(names) - len(left):,} of them finished before")
        if left:
            local = {"num_cpus": args.workers, "include_dashboard": False, "object_store_memory": 200 * 2**20}
            ray.init(args.address, **({} if args.address else local))
            files = ray.data.from_items([{"file": name} for name in left], override_num_blocks=len(left))
            predicted = files.map_batches(
                Predictor, fn_constructor_args=(images, output, args.column, args.model), batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=args.workers), num_cpus=1, num_gpus=args.num_gpus,
            )  # fmt: skip
            print(f"{sum(row['images'] for row in predicted.iter_rows()):,} images in {len(left):,} files")
    print(f"Wrote {args.output}")


if __name__ == "__main__":
    run_script(main)
