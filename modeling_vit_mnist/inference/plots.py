"""Figures of images: data, predictions, augmentation, framing. `plot_*` functions write the PNG or SVG file `path`,
with `caption` below the figure."""

import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import torch

from ..cli.errors import printable
from ..framing_vit_mnist import Framing
from ..morphology_vit_mnist import bounds
from .style import LIGHT, WIDTH, Style, shorten


def plot_data(
    images: torch.Tensor, labels: torch.Tensor, names: list[str], path: Path, caption: str = "", style: Style = LIGHT
) -> None:
    """Ten random images of each class, and the number of images per class, from `images` of shape
    `(n, height, width)`, uint8, `labels` of shape `(n,)`, and the names of the classes."""
    generator = torch.Generator().manual_seed(0)
    columns = 10
    with style.figure(path, WIDTH, 0.37 * len(names) + 0.4, caption) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(0.37 * columns, 1.8))
        left.suptitle("Ten images of each class")
        axes = left.subplots(len(names), columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
        for label, row in enumerate(axes):
            found = (labels == label).nonzero()[:, 0]
            style.fill(row, images[found[torch.randperm(len(found), generator=generator)[:columns]]])
        right.suptitle("Number of images")
        axis = right.subplots()
        counts = labels.bincount(minlength=len(names))
        bars = axis.barh(range(len(names)), counts, color=style.blue, height=0.7)
        axis.set_yticks(range(len(names)), [shorten(name, 16) for name in names])
        axis.bar_label(bars, [f"{count:,}" for count in counts.tolist()], padding=3, color=style.muted, fontsize=9)
        axis.set(xticks=[], xlim=(0, counts.max().item() * 1.6), ylim=(len(names) - 0.5, -0.5))
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(left=False)


def plot_predictions(
    images: torch.Tensor, rows: list[dict], path: Path, caption: str = "", style: Style = LIGHT
) -> None:
    """Images of shape `(n, height, width)`, uint8 or floats in [0, 1], with their predictions, mistakes in red. Each
    row has `prediction`, `probability`, `digit_score` and, if they are known, `label` and the file name `image`. A
    prediction of `None` is shown as "-" or, if there is a score, which is too low then, as "?"."""
    has_names = any("image" in row for row in rows)
    columns = min(len(images), 6 if has_names else 8)
    lines = math.ceil(len(images) / columns)
    size = WIDTH / (6 if has_names else 8)
    height = (size + (0.66 if has_names else 0.45)) * lines
    with style.figure(path, max(size * columns, 2.2), height, caption) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        style.fill(axes, images)
        for row, axis in zip(rows, axes, strict=False):
            below = [shorten(Path(row["image"]).name, 14)] if "image" in row else []
            if row["prediction"] is None:
                title, reason = ("-", "no digit") if row["digit_score"] is None else ("?", "rejected")
                axis.set_title(title, pad=3)
                axis.set_xlabel("\n".join([reason, *below]), **style.small)
                continue
            is_wrong = row.get("label") not in (None, row["prediction"])
            title = f"{row['prediction']}, not {row['label']}" if is_wrong else row["prediction"]
            axis.set_title(printable(title), color=style.red if is_wrong else style.ink, pad=3)
            axis.set_xlabel("\n".join([f"{row['probability']:.1%}", *below]), **style.small)
            if is_wrong:
                style.finish(axis, style.red)


def plot_warps(
    images: torch.Tensor, warped: torch.Tensor, path: Path, caption: str = "", style: Style = LIGHT
) -> None:
    """Training images of shape `(n, height, width)`, and the same as they are `warped` in each of the first epochs, of
    shape `(n, epochs, height, width)`."""
    epochs = warped.shape[1]
    columns = 1 + epochs
    size = WIDTH / (columns + 0.2)
    with style.figure(path, WIDTH, (size + 0.04) * len(images) + 0.35, caption) as figure:
        grid = {"width_ratios": (1, 0.2, *[1] * epochs), "wspace": 0.04, "hspace": 0.04}
        axes = figure.subplots(len(images), columns + 1, squeeze=False, gridspec_kw=grid)
        for image, line, row in zip(images, axes, warped, strict=True):
            line[1].set_axis_off()
            style.show(line[0], image)
            style.fill(line[2:], row)
        axes[0, 0].set_title("image")
        for epoch, axis in enumerate(axes[0, 2:], 1):
            axis.set_title("epoch 1" if epoch == 1 else str(epoch))


FRAMING_STEPS = ("1. Picture", "2. Ink", "3. Box", "4. Frame", "5. Deskewed")


def plot_framing(
    names: list[str], pictures: list[PIL.Image.Image], framings: list[Framing], descriptions: list[str], path: Path,
    upright: list[np.ndarray], caption: str = "", style: Style = LIGHT,
) -> None:  # fmt: skip
    """A row per picture, a column per step: the picture as it was given, its ink, the digit in its bounding box, the
    frame over its description, which is red if there is no digit, and the digit deskewed, unless `upright` is
    empty."""
    titles = FRAMING_STEPS[: 5 if upright else 4]
    size = WIDTH / len(titles)
    with style.figure(path, WIDTH, (size + 0.45) * len(names) + 0.25, caption) as figure:
        axes = figure.subplots(len(names), len(titles), squeeze=False)
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        for line, image in zip(axes, upright, strict=False):
            style.show_in_square(line[4], image)
        for line, name, picture, found, text in zip(axes, names, pictures, framings, descriptions, strict=True):
            style.show_in_square(line[0], picture)
            line[0].set_xlabel(f"{shorten(name, 16)}\n{picture.width}x{picture.height} pixels", **style.small)
            for axis, part in zip(line[1:4], (found.ink, found.digit, found.image), strict=True):
                if part is None:
                    axis.set_box_aspect(1)  # keeps its title in line
                    axis.set_axis_off()
                else:
                    style.show_in_square(axis, part)
            if found.digit is not None:
                top, bottom, left, right = bounds(found.digit)
                corner, size_of_box = (left - 0.5, top - 0.5), (right - left, bottom - top)
                line[2].add_patch(plt.Rectangle(corner, *size_of_box, fill=False, color=style.orange, lw=1.5))
            below = re.sub(r"strokes of (\S+) pixels of (\d+)", r"strokes: \1\nof \2 pixels", text.replace(", ", "\n"))
            line[3].set_xlabel(below, **style.small | ({"color": style.red} if found.problem else {}))


def plot_failures(parts: dict[str, list[tuple[str, PIL.Image.Image, torch.Tensor, str, str]]], path: Path) -> None:
    """Wrong answers in parts with a title each: the name of a picture, itself, its frame of shape `(height, width)`,
    what is wrong, and how sure the model was."""
    columns = 3
    lines = [max(1, math.ceil(len(rows) / columns)) for rows in parts.values()]
    with LIGHT.figure(path, 2.4 * columns, 1.65 * sum(lines) + 0.4 * len(parts)) as figure:
        subfigures = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=[count + 0.25 for count in lines])
        for subfigure, count, (title, rows) in zip(subfigures[:, 0], lines, parts.items(), strict=True):
            subfigure.suptitle(printable(title))
            axes = subfigure.subplots(count, 2 * columns, squeeze=False).flatten()
            for axis in axes[2 * len(rows) :]:
                axis.set_axis_off()
            for index, (name, picture, frame, text, confidence) in enumerate(rows):
                given, framed = axes[2 * index : 2 * index + 2]
                LIGHT.show_in_square(given, picture)
                LIGHT.show(framed, frame)
                given.set_xlabel(shorten(name, 18), **LIGHT.small)
                framed.set_title(printable(text), color=LIGHT.red, fontsize=9, pad=3)
                framed.set_xlabel(confidence, **LIGHT.small)
