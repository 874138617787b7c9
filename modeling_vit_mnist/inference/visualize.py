"""The views of `run_visualize.py`. Each prints which checkpoint and data it shows and, except `model`, draws a
figure."""

import copy
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..cli.errors import UsageError, printable
from ..cli.files import check_writable
from ..data.augmentation import AugmentationArguments, draw_warps, warp_images
from ..data.splits import load_images
from ..deskewing_vit_mnist import deskew
from ..framing_vit_mnist import Framing
from ..image_processing_vit_mnist import VitMnistImageProcessor, open_image
from . import plots, plots_network, plots_results
from .analysis import attention_rollout, calibration, position_similarity
from .architecture import parameter_table, stage_shapes
from .arguments import MAX_FRAMED
from .classes import describe_accuracy
from .images import find_images, read_images, uses_framing
from .plots_architecture import plot_architecture
from .predict import check_output
from .subject import Subject

WARPED_EPOCHS = 7  # shown of each training image
MAX_ADDED = 1_000_000  # images made by code, as a record of a stranger may have any number


def view_data(subject: Subject) -> None:
    """Summary, mean and standard deviation, batch shapes; a figure of images and class balance."""
    args = subject.args
    processor = VitMnistImageProcessor()
    datasets = load_images(subject.data_args, processor)
    train = datasets["train"]
    target = subject.target("data", f"{train.source}: training and validation images.")
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
    plots.plot_data(images, labels, train.names, **target)


def view_model(subject: Subject) -> None:
    """The parameter table, and the shape after every stage for one batch."""
    model, processor = subject.checkpoint
    print(f"\n{parameter_table(model)}")
    size = model.config.image_size
    images = torch.zeros(subject.args.batch_size, size, size, dtype=torch.uint8)
    print(f"\nForward pass of a batch of {subject.args.batch_size}:")
    pixel_values = processor.rescale_and_normalize(images).to(model.device)
    for name, shape in stage_shapes(model, pixel_values):
        print(f"    {name:<44} {list(shape)}")


def view_architecture(subject: Subject) -> None:
    """The network, drawn from its config."""
    caption = f"{subject.name}. Shapes are those of one image."
    plot_architecture(subject.model.config, **subject.target("architecture", caption))


def view_parameters(subject: Subject) -> None:
    """Where the parameters are."""
    plots_network.plot_parameters(subject.model.config, **subject.target("parameters", f"{subject.name}."))


def view_patches(subject: Subject) -> None:
    """An image, cut into patches, and its tokens: the first that `--index` names."""
    model = subject.model
    caption = (
        f"{subject.name}, image {subject.args.index[0]} of the {subject.data}. Each filter of the patch embedding "
        "gives one number per patch. The positions are added later."
    )
    target = subject.target("patches", caption)
    plots_network.plot_patches(subject.chosen.images[0], subject.tokens[0], model.config.patch_size, **target)


def view_filters(subject: Subject) -> None:
    """The filters of the patch embedding, and their responses to images."""
    caption = f"{subject.name}, {subject.data}. Above, the weights of a filter; below, its response to each patch."
    if subject.model.config.hidden_size > plots_network.MAX_FILTERS:
        caption += f" The first {plots_network.MAX_FILTERS} of {subject.model.config.hidden_size} filters."
    target = subject.target("filters", caption)
    plots_network.plot_filters(subject.model, subject.chosen.images, subject.tokens, **target)


def view_positions(subject: Subject) -> None:
    """How similar the position embeddings are."""
    caption = f"{subject.name}. Each map compares the framed patch's position embedding with those of all patches."
    target = subject.target("positions", caption)
    plots_network.plot_positions(position_similarity(subject.model).cpu(), **target)


def view_attention(subject: Subject) -> None:
    """The attention of the CLS token to each patch and to itself, per layer and head."""
    attentions, predictions = subject.attentions
    caption = (
        f"{subject.name}, {subject.data}. Attention of the CLS token to each patch and, in the bar below, to itself. "
        "One scale for all maps: the color follows the square root, so that small values show."
    )
    target = subject.target("attention", caption)
    plots_network.plot_attention(subject.chosen.images, attentions, predictions, **target)


def view_rollout(subject: Subject) -> None:
    """Attention of the CLS token per layer, beside its rollout through all layers."""
    attentions, predictions = subject.attentions
    least = 100 * 0.5 ** len(attentions)
    caption = (
        f"{subject.name}, {subject.data}. Mean of the heads per layer, and their rollout through all layers (Abnar "
        "and Zuidema, 2020), on one scale. In a rollout, half of each layer is the residual connection, which passes "
        f"each token on: so CLS keeps at least {least:.3g}% of itself."
    )
    target = subject.target("rollout", caption)
    rollout = attention_rollout(attentions)
    plots_network.plot_rollout(subject.chosen.images, attentions, rollout, predictions, **target)


