"""Predictions for datasets, files and tensors."""

import glob
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from tqdm.auto import tqdm

from ..checkpoints.folder import load_checkpoint
from ..cli.errors import UsageError
from ..cli.files import check_writable, replacing
from ..data.arguments import DataArguments
from ..data.images import ImageDataset, decode_images
from ..data.splits import load_images, stream_images
from ..data.streaming import ImageStream
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification
from .arguments import InferenceArguments

GRID_IMAGES = 100
Batches = Iterable[tuple[torch.Tensor, list[dict]]]


def choose_device(name: str | None = None) -> torch.device:
    """The device `name`; without one, an accelerator if there is one, else the CPU. Raises [`UsageError`] if there is
    no such device."""
    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"No device {name!r} here: {str(error).splitlines()[0]}") from error


@torch.inference_mode()
def predict(
    model: VitMnistForImageClassification, processor: VitMnistImageProcessor, images: torch.Tensor,
    batch_size: int = 1000,
) -> torch.Tensor:  # fmt: skip
    """Class probabilities of grayscale, resized images of shape `(n, height, width)`, uint8 or floats in [0, 1].

    The model, on any device, is set to evaluation mode. The processor normalizes the images there, batch by batch.
    Returns a `torch.Tensor` of shape `(n, num_labels)`: float32, on the CPU."""
    model.eval()
    logits = [torch.empty(0, model.config.num_labels)]
    for batch in tqdm(images.split(batch_size), desc="Predict", unit=" batches", leave=False, disable=None):
        logits.append(model(processor.rescale_and_normalize(batch.to(model.device))).logits.float().cpu())
    return torch.cat(logits).softmax(-1)


def find_images(patterns: list[str]) -> list[Path]:
    """The image files that paths, folders and globs name, those of a folder or glob in alphabetical order. Raises
    [`UsageError`] if one of them names no image."""
    files = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            known = PIL.Image.registered_extensions()
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
        else:
            found = [path] if path.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not found:
            raise UsageError(f"No image at {pattern!r}.")
        files += found
    return files


def read_images(
    files: list[Path], processor: VitMnistImageProcessor, skip_bad_images: bool
) -> tuple[torch.Tensor, list[Path]]:
    """Grayscale images of files, of shape `(n, height, width)`, and the files that were read. They are uint8, or
    float32 in [0, 1] if one of the files holds floats. Raises [`UsageError`] if a file is not a readable image and
    `skip_bad_images` is off, or none is readable."""
    images, read = [], []
    for file in tqdm(files, desc="Read", unit=" images", leave=False, disable=None if len(files) > 100 else True):
        image, kept = decode_images([{"path": str(file), "bytes": None}], [""], processor, skip_bad_images)
        images.append(image)
        read += [file] * len(kept)
    if not read:
        raise UsageError("None of the images can be read.")
    if any(image.is_floating_point() for image in images):  # floats are already rescaled
        images = [image if image.is_floating_point() else image / 255 for image in images]
    return torch.cat(images), read


def run_inference(args: InferenceArguments, data_args: DataArguments) -> None:
    """Print one prediction per image, and write the other outputs requested. Raises [`UsageError`] for a wrong
    argument, before anything is written."""
    for path in filter(None, (args.output, args.grid)):
        check_writable(Path(path).parent)
    device = choose_device(args.device)
    files = find_images(args.image)
    model, processor = load_checkpoint(args.model)
    model.to(device)
    if args.do_center is not None:
        processor.do_center = args.do_center
    if args.do_invert is not None:
        processor.do_invert = "auto" if args.do_invert == "auto" else args.do_invert == "yes"

    names = list(model.config.id2label.values())
    batches: Batches
    if files:
        images, files = read_images(files, processor, data_args.skip_bad_images)
        for image, file in zip(images, files, strict=True):
            if image.max() == image.min():
                print(f"{file} is blank after preprocessing. For dark ink on light paper, pass --do_invert auto.")
        batches, what = [(images, [{"image": str(file)} for file in files])], "images"
    else:
        batches, source = read_split(args, data_args, processor)
        what = f"{args.split} images of {source}"

    total, correct, seconds, drawn = 0, 0, 0.0, []
    with writing_table(Path(args.output)) if args.output else nullcontext() as write:
        for images, rows in batches:
            if total == 0:
                predict(model, processor, images[:1])  # warm-up
            started = time.perf_counter()
            probabilities = predict(model, processor, images, args.batch_size)
            seconds += time.perf_counter() - started
            for row, values in zip(rows, probabilities, strict=True):
                print_prediction(row, values, names, args.top_k)
            if write:
                write(rows)
            if args.grid and total < GRID_IMAGES:
                drawn += list(zip(images, rows, strict=True))[: GRID_IMAGES - total]
            total += len(rows)
            correct += sum(row.get("label") == row["prediction"] for row in rows)
        if total == 0:
            raise UsageError(f"There are no {what}.")

    speed = f"{total / seconds:,.0f} images/s on {device}"
    if args.image:
        print(f"{total:,} {what}, {speed}")
    else:
        print(f"Accuracy: {correct / total:.2%} ({correct:,} of {total:,} {what}), {speed}")
    if args.output:
        print(f"Wrote {args.output}")
    if args.grid:
        from .plots import plot_predictions

        plot_predictions(torch.stack([image for image, _ in drawn]), [row for _, row in drawn], Path(args.grid))
        print(f"Wrote {args.grid}")


