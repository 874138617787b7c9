"""The views of `run_visualize.py`. Each prints a text and, except `model`, draws a picture."""

import json
import math
from pathlib import Path

import numpy as np
import torch

from ..checkpoints.folder import load_checkpoint
from ..cli.errors import UsageError, printable
from ..cli.files import check_writable
from ..cli.inputs import read_text
from ..data.arguments import DataArguments
from ..data.splits import load_images
from ..deskewing_vit_mnist import deskew
from ..framing_vit_mnist import Framing, frame_digit
from ..image_processing_vit_mnist import VitMnistImageProcessor, open_image
from . import plots
from .architecture import parameter_table, stage_shapes
from .arguments import MAX_FRAMED, VisualizeArguments
from .classes import class_names, describe_accuracy, match_classes
from .images import find_images, read_images
from .predict import check_finite, check_output, choose_device, predict

MEASURED = ("loss", "eval_loss", "eval_accuracy")  # what `history.json` holds of an epoch


def _picture(args: VisualizeArguments, name: str) -> Path:
    check_writable(Path(args.output_dir))
    return Path(args.output_dir) / name


def view_data(args: VisualizeArguments, data_args: DataArguments) -> None:
    """Summary, mean and standard deviation, batch shapes; a picture of digits and class balance."""
    picture = _picture(args, "data.png")
    processor = VitMnistImageProcessor()
    datasets = load_images(data_args, processor)
    train = datasets["train"]
    images = torch.cat([train.images, datasets["validation"].images])
    labels = torch.cat([train.labels, datasets["validation"].labels])
    pixels = images.double() / 255

    print(f"Dataset {printable(train.source)}")
    held_out = len(datasets["validation"])
    print(f"    Train:   {len(images):,} images ({len(train):,} to train on, {held_out:,} for validation)")
    print(f"    Test:    {len(datasets['test']):,} images")
    print(f"    Image:   {images.shape[1]}x{images.shape[2]} pixels, 1 channel, uint8")
    print(f"    Classes: {printable(', '.join(train.names))}")
    print(f"    Mean:    {pixels.mean():.4f} measured on train, {processor.image_mean[0]:.4f} used")
    print(f"    Std:     {pixels.std(unbiased=False):.4f} measured on train, {processor.image_std[0]:.4f} used")
    batch = next(iter(torch.utils.data.DataLoader(train, args.batch_size, collate_fn=train.collate)))
    print(f"Batch: images {list(batch['pixel_values'].shape)}, labels {list(batch['labels'].shape)}")
    plots.plot_data(images, labels, train.names, picture)
    print(printable(f"Wrote {picture}"))


def view_model(args: VisualizeArguments, data_args: DataArguments) -> None:
    """The parameter table, and the shape after every stage for one batch."""
    model, processor = load_checkpoint(args.model)
    model.eval()
    print(parameter_table(model))
    size = model.config.image_size
    images = torch.zeros(args.batch_size, size, size, dtype=torch.uint8)
    print(f"\nForward pass of a batch of {args.batch_size}:")
    for name, shape in stage_shapes(model, processor.rescale_and_normalize(images)):
        print(f"    {name:<44} {list(shape)}")


def view_attention(args: VisualizeArguments, data_args: DataArguments) -> None:
    """The attention of the CLS token to each patch, per layer and head."""
    picture = _picture(args, "attention.png")
    model, processor = load_checkpoint(args.model, attn_implementation="eager")  # the only one that returns attentions
    model.to(choose_device(args.device)).eval()
    dataset = load_images(data_args, processor, [args.split])[args.split]
    if outside := [index for index in args.index if not 0 <= index < len(dataset)]:
        raise UsageError(f"--index must lie in 0 to {len(dataset) - 1}, got {outside[0]}.")
    dataset = dataset.select(torch.tensor(args.index))
    pixel_values = processor.rescale_and_normalize(dataset.images).to(model.device)
    with torch.inference_mode():
        outputs = model(pixel_values, output_attentions=True)
    check_finite(outputs.logits, lambda row: f"image {args.index[row]}")
    names = class_names(model)
    predictions = [names[label] for label in outputs.logits.argmax(1).tolist()]
    attentions = tuple(attention.cpu() for attention in outputs.attentions)
    plots.plot_attention(dataset.images, attentions, predictions, picture)
    print(printable(f"Wrote {picture}"))


