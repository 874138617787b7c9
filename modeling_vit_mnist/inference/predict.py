"""Predictions for datasets, files and tensors."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..checkpoints.folder import load_checkpoint
from ..checkpoints.record import warn_of_other_split
from ..cli.errors import UsageError, csv_cell, printable
from ..cli.files import check_writable, replacing
from ..data.arguments import DATASET_VARIABLE, DataArguments
from ..data.images import ImageDataset
from ..data.splits import load_images, stream_images
from ..data.streaming import ImageStream
from ..grayscale_vit_mnist import MAX_IMAGE_PIXELS
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification, digit_score
from .arguments import QUIET_BEYOND, InferenceArguments
from .classes import Tally, class_names, match_classes
from .images import find_images, lack_digit, read_images, report_blank_images, uses_framing

GRID_IMAGES = 100
# Images, a row for each, and their labels, numbered as the model's classes; none for files.
Batches = Iterable[tuple[torch.Tensor, list[dict], torch.Tensor]]


def choose_device(name: str | None = None) -> torch.device:
    """The device `name`; without one, an accelerator if there is one, else the CPU. Raises [`UsageError`] if there is
    no such device."""
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        tensor = torch.empty(1, device=name)
        tensor.cpu()  # a "meta" device has no data
        return tensor.device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"No device {name!r} here: {str(error).splitlines()[0]}") from error


@torch.inference_mode()
def predict(
    model: VitMnistForImageClassification, processor: VitMnistImageProcessor, images: torch.Tensor,
    batch_size: int = 1000, describe: Callable[[int], str] = "image {}".format,
) -> torch.Tensor:  # fmt: skip
    """Logits of grayscale, resized images of shape `(n, height, width)`, uint8 or floats in [0, 1].

    The model, on any device, is set to evaluation mode. The processor normalizes the images there, batch by batch.
    Returns a `torch.Tensor` of shape `(n, num_labels)`: float32, on the CPU. Their softmax are the probabilities of
    the classes, and [`digit_score`] says how much an image looks like one of them. Raises `FloatingPointError` if
    logits are not finite. `describe` names an image by its index in messages."""
    model.eval()
    logits = [torch.empty(0, model.config.num_labels)]
    is_short = len(images) <= batch_size
    for batch in tqdm(
        images.split(batch_size), desc="Predict", unit=" batches", leave=False, disable=is_short or None
    ):
        logits.append(model(processor.rescale_and_normalize(batch.to(model.device))).logits.float().cpu())
    result = torch.cat(logits)
    check_finite(result, describe)
    return result


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
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("Several processes share a split only with --output FOLDER/: pass it, or start one process.")
    files = find_images(args.image)
    for path in filter(None, (args.output, args.grid)):
        check_output(Path(path), files or dataset_folders(data_args))
    if args.grid:
        from .plots import plot_predictions
    classifier = load_classifier(args, data_args.max_pixels)
    model, processor, names, threshold = classifier.model, classifier.processor, classifier.names, classifier.threshold

    batches: Batches
    if files:
        images, files, found = read_images(files, processor, data_args.skip_bad_images)
        if not uses_framing(processor):
            report_blank_images(images, files, processor)
        # A name with bytes that are not UTF-8 is written with escapes.
        named = [{"image": str(file).encode("utf-8", "backslashreplace").decode()} for file in files]
        rows = [name | finding for name, finding in zip(named, found, strict=True)]
        batches, what = [(images, rows, torch.empty(0, dtype=torch.int64))], "images"
    else:
        source = open_split(args, data_args, processor)
        warn_of_other_split(args.model, args.split, source, data_args)
        numbers, names = match_classes(source.names, names)
        batches = with_rows(source.chunks() if isinstance(source, ImageStream) else [source], numbers, names)
        what = printable(f"{args.split} images of {source.source}")
    is_quiet = bool(args.quiet)
    if args.quiet is None:
        is_quiet, batches = (True, batches) if not files and args.num_samples == 0 else is_long(batches)

    tally, seconds, drawn = Tally(is_selective=threshold is not None), 0.0, []
    with writing_table(Path(args.output)) if args.output else nullcontext() as write:
        for images, rows, labels in batches:
            if tally.images == 0:
                with torch.inference_mode():  # warm-up
                    model(processor.rescale_and_normalize(images[:1].to(model.device)))
            if args.grid and tally.images < GRID_IMAGES:
                drawn += list(zip(images, rows, strict=True))[: GRID_IMAGES - tally.images]
            seconds += classifier.predict(images, rows, labels, names, tally)
            for row in rows:
                has_others = row.pop("has_others", False)
                if not is_quiet:
                    print_prediction(row, has_others)
            if write:
                write(rows)
        if tally.images == 0:
            raise UsageError(f"There are no {what}.")

    if is_quiet and args.quiet is None:
        print("Each prediction is printed with --quiet no.")
    end = f"{tally.images / max(seconds, 1e-9):,.0f} images/s on {model.device}"
    if files:
        print(", ".join([f"{tally.images:,} {what}", *tally.describe_others(), end]))
    else:
        if tally.images < args.num_samples:
            print(f"There are only {tally.images:,} images, fewer than --num_samples {args.num_samples:,}.")
        what = what if threshold is None else f"accepted {what}"
        print(", ".join([tally.describe_accuracy(what), *tally.describe_others(), end]))
    if args.output:
        print(f"Wrote {printable(args.output)}")
    if args.grid:
        images, rows = torch.stack([image for image, _ in drawn]), [row for _, row in drawn]
        plot_predictions(images, rows, Path(args.grid), caption=f"{Path(args.model).name}: {what}.")
        only = f" with the first {len(drawn)} images" if tally.images > len(drawn) else ""
        print(f"Wrote {printable(args.grid)}{only}")


@dataclass
class Classifier:
    """A checkpoint as the arguments use it: model, processor, names of the classes, and how it predicts."""

    model: VitMnistForImageClassification
    processor: VitMnistImageProcessor
    names: list[str]
    threshold: float | None
    top_k: int
    batch_size: int

    def predict(
        self, images: torch.Tensor, rows: list[dict], labels: torch.Tensor, names: list[str], tally: Tally
    ) -> float:
        """Add predictions to the rows of images, and count them. `names` are those of [`match_classes`]. Returns the
        seconds of the pass."""
        started = time.perf_counter()
        image_names = [row.get("image") or f"image {row['index']}" for row in rows]
        logits = predict(self.model, self.processor, images, self.batch_size, image_names.__getitem__)
        seconds = time.perf_counter() - started
        if "image" not in rows[0]:  # of files, the reason is known
            for index in lack_digit(images, self.processor).nonzero()[:, 0].tolist():
                rows[index]["problem"] = "there is no digit"
        add_predictions(rows, logits, self.names, self.top_k, self.threshold)
        predicted = logits.argmax(1)
        predicted[torch.tensor([row["prediction"] is None for row in rows])] = -1
        tally.add(predicted, labels, names, len(self.names))
        tally.without_digit += sum(row["digit_score"] is None for row in rows)
        tally.rejected += sum(row["prediction"] is None and row["digit_score"] is not None for row in rows)
        return seconds


def load_classifier(args: InferenceArguments, max_pixels: int = MAX_IMAGE_PIXELS) -> Classifier:
    """The checkpoint that the arguments name, on their device. Raises [`UsageError`] for flags that do not fit it."""
    device = choose_device(args.device)
    model, processor = load_checkpoint(args.model)
    processor.max_pixels = max_pixels
    names = class_names(model)
    if args.top_k > len(names):
        raise UsageError(f"--top_k must be at most {len(names)}, the number of classes, got {args.top_k}.")
    threshold = model.config.digit_score_threshold if args.reject is True else args.reject
    if args.reject is not None and threshold is None:
        raise UsageError(
            f"{args.model} has no digit_score_threshold in its config.json: pass one, as in --reject 3.5, or train it "
            "again, which sets it."
        )
    model.to(device).eval()
    if args.do_center is not None or args.do_invert is not None:  # also "no": the image as it is, resized
        processor.do_frame = False
    if args.do_center is not None:
        processor.do_center = args.do_center
    if args.do_invert is not None:
        processor.do_invert = "auto" if args.do_invert == "auto" else args.do_invert == "yes"
    return Classifier(model, processor, names, threshold, args.top_k, args.batch_size)


def dataset_folders(data_args: DataArguments) -> list[Path]:
    """The path of the dataset, if one is named."""
    dataset = data_args.dataset_name or os.environ.get(DATASET_VARIABLE)
    return [Path(dataset)] if dataset else []


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Raise [`UsageError`] unless a file can be written to `path` without changing one of the inputs, which are files,
    or folders of data."""
    check_apart(path, inputs)
    if path.is_symlink():  # it would be replaced, and what it points to left as it is
        raise UsageError(f"{path} is a symbolic link: name the file that it points to, {path.resolve()}.")
    if path.is_dir():
        raise UsageError(f"Cannot write to {path}: it is a folder.")
    check_writable(path.parent)


