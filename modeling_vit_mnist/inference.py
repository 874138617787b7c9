"""Predictions for datasets, files and tensors."""

import glob
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
import torch
from tqdm.auto import tqdm

from .arguments import DataArguments
from .errors import InputError
from .files import check_writable, replacing
from .light import LightModel, LightProcessor, load_light_checkpoint


if TYPE_CHECKING:
    from .data import Digits
    from .image_processing_vit_mnist import VitMnistImageProcessor
    from .modeling_vit_mnist import VitMnistForImageClassification


DEFAULT_MODEL = Path(__file__).resolve().parents[1] / "vit-mnist-tiny"
TABLES = (".jsonl", ".csv", ".parquet")
GRID_IMAGES = 100
# With so few images, what takes the time is to start; with more, the model's own pass is faster and needs less memory.
LIGHT_IMAGES = 64


@dataclass
class InferenceArguments:
    """Which model, which images, and what to make of the predictions."""

    model: str = field(
        default=str(DEFAULT_MODEL), metadata={"help": "Checkpoint folder or Hub id. Default: the kept vit-mnist-tiny."}
    )
    split: str = field(
        default="test", metadata={"help": "Split of the dataset.", "choices": ["train", "validation", "test"]}
    )
    num_samples: int = field(default=64, metadata={"help": "Predict the first N images of the split; 0 for all."})
    image: list[str] = field(
        default_factory=list,
        metadata={"help": "Predict these image files, folders or globs instead of a dataset.", "nargs": "+"},
    )
    do_center: bool | None = field(default=None, metadata={"help": "Frame each digit as MNIST's were."})
    do_invert: str | None = field(
        default=None,
        metadata={
            "help": "Invert the images; auto: those of dark ink on light paper.",
            "choices": ["yes", "no", "auto"],
        },
    )
    top_k: int = field(default=1, metadata={"help": "Print the K most probable classes."})
    output: str | None = field(
        default=None, metadata={"help": "Also write the predictions to this .jsonl, .csv or .parquet file."}
    )
    grid: str | None = field(
        default=None, metadata={"help": "Also draw the images with their predictions to this .png file."}
    )
    batch_size: int = field(default=1000, metadata={"help": "Images per forward pass."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps, ... Default: the best at hand."})

    def __post_init__(self):
        for name, least in (("num_samples", 0), ("top_k", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        if self.output and Path(self.output).suffix not in TABLES:
            raise InputError(f"--output must end in {', '.join(TABLES)}, got {self.output!r}.")
        if self.grid and Path(self.grid).suffix != ".png":
            raise InputError(f"--grid must end in .png, got {self.grid!r}.")


def choose_device(name: str | None = None) -> torch.device:
    """
    The device asked for, else the accelerator at hand, else the CPU.

    Raises:
        InputError: there is no such device.
    """
    if name is None:
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"There is no device {name!r} here: {str(error).splitlines()[0]}") from error


@torch.inference_mode()
def predict(
    model: "VitMnistForImageClassification | LightModel",
    processor: "VitMnistImageProcessor | LightProcessor",
    frames: torch.Tensor,
    batch_size: int = 1000,
) -> torch.Tensor:
    """
    Class probabilities of frames that the processor has made.

    Args:
        model: In whatever mode and on whatever device; runs in evaluation mode.
        processor: Normalises the frames, batch by batch, on the model's device.
        frames (`torch.Tensor` of shape `(n, height, width)`): uint8, or floats in [0, 1].
        batch_size (`int`): Images per forward pass.

    Returns:
        `torch.Tensor` of shape `(n, num_labels)`: float32, on the CPU.
    """
    model.eval()
    logits = [torch.empty(0, model.config.num_labels)]
    for batch in tqdm(frames.split(batch_size), desc="Predict", unit=" batches", leave=False, disable=None):
        logits.append(model(processor.to_pixel_values(batch.to(model.device))).logits.float().cpu())
    # Along the images, which is eight times as fast as along ten classes.
    return torch.cat(logits).T.contiguous().softmax(0).T.contiguous()


def find_images(patterns: list[str]) -> list[Path]:
    """
    The image files that paths, folders and globs name; those of a folder or glob in alphabetical order.

    Raises:
        InputError: one of them names nothing, or a folder holds no image.
    """
    files = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            known = PIL.Image.registered_extensions()
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file())
        else:
            found = [path] if path.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not found:
            raise InputError(f"There is no image at {pattern!r}.")
        files += found
    return files


def read_images(
    files: list[Path], processor: "VitMnistImageProcessor | LightProcessor", skip_bad_images: bool
) -> tuple[torch.Tensor, list[Path]]:
    """
    Frames of image files, of shape `(n, height, width)`, and the files they are of. The frames are uint8, or float32
    in [0, 1] where one of the files holds floats.

    Raises:
        InputError: a file is no readable image and `skip_bad_images` is off, or none is readable.
    """
    frames, read = [], []
    for file in tqdm(files, desc="Read", unit=" images", leave=False, disable=None if len(files) > 100 else True):
        try:
            frames.append(processor.to_frames([file]))
            read.append(file)
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            if not skip_bad_images:
                raise InputError(
                    f"{file} cannot be read: {error}. Pass --skip_bad_images to go on without such images."
                ) from error
            print(f"Skipped {file}, which cannot be read: {error}")
    if not read:
        raise InputError("None of the images can be read.")
    if len({frame.dtype for frame in frames}) > 1:  # floats among integers: floats are already rescaled
        frames = [frame if frame.is_floating_point() else frame / 255 for frame in frames]
    return torch.cat(frames), read


def load_model(
    name_or_path: str, device: torch.device, light: bool
) -> tuple["VitMnistForImageClassification | LightModel", "VitMnistImageProcessor | LightProcessor"]:
    """
    A classifier on `device` and its processor, the light ones if `light` and if they will do.

    Raises:
        InputError, ConnectionError: as [`hub.load_checkpoint`].
    """
    if light and device.type == "cpu" and (found := load_light_checkpoint(name_or_path)):
        return found
    from . import hub  # here, since it takes seconds to import

    model, processor = hub.load_checkpoint(name_or_path)
    return model.to(device), processor


def run_inference(args: InferenceArguments, data_args: DataArguments) -> None:
    """
    Print one prediction per image, and write what else was asked for.

    Args:
        args ([`InferenceArguments`]): The model, the images, the outputs.
        data_args ([`DataArguments`]): The dataset, where no files are named.

    Raises:
        InputError: any of them is wrong; nothing has been written then.
    """
    for path in filter(None, (args.output, args.grid)):
        check_writable(Path(path).parent)
    device = choose_device(args.device)
    files = find_images(args.image)
    model, processor = load_model(args.model, device, light=0 < len(files) <= LIGHT_IMAGES)
    if args.do_center is not None:
        processor.do_center = args.do_center
    if args.do_invert is not None:
        processor.do_invert = {"yes": True, "no": False, "auto": "auto"}[args.do_invert]

    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if files:
        frames, files = read_images(files, processor, data_args.skip_bad_images)
        for frame, file in zip(frames, files, strict=True):
            if frame.max() == frame.min():
                print(f"Nothing is left to see of {file}. If it is dark ink on light paper, pass --do_invert auto.")
        batches, what = [(frames, [{"image": str(file)} for file in files])], "images"
    else:
        batches, source = read_split(args, data_args, processor)
        what = f"{args.split} images of {source}"

    total, right, seconds, drawn = 0, 0, 0.0, []
    with writing_table(Path(args.output)) if args.output else nullcontext() as write:
        for frames, rows in batches:
            if total == 0:
                predict(model, processor, frames[:1])  # the first pass on a device pays for its start
            started = time.perf_counter()
            probabilities = predict(model, processor, frames, args.batch_size)
            seconds += time.perf_counter() - started
            for row, values in zip(rows, probabilities, strict=True):
                print_prediction(row, values, names, args.top_k)
            if write:
                write(rows)
            if args.grid and total < GRID_IMAGES:
                drawn += list(zip(frames, rows, strict=True))[: GRID_IMAGES - total]
            total += len(rows)
            right += sum(row.get("label") == row["prediction"] for row in rows)
        if total == 0:
            raise InputError(f"There are no {what}.")

    speed = f"{total / seconds:,.0f} images/s on {device}"
    if args.image:
        print(f"{total:,} {what}, {speed}")
    else:
        print(f"Accuracy: {right / total:.2%} ({right:,} of {total:,} {what}), {speed}")
    if args.output:
        print(f"Wrote {args.output}")
    if args.grid:
        from .plots import plot_predictions

        frames, rows = zip(*drawn, strict=True)
        plot_predictions(
            torch.stack(frames), [row["prediction"] for row in rows], [row.get("label") for row in rows],
            [row["probability"] for row in rows], Path(args.grid),
        )  # fmt: skip
        print(f"Wrote {args.grid}")


def read_split(
    args: InferenceArguments, data_args: DataArguments, processor: "VitMnistImageProcessor"
) -> tuple[Iterable[tuple[torch.Tensor, list[dict]]], str]:
    """The frames of a split with a row for each, all at once or, from a stream, in chunks; and the split's source."""
    # Here, since whoever predicts frames or files needs no `datasets`.
    from .data import load_digits
    from .streaming import StreamedDigits, stream_digits

    if not data_args.streaming:
        digits = load_digits(data_args, processor, [args.split])[args.split]
        return _number([digits.select(slice(args.num_samples or None))]), digits.source
    if args.num_samples:
        limits = {"max_train_samples": args.num_samples, "max_eval_samples": args.num_samples}
        data_args = replace(
            data_args, **{name: min(value, getattr(data_args, name) or value) for name, value in limits.items()}
        )
    digits = stream_digits(data_args, processor, [args.split])[args.split]
    chunks = digits.chunks() if isinstance(digits, StreamedDigits) else [digits]
    return _number(chunks), digits.source


def _number(chunks: Iterable["Digits"]) -> Iterator[tuple[torch.Tensor, list[dict]]]:
    """Frames, and a row for each: its index in the split, counted over the chunks, and its label."""
    start = 0
    for digits in chunks:
        labels = [digits.names[label] for label in digits.labels.tolist()]
        yield digits.images, [{"index": index, "label": label} for index, label in enumerate(labels, start)]
        start += len(digits)


def print_prediction(row: dict, probabilities: torch.Tensor, names: list[str], top_k: int) -> None:
    """Add to a row what is predicted from `probabilities` of shape `(classes,)`, and print it."""
    best = probabilities.argmax().item()
    row |= {"prediction": names[best], "probability": round(probabilities[best].item(), 6)}
    if "image" in row:
        line = f"{row['image']} Pred:{row['prediction']} Prob:{row['probability']:.4f}"
    else:
        is_right = row["label"] == row["prediction"]
        line = f"Idx:{row['index']} GT:{row['label']} Pred:{row['prediction']} isAcc:{is_right}"
    if top_k > 1:
        top = probabilities.topk(min(top_k, len(names)))
        row["top_k"] = {names[i]: round(p, 6) for p, i in zip(*map(torch.Tensor.tolist, top), strict=True)}
        line += " Top:" + ",".join(f"{name}={p:.4f}" for name, p in row["top_k"].items())
    print(line)
    print("-" * 30)


@contextmanager
def writing_table(path: Path) -> Iterator[Callable[[list[dict]], None]]:
    """Give a function that adds rows to a .jsonl, .csv or .parquet file, which is there whole or not at all."""
    import pandas
    import pyarrow
    import pyarrow.parquet

    with replacing(path) as staging, ExitStack() as stack:
        mode = {"mode": "wb"} if path.suffix == ".parquet" else {"mode": "w", "encoding": "utf-8", "newline": ""}
        file = stack.enter_context(staging.open(**mode))
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
        stack.close()  # before the file is put in its place
