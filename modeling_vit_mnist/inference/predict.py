"""Predictions for datasets, files and tensors."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..checkpoints.folder import load_checkpoint
from ..cli.errors import UsageError, printable
from ..cli.files import check_writable, replacing
from ..data.arguments import DATASET_VARIABLE, DataArguments
from ..data.images import ImageDataset
from ..data.splits import load_images, stream_images
from ..data.streaming import ImageStream
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification
from .arguments import InferenceArguments
from .classes import class_names, describe_accuracy, match_classes
from .images import find_images, frames, read_images, report_blank_images

GRID_IMAGES = 100
# Images, a row for each, and their labels, numbered as the model's classes; none for files.
Batches = Iterable[tuple[torch.Tensor, list[dict], torch.Tensor]]


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
    batch_size: int = 1000, describe: Callable[[int], str] = "image {}".format,
) -> torch.Tensor:  # fmt: skip
    """Class probabilities of grayscale, resized images of shape `(n, height, width)`, uint8 or floats in [0, 1].

    The model, on any device, is set to evaluation mode. The processor normalizes the images there, batch by batch.
    Returns a `torch.Tensor` of shape `(n, num_labels)`: float32, on the CPU. Raises `FloatingPointError` if logits are
    not finite. `describe` names an image by its index in messages."""
    model.eval()
    logits = [torch.empty(0, model.config.num_labels)]
    for batch in tqdm(images.split(batch_size), desc="Predict", unit=" batches", leave=False, disable=None):
        logits.append(model(processor.rescale_and_normalize(batch.to(model.device))).logits.float().cpu())
    check_finite(torch.cat(logits), describe)
    return torch.cat(logits).softmax(-1)


def check_finite(logits: torch.Tensor, describe: Callable[[int], str] = "image {}".format) -> None:
    """Raise `FloatingPointError`, which names the images, if not all logits of shape `(n, classes)` are finite. Their
    maximum would be an arbitrary class."""
    wrong = (~logits.isfinite().all(1)).nonzero()[:, 0].tolist()
    if wrong:
        shown = ", ".join(map(describe, wrong[:3])) + (f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else "")
        raise FloatingPointError(
            f"The model's output is not finite for {shown}: its weights or pixels are NaN, infinite or too large for "
            "its dtype."
        )


def run_inference(args: InferenceArguments, data_args: DataArguments) -> None:
    """Print one prediction per image, and write the other outputs requested. Raises [`UsageError`] for a wrong
    argument, before anything is written, and `FloatingPointError` for logits that are not finite."""
    files = find_images(args.image)
    dataset = data_args.dataset_name or os.environ.get(DATASET_VARIABLE)
    for path in filter(None, (args.output, args.grid)):
        check_output(Path(path), files or ([Path(dataset)] if dataset else []))
    if args.grid:
        from .plots import plot_predictions
    device = choose_device(args.device)
    model, processor = load_checkpoint(args.model)
    names = class_names(model)
    if args.top_k > len(names):
        raise UsageError(f"--top_k must be at most {len(names)}, the number of classes, got {args.top_k}.")
    model.to(device).eval()
    if args.do_center is not None or args.do_invert is not None:  # also "no": the image as it is, resized
        processor.do_frame = False
    if args.do_center is not None:
        processor.do_center = args.do_center
    if args.do_invert is not None:
        processor.do_invert = "auto" if args.do_invert == "auto" else args.do_invert == "yes"

    batches: Batches
    if files:
        images, files, found = read_images(files, processor, data_args.skip_bad_images)
        if not frames(processor):
            report_blank_images(images, files, processor)
        # A name with bytes that are not UTF-8 is written with escapes.
        named = [{"image": str(file).encode("utf-8", "backslashreplace").decode()} for file in files]
        rows = [name | finding for name, finding in zip(named, found, strict=True)]
        batches, what = [(images, rows, torch.empty(0, dtype=torch.int64))], "images"
    else:
        batches, names, source = read_split(args, data_args, processor, names)
        what = printable(f"{args.split} images of {source}")

    total, seconds, drawn, predictions, labels = 0, 0.0, [], [], []
    with writing_table(Path(args.output)) if args.output else nullcontext() as write:
        for images, rows, numbers in batches:
            if total == 0:
                with torch.inference_mode():  # warm-up
                    model(processor.rescale_and_normalize(images[:1].to(device)))
            image_names = [row.get("image") or f"image {row['index']}" for row in rows]
            started = time.perf_counter()
            probabilities = predict(model, processor, images, args.batch_size, image_names.__getitem__)
            seconds += time.perf_counter() - started
            predicted = probabilities.argmax(1)
            if frames(processor) and not files:  # framing makes an image black if it holds no digit
                without_digit = images.flatten(1).amax(1) == 0
                predicted[without_digit] = -1  # counts as wrong
                rows = [
                    row | ({"problem": "there is no digit"} if is_without else {})
                    for row, is_without in zip(rows, without_digit.tolist(), strict=True)
                ]
            for row, values in zip(rows, probabilities, strict=True):
                print_prediction(row, values, names, args.top_k)
            if write:
                write(rows)
            if args.grid and total < GRID_IMAGES:
                drawn += list(zip(images, rows, strict=True))[: GRID_IMAGES - total]
            total += len(rows)
            predictions.append(predicted)
            labels.append(numbers)
        if total == 0:
            raise UsageError(f"There are no {what}.")

    speed = f"{total / max(seconds, 1e-9):,.0f} images/s on {device}"
    if files:
        problems = sum(finding["problem"] is not None for finding in found)
        print(f"{total:,} {what}, " + (f"{problems:,} without a digit, " if problems else "") + speed)
    else:
        if total < args.num_samples:
            print(f"There are only {total:,} images, fewer than --num_samples {args.num_samples:,}.")
        num_classes = model.config.num_labels
        print(f"{describe_accuracy(torch.cat(predictions), torch.cat(labels), names, num_classes, what)}, {speed}")
    if args.output:
        print(f"Wrote {printable(args.output)}")
    if args.grid:
        plot_predictions(torch.stack([image for image, _ in drawn]), [row for _, row in drawn], Path(args.grid))
        only = f" with the first {len(drawn)} images" if total > len(drawn) else ""
        print(f"Wrote {printable(args.grid)}{only}")


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise [`UsageError`] unless a file can be written to `path` without changing one of the inputs, which are files,
    or folders of data."""
    target = path.resolve()
    for place in inputs:
        if place.resolve() in (target, *target.parents):
            raise UsageError(f"{path} would change the input {place}: choose another place for it.")
    if path.is_dir():
        raise UsageError(f"Cannot write to {path}: it is a folder.")
    check_writable(path.parent)