def check_apart(path: Path, inputs: Iterable[Path]) -> None:
    """Raise [`UsageError`] if `path` is one of the inputs, or inside one."""
    target = path.resolve()
    for place in inputs:
        if place.resolve() in (target, *target.parents):
            raise UsageError(f"{path} would change the input {place}: choose another place for it.")


def open_split(
    args: InferenceArguments, data_args: DataArguments, processor: VitMnistImageProcessor
) -> ImageDataset | ImageStream:
    """The split to predict, up to `--num_samples`."""
    if not data_args.streaming:
        return load_images(data_args, processor, [args.split])[args.split].take(args.num_samples or None)
    if args.num_samples:
        limit = min(args.num_samples, data_args.limit(args.split) or args.num_samples)
        data_args = replace(data_args, max_train_samples=limit, max_eval_samples=limit)
    return stream_images(data_args, processor, [args.split])[args.split]


def with_rows(chunks: Iterable[ImageDataset], numbers: torch.Tensor, names: list[str]) -> Batches:
    """Images, one row each with the index in the split, the name of the class and no problem, and the number of the
    class, as [`match_classes`] numbers them."""
    start = 0
    for chunk in chunks:
        labels = numbers[chunk.labels]
        numbered = enumerate(labels.tolist(), start)
        yield chunk.images, [{"index": i, "label": names[label], "problem": None} for i, label in numbered], labels
        start += len(chunk)