def view_warps(subject: Subject) -> None:
    """Training images as the run of the checkpoint augmented them, in its first epochs."""
    args, run = subject.args, subject.run
    known = AugmentationArguments.__dataclass_fields__
    try:
        settings = {name: value for name, value in run.get("augmentation", {}).items() if name in known}
        augmentation, seed = AugmentationArguments(**settings), int(run["training"]["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{args.model} holds no record of its training: cannot read run.json.") from error
    limits = {
        "max_translate": "shift up to {:g} px", "max_rotation": "rotation {:g}°",
        "max_scale_jitter": "scale {:.0%}",
        "max_shear": "shear {:g}°", "elastic_std": "elastic {:g} px",
    }  # fmt: skip
    words = [text.format(settings[name]) for name, text in limits.items() if settings.get(name)]
    if not words:
        raise UsageError(f"{args.model} was trained without augmentation: choose another --model.")
    train = load_images(subject.data_args, subject.processor, ["train"])["train"]
    images, chosen = subject.select(train).images, torch.tensor(args.index)
    total = len(train) + min(augmentation.num_added, MAX_ADDED)  # the draws depend on how many images there are
    drawn = [draw_warps(augmentation, total, (seed, epoch)) for epoch in range(WARPED_EPOCHS)]
    warped = [warp_images(images, **{name: draws[chosen] for name, draws in warps.items()}) for warps in drawn]
    caption = (
        f"{subject.name}, training images of {train.source}, as augmented in the first epochs: {', '.join(words)}."
    )
    print(printable(f"Data: {len(train):,} training images of {train.source}"))
    print(f"Augmentation: {', '.join(words)}")
    target = subject.target("warps", caption)
    plots.plot_warps(images, torch.stack(warped, 1), **target)


def view_training(subject: Subject) -> None:
    """Loss, accuracy and learning rate of the run that made a checkpoint folder."""
    history, run = subject.history, subject.run
    data = f", trained on {run['data'].get('source')}" if run else ""
    print(printable(f"Checkpoint: {subject.args.model}{data}"))
    target = subject.target("training", f"{subject.name}{data}.")
    plots_results.plot_training(history, run=run, best_epoch=subject.best_epoch, **target)


def view_mistakes(subject: Subject) -> None:
    """Confusion matrix and most confident errors."""
    labels, names = subject.labels
    probabilities, what = subject.probabilities, printable(subject.data)
    shown = subject.has_digit
    predictions = probabilities.argmax(1).where(shown, -1)
    print(describe_accuracy(predictions, labels, names, subject.model.config.num_labels, what))
    target = subject.target("mistakes", f"{subject.name}, {subject.data}.")
    target["without_digit"] = int((~shown).sum())
    images = subject.dataset.images[shown]
    plots_results.plot_mistakes(images, labels[shown], probabilities[shown], names, **target)


def view_calibration(subject: Subject) -> None:
    """Whether the probabilities are right as often as they say."""
    shown = subject.has_digit
    found = calibration(subject.probabilities[shown], subject.labels[0][shown])
    count, left_out = int(shown.sum()), len(shown) - int(shown.sum())
    others = f", without {left_out:,} that hold no digit" if left_out else ""
    print(f"Expected calibration error: {found.error:.4f} ({count:,} images, {len(found.counts)} bins){others}")
    target = subject.target("calibration", f"{subject.name}, {count:,} {subject.data}{others}.")
    plots_results.plot_calibration(found, **target)


def view_framing(subject: Subject) -> None:
    """How `do_frame` finds the digit in image files, step by step: the ink, the digit in its box and its frame;
    deskewed, if the checkpoint deskews."""
    args, data_args = subject.args, subject.data_args
    files = find_images(args.image)
    if (given := len(files) or len(args.index)) > MAX_FRAMED:
        raise UsageError(f"The view 'framing' takes up to {MAX_FRAMED} images, got {given}: pass fewer.")
    caption = f"Framed by the processor of {subject.name}."
    check_output(subject.path("framing"), files)
    processor = copy.copy(subject.processor)
    if not uses_framing(processor):
        raise UsageError(f"{args.model} does not frame images (do_frame is off): choose another --model.")
    processor.max_pixels = data_args.max_pixels
    if files:
        files = read_images(files, processor, data_args.skip_bad_images)[1]
        names, lines = [file.name for file in files], [*map(str, files)]
        pictures = [open_image(file, processor.max_pixels) for file in files]
    else:
        plain = copy.copy(processor)
        plain.do_deskew = False
        dataset = load_images(data_args, plain, [args.split])[args.split]
        caption = f"{subject.name}, {args.split} images of {dataset.source}, put on a sheet of paper by code."
        names = lines = [f"image {index}" for index in args.index]
        pictures = [_put_on_paper(image) for image in subject.select(dataset).images.numpy()]
    target = subject.target("framing", caption)
    framings = [processor.frame(processor.process_image(picture), processor.size["height"]) for picture in pictures]
    descriptions = [*map(describe_framing, framings)]
    for line, description in zip(lines, descriptions, strict=True):
        print(f"{printable(line)}: {description}")
    upright = [deskew(found.image) for found in framings] if processor.do_deskew else []
    plots.plot_framing(names, pictures, framings, descriptions, upright=upright, **target)


def _put_on_paper(image: np.ndarray) -> PIL.Image.Image:
    """A picture such as a camera takes of an image of a digit, uint8: dark ink, off center, on paper that is darker
    towards one corner."""
    ink = PIL.Image.fromarray(image).resize((120, 120), PIL.Image.Resampling.BICUBIC)
    sheet = PIL.Image.new("L", (300, 240))
    sheet.paste(ink, (48, 80))
    down, right = np.mgrid[:240, :300] / 240
    paper = 235 - 45 * down - 30 * right
    return PIL.Image.fromarray(np.round(paper * (1 - 0.75 * np.asarray(sheet) / 255)).astype(np.uint8))


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
    "data": view_data, "model": view_model, "architecture": view_architecture, "parameters": view_parameters,
    "patches": view_patches, "filters": view_filters, "positions": view_positions, "attention": view_attention,
    "rollout": view_rollout, "warps": view_warps, "training": view_training, "mistakes": view_mistakes,
    "calibration": view_calibration, "framing": view_framing,
}  # fmt: skip


def show(view: str, subject: Subject) -> None:
    """Show one of [`VIEWS`]. Raises [`UsageError`] before the work if its figure cannot be written."""
    if view != "model":
        check_writable(Path(subject.args.output_dir))
    VIEWS[view](subject)
    if view != "model":
        print(f"Wrote {printable(str(subject.path(view)))}")