def read_split(
    args: InferenceArguments, data_args: DataArguments, processor: VitMnistImageProcessor
) -> tuple[Batches, str]:
    """The images of a split with one row each, all at once or, from a stream, in chunks; and the split's source."""
    if not data_args.streaming:
        dataset = load_images(data_args, processor, [args.split])[args.split]
        return _with_rows([dataset.take(args.num_samples or None)]), dataset.source
    if args.num_samples:
        limits = (data_args.max_train_samples, data_args.max_eval_samples)
        train, other = (min(args.num_samples, limit or args.num_samples) for limit in limits)
        data_args = replace(data_args, max_train_samples=train, max_eval_samples=other)
    stream = stream_images(data_args, processor, [args.split])[args.split]
    return _with_rows(stream.chunks() if isinstance(stream, ImageStream) else [stream]), stream.source


def _with_rows(chunks: Iterable[ImageDataset]) -> Iterator[tuple[torch.Tensor, list[dict]]]:
    """Images, and one row each: the index in the split and the label."""
    start = 0
    for chunk in chunks:
        labels = [chunk.names[label] for label in chunk.labels.tolist()]
        yield chunk.images, [{"index": index, "label": label} for index, label in enumerate(labels, start)]
        start += len(chunk)


def print_prediction(row: dict, probabilities: torch.Tensor, names: list[str], top_k: int) -> None:
    """Add the prediction from `probabilities` of shape `(classes,)` to a row, and print it."""
    best = int(probabilities.argmax())
    row |= {"prediction": names[best], "probability": round(probabilities[best].item(), 6)}
    if "image" in row:
        line = f"{row['image']} Pred:{row['prediction']} Prob:{row['probability']:.4f}"
    else:
        is_correct = row["label"] == row["prediction"]
        line = f"Idx:{row['index']} GT:{row['label']} Pred:{row['prediction']} isAcc:{is_correct}"
    if top_k > 1:
        top = probabilities.topk(min(top_k, len(names)))
        row["top_k"] = {names[i]: round(p, 6) for p, i in zip(*map(torch.Tensor.tolist, top), strict=True)}
        line += " Top:" + ",".join(f"{name}={p:.4f}" for name, p in row["top_k"].items())
    print(line)
    print("-" * 30)


@contextmanager
def writing_table(path: Path) -> Iterator[Callable[[list[dict]], None]]:
    """Yield a function that appends rows. The file is written completely or not at all."""
    import pandas
    import pyarrow
    import pyarrow.parquet

    with replacing(path) as staging, ExitStack() as stack:
        text_mode: dict[str, Any] = {"mode": "w", "encoding": "utf-8", "newline": ""}
        file = stack.enter_context(staging.open(**({"mode": "wb"} if path.suffix == ".parquet" else text_mode)))
        writer = None

        def write(rows: list[dict]) -> None:
            nonlocal writer
            table = pandas.DataFrame(rows)
            if "top_k" in table:
                table["top_k"] = [[{"label": k, "probability": p} for k, p in row["top_k"].items()] for row in rows]
            if path.suffix == ".jsonl":
                table.to_json(file, orient="records", lines=True)
            elif path.suffix == ".csv":
                table.to_csv(file, index=False, header=file.tell() == 0)
            else:
                table = pyarrow.Table.from_pandas(table, preserve_index=False)
                writer = writer or stack.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema))
                writer.write_table(table)

        yield write
        stack.close()  # before the file is renamed