def is_long(batches: Batches) -> tuple[bool, Batches]:
    """Whether there are more than [`QUIET_BEYOND`] images, and all batches. A stream is read only as far as needed."""
    batches, first, total = iter(batches), [], 0
    while total <= QUIET_BEYOND and (batch := next(batches, None)) is not None:
        first.append(batch)
        total += len(batch[1])
    return total > QUIET_BEYOND, chain(first, batches)


def add_predictions(
    rows: list[dict], logits: torch.Tensor, names: list[str], top_k: int, threshold: float | None
) -> None:
    """Add the prediction from `logits` of shape `(n, classes)`, its probability and the digit score to each row. A row
    with a `problem`, which a score below the threshold is, gets `None`."""
    probabilities = logits.softmax(-1)
    best = logits.argmax(1)
    chosen = probabilities.gather(1, best[:, None])[:, 0].tolist()
    scores = digit_score(logits).tolist()
    top_values, top_numbers = (values.tolist() for values in probabilities.topk(top_k))
    for at, (row, number) in enumerate(zip(rows, best.tolist(), strict=True)):
        row["prediction"], row["probability"] = names[number], chosen[at]
        row["digit_score"] = None if row["problem"] else scores[at]
        if not row["problem"] and threshold is not None and scores[at] < threshold:
            row["problem"] = f"the digit score is {scores[at]:.4f}, below {threshold:g}"
        if top_k > 1:
            row["top_k"] = {names[i]: p for i, p in zip(top_numbers[at], top_values[at], strict=True)}
        if row["problem"]:
            row |= {"prediction": None, "probability": None} | ({"top_k": None} if top_k > 1 else {})


def print_prediction(row: dict, has_others: bool = False) -> None:
    """Print a row of [`add_predictions`]."""
    is_rejected = row["prediction"] is None and row["digit_score"] is not None
    answer = "?" if is_rejected else "-" if row["problem"] else row["prediction"]
    note = " (more than one digit: the clearest is read)" if has_others else ""
    start = row["image"] if "image" in row else f"Idx:{row['index']} GT:{row['label']}"
    line = f"{start} Pred:{answer}"
    if row["problem"]:
        note = f" ({row['problem']})"
    elif "image" in row:
        line += f" Prob:{row['probability']:.4f}"
    else:
        line += f" isAcc:{row['label'] == row['prediction']}"
    if row.get("top_k"):
        line += " Top:" + ",".join(f"{name}={p:.4f}" for name, p in row["top_k"].items())
    print(printable(line + note))
    print("-" * 30)


@contextmanager
def writing_table(path: Path) -> Iterator[Callable[[list[dict]], None]]:
    """Yield a function that appends rows. The file is written completely or not at all."""
    import pandas
    import pyarrow.parquet

    with replacing(path) as staging, ExitStack() as stack:
        text_mode: dict[str, Any] = {"mode": "w", "encoding": "utf-8", "newline": ""}
        file = stack.enter_context(staging.open(**({"mode": "wb"} if path.suffix == ".parquet" else text_mode)))
        writer = None

        def write(rows: list[dict]) -> None:
            nonlocal writer
            if path.suffix == ".parquet":
                table = to_arrow(rows, list(rows[0]))
                writer = writer or stack.enter_context(pyarrow.parquet.ParquetWriter(file, table.schema))
                writer.write_table(table)
            elif path.suffix == ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in _with_lists(rows))
            else:
                frame = pandas.DataFrame(_with_lists(rows))
                frame = frame.map(lambda cell: csv_cell(cell) if isinstance(cell, str) else cell)
                frame.to_csv(file, index=False, header=file.tell() == 0)

        yield write
        stack.close()  # before the file is renamed


def to_arrow(rows: list[dict], columns: list[str]) -> Any:
    """The rows as a `pyarrow.Table`. Its types are given: that of a column of nulls cannot be inferred."""
    import pyarrow

    text, number, integer = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    types = {"part": integer, "index": integer, "probability": number, "digit_score": number}
    types["top_k"] = pyarrow.list_(pyarrow.struct({"label": text, "probability": number}))
    schema = pyarrow.schema([(name, types.get(name, text)) for name in columns])
    return pyarrow.Table.from_pylist(_with_lists(rows), schema)


def _with_lists(rows: list[dict]) -> list[dict]:
    """The rows, their `top_k` as lists: a table has no mappings of any names."""
    if not rows or "top_k" not in rows[0]:
        return rows
    listed = [row["top_k"] and [{"label": k, "probability": p} for k, p in row["top_k"].items()] for row in rows]
    return [row | {"top_k": top_k} for row, top_k in zip(rows, listed, strict=True)]