def read_split(
    args: InferenceArguments, data_args: DataArguments, processor: VitMnistImageProcessor, model_names: list[str]
) -> tuple[Batches, list[str], str]:
    """The images of a split with one row each, all at once or, from a stream, in chunks; the names of the classes of
    model and dataset, as [`match_classes`] numbers them; and the split's source."""
    source: ImageDataset | ImageStream
    chunks: Iterable[ImageDataset]
    if not data_args.streaming:
        source = load_images(data_args, processor, [args.split])[args.split].take(args.num_samples or None)
        chunks = [source]
    else:
        if args.num_samples:
            limits = (data_args.max_train_samples, data_args.max_eval_samples)
            train, other = (min(args.num_samples, limit or args.num_samples) for limit in limits)
            data_args = replace(data_args, max_train_samples=train, max_eval_samples=other)
        source = stream_images(data_args, processor, [args.split])[args.split]
        chunks = source.chunks() if isinstance(source, ImageStream) else [source]
    numbers, names = match_classes(source.names, model_names)
    return _with_rows(chunks, numbers, names), names, source.source


def _with_rows(chunks: Iterable[ImageDataset], numbers: torch.Tensor, names: list[str]) -> Batches:
    """Images, one row each with the index in the split and the name of the class, and the number of the class."""
    start = 0
    for chunk in chunks:
        labels = numbers[chunk.labels]
        rows = [{"index": index, "label": names[label]} for index, label in enumerate(labels.tolist(), start)]
        yield chunk.images, rows, labels
        start += len(chunk)


def print_prediction(row: dict, probabilities: torch.Tensor, names: list[str], top_k: int) -> None:
    """Add the prediction from `probabilities` of shape `(classes,)` to a row, and print it. A row with a `problem`
    gets `None`. `has_others`, and the problem of an image of a dataset, are printed, and removed from the row."""
    best = int(probabilities.argmax())
    note = " (more than one digit: the largest is read)" if row.pop("has_others", False) else ""
    row |= {"prediction": names[best], "probability": probabilities[best].item()}
    if row.get("problem") is not None:
        row |= {"prediction": None, "probability": None} | ({"top_k": None} if top_k > 1 else {})
        is_file = "image" in row
        start = row["image"] if is_file else f"Idx:{row['index']} GT:{row['label']}"
        problem = row["problem"] if is_file else row.pop("problem")
        line, note, top_k = f"{start} Pred:- ({problem})", "", 1
    elif "image" in row:
        line = f"{row['image']} Pred:{row['prediction']} Prob:{row['probability']:.4f}"
    else:
        is_correct = row["label"] == row["prediction"]
        line = f"Idx:{row['index']} GT:{row['label']} Pred:{row['prediction']} isAcc:{is_correct}"
    if top_k > 1:
        top = probabilities.topk(top_k)
        row["top_k"] = {names[i]: p for p, i in zip(*map(torch.Tensor.tolist, top), strict=True)}
        line += " Top:" + ",".join(f"{name}={p:.4f}" for name, p in row["top_k"].items())
    print(printable(line + note))
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
                table["top_k"] = [
                    row["top_k"] and [{"label": k, "probability": p} for k, p in row["top_k"].items()] for row in rows
                ]
            if path.suffix == ".jsonl":
                table.to_json(file, orient="records", lines=True, double_precision=15)
            elif path.suffix == ".csv":
                table.to_csv(file, index=False, header=file.tell() == 0)
            else:
                table = pyarrow.Table.from_pandas(table, preserve_index=False)
                writer = writer or stack.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema))
                writer.write_table(table)

        yield write
        stack.close()  # before the file is renamed