def view_training(args: VisualizeArguments, data_args: DataArguments) -> None:
    """Loss, accuracy and learning rate of the run that made a checkpoint folder."""
    picture = _picture(args, "training.png")
    record = Path(args.model) / "history.json"
    try:
        history = json.loads(read_text(record))["log_history"]
        measured = [entry.get(name) for entry in history for name in MEASURED if math.isfinite(entry.get("epoch", 0))]
        has_values = any(math.isfinite(value) for value in measured if value is not None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{args.model} holds no record of its training: cannot read {record.name}.") from error
    if not has_values:
        raise UsageError(f"{args.model} holds no record of its training: {record.name} has no loss and no accuracy.")
    plots.plot_training(history, picture)
    print(printable(f"Wrote {picture}"))


def view_mistakes(args: VisualizeArguments, data_args: DataArguments) -> None:
    """Confusion matrix and most confident errors."""
    picture = _picture(args, "mistakes.png")
    model, processor = load_checkpoint(args.model)
    model.to(choose_device(args.device))
    dataset = load_images(data_args, processor, [args.split])[args.split]
    numbers, names = match_classes(dataset.names, class_names(model))
    labels = numbers[dataset.labels]
    probabilities = predict(model, processor, dataset.images).softmax(-1)
    what = printable(f"{args.split} images of {dataset.source}")
    print(describe_accuracy(probabilities.argmax(1), labels, names, model.config.num_labels, what))
    plots.plot_mistakes(dataset.images, labels, probabilities, names, picture)
    print(printable(f"Wrote {picture}"))


def view_framing(args: VisualizeArguments, data_args: DataArguments) -> None:
    """How `do_frame` finds the digit in image files: the ink, the digit and its frame; upright, if the checkpoint
    deskews."""
    files = find_images(args.image)
    if not 1 <= len(files) <= MAX_FRAMED:
        raise UsageError(f"The view 'framing' takes 1 to {MAX_FRAMED} images, got {len(files)}: pass --image FILE.")
    path = Path(args.output_dir) / "framing.png"
    check_output(path, files)
    processor = load_checkpoint(args.model)[1]
    processor.max_pixels = data_args.max_pixels
    files = read_images(files, processor, data_args.skip_bad_images)[1]
    pictures = [open_image(file, processor.max_pixels) for file in files]
    framings = []
    for picture in pictures:
        gray = processor.process_image(picture)
        gray = gray if gray.dtype == np.uint8 else np.round(255 * gray).astype(np.uint8)
        framings.append(frame_digit(gray, processor.size["height"]))
    descriptions = [*map(describe_framing, framings)]
    for file, description in zip(files, descriptions, strict=True):
        print(f"{printable(str(file))}: {description}")
    upright = [deskew(found.image) for found in framings] if processor.do_deskew else []
    plots.plot_framing([file.name for file in files], pictures, framings, descriptions, path, upright)
    print(f"Wrote {printable(str(path))}")


def describe_framing(found: Framing) -> str:
    """What [`frame_digit`] found, or why there is no digit."""
    if found.is_framed:
        return "framed already"
    if found.problem:
        return found.problem
    ink = "dark on light" if found.is_dark_on_light else "light on dark"
    others = ", more than one digit" if found.has_others else ""
    return f"{ink}, strokes of {found.stroke_width:.1f} pixels of {len(found.image)}{others}"


VIEWS = {
    "data": view_data, "model": view_model, "attention": view_attention, "training": view_training,
    "mistakes": view_mistakes, "framing": view_framing,
}  # fmt: skip
