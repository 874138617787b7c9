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
from ..modeling_vit_mnist import VitMnistForImageClassification, digit_score
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
    """Logits of grayscale, resized images of shape `(n, height, width)`, uint8 or floats in [0, 1].

    The model, on any device, is set to evaluation mode. The processor normalizes the images there, batch by batch.
    Returns a `torch.Tensor` of shape `(n, num_labels)`: float32, on the CPU. Their softmax are the probabilities of
    the classes, and [`digit_score`] says how much an image looks like one of them. Raises `FloatingPointError` if
    logits are not finite. `describe` names an image by its index in messages."""
    model.eval()
    logits = [torch.empty(0, model.config.num_labels)]
    for batch in tqdm(images.split(batch_size), desc="Predict", unit=" batches", leave=False, disable=None):
        logits.append(model(processor.rescale_and_normalize(batch.to(model.device))).logits.float().cpu())
    check_finite(torch.cat(logits), describe)
    return torch.cat(logits)


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

    total, without_digit, rejected, seconds, drawn, predictions, labels = 0, 0, 0, 0.0, [], [], []
    with writing_table(Path(args.output)) if args.output else nullcontext() as write:
        for images, rows, numbers in batches:
            if total == 0:
                with torch.inference_mode():  # warm-up
                    model(processor.rescale_and_normalize(images[:1].to(device)))
            image_names = [row.get("image") or f"image {row['index']}" for row in rows]
            started = time.perf_counter()
            logits = predict(model, processor, images, args.batch_size, image_names.__getitem__)
            seconds += time.perf_counter() - started
            if frames(processor) and not files:  # framing makes an image black if it holds no digit
                for index in (images.flatten(1).amax(1) == 0).nonzero()[:, 0].tolist():
                    rows[index]["problem"] = "there is no digit"
            for row, values, score in zip(rows, logits.softmax(-1), digit_score(logits).tolist(), strict=True):
                print_prediction(row, values, score, names, args.top_k, threshold)
            predicted = logits.argmax(1)
            predicted[torch.tensor([row["prediction"] is None for row in rows])] = -1
            without_digit += sum(row["digit_score"] is None for row in rows)
            rejected += sum(row["prediction"] is None and row["digit_score"] is not None for row in rows)
            if write:
                write(rows)
            if args.grid and total < GRID_IMAGES:
                drawn += list(zip(images, rows, strict=True))[: GRID_IMAGES - total]
            total += len(rows)
            predictions.append(predicted)
            labels.append(numbers)
        if total == 0:
            raise UsageError(f"There are no {what}.")

    counts = [f"{without_digit:,} without a digit"] if without_digit else []
    counts += [f"{rejected:,} rejected"] if threshold is not None else []
    end = ", ".join([*counts, f"{total / max(seconds, 1e-9):,.0f} images/s on {device}"])
    if files:
        print(f"{total:,} {what}, {end}")
    else:
        if total < args.num_samples:
            print(f"There are only {total:,} images, fewer than --num_samples {args.num_samples:,}.")
        answers, truth = torch.cat(predictions), torch.cat(labels)  # an image without a prediction counts as wrong
        if threshold is not None:  # or, on request, not at all
            answers, truth, what = answers[answers >= 0], truth[answers >= 0], f"accepted {what}"
        print(f"{describe_accuracy(answers, truth, names, model.config.num_labels, what)}, {end}")
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
    """Images, one row each with the index in the split, the name of the class and no problem, and the number of the
    class."""
    start = 0
    for chunk in chunks:
        labels = numbers[chunk.labels]
        numbered = enumerate(labels.tolist(), start)
        yield chunk.images, [{"index": i, "label": names[label], "problem": None} for i, label in numbered], labels
        start += len(chunk)


def print_prediction(
    row: dict, probabilities: torch.Tensor, score: float, names: list[str], top_k: int, threshold: float | None
) -> None:
    """Add the prediction from `probabilities` of shape `(classes,)` and the digit score to a row, and print it. A row
    with a `problem`, which a score below the threshold is, gets `None`. `has_others` is printed, and removed."""
    best = int(probabilities.argmax())
    note = " (more than one digit: the clearest is read)" if row.pop("has_others", False) else ""
    answer = "-" if row["problem"] else names[best]
    row |= {"prediction": names[best], "probability": probabilities[best].item()}
    row["digit_score"] = None if row["problem"] else score
    if not row["problem"] and threshold is not None and score < threshold:
        answer, row["problem"] = "?", f"the digit score is {score:.4f}, below {threshold:g}"
    start = row["image"] if "image" in row else f"Idx:{row['index']} GT:{row['label']}"
    line = f"{start} Pred:{answer}"
    if row["problem"]:
        row |= {"prediction": None, "probability": None} | ({"top_k": None} if top_k > 1 else {})
        note, top_k = f" ({row['problem']})", 1
    elif "image" in row:
        line += f" Prob:{row['probability']:.4f}"
    else:
        line += f" isAcc:{row['label'] == row['prediction']}"
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
            if "top_k" in rows[0]:
                listed = [
                    row["top_k"] and [{"label": k, "probability": p} for k, p in row["top_k"].items()] for row in rows
                ]
                rows = [row | {"top_k": top_k} for row, top_k in zip(rows, listed, strict=True)]
            table = pandas.DataFrame(rows)
            if path.suffix == ".jsonl":
                table.to_json(file, orient="records", lines=True, double_precision=15)
            elif path.suffix == ".csv":
                table.to_csv(file, index=False, header=file.tell() == 0)
            else:
                text, number = pyarrow.string(), pyarrow.float64()
                numbers = {"index": pyarrow.int64(), "probability": number, "digit_score": number}
                numbers["top_k"] = pyarrow.list_(pyarrow.struct({"label": text, "probability": number}))
                # Of rows that are all null in a column, the type could not be inferred.
                schema = pyarrow.schema([(name, numbers.get(name, text)) for name in rows[0]])
                writer = writer or stack.enter_context(pyarrow.parquet.ParquetWriter(file, schema))
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))

        yield write
        stack.close()  # before the file is renamed
