"""Pictures of data, predictions, attention, training, mistakes and framing. `plot_*` functions write the PNG file
`path`."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import torch
from matplotlib.ticker import FormatStrFormatter, NullFormatter, PercentFormatter

from ..cli.errors import printable
from ..cli.files import replacing
from ..framing_vit_mnist import Framing
from ..grayscale_vit_mnist import to_grayscale
from ..morphology_vit_mnist import bounds

BLUE, RED, GRAY = "#2563a8", "#c8372d", "#6b7280"
STYLE = {
    "font.size": 10, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": GRAY, "axes.titlesize": 11, "axes.titleweight": "bold", "figure.facecolor": "white",
    "savefig.dpi": 140, "text.parse_math": False,
}  # fmt: skip
SMALL = {"color": GRAY, "fontsize": 8, "labelpad": 2}


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[plt.Figure]:
    """A figure that is saved to `path`. It needs no screen, whatever the backend."""
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as staging:
            figure.savefig(staging)


def _show(axis: plt.Axes, image: torch.Tensor) -> None:
    pixels = image * 255 if image.is_floating_point() else image
    axis.imshow(pixels, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    _finish(axis)


def _show_in_square(axis: plt.Axes, image: PIL.Image.Image | np.ndarray) -> None:
    """Show a picture of any shape as people see it, or an array of any unit with its greatest value in black. Large
    ones are antialiased."""
    if isinstance(image, np.ndarray):
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=max(float(image.max()), 1))
    else:
        axis.imshow(_as_rgba(image))
    axis.set_box_aspect(1)
    axis.set_aspect("equal", adjustable="datalim")
    _finish(axis)


def _as_rgba(image: PIL.Image.Image, side: int = 400) -> PIL.Image.Image:
    if image.mode.startswith(("I", "F", "La")):  # which Pillow clips or refuses to convert
        gray = to_grayscale(image, background=255)
        image = PIL.Image.fromarray(gray if gray.dtype == np.uint8 else np.round(255 * gray).astype(np.uint8))
    image = image.convert("RGBA")
    image.thumbnail((side, side))
    return image


def _shorten(name: str, length: int = 28) -> str:
    name = printable(name)
    return name if len(name) <= length else f"{name[: length - 11]}...{name[-8:]}"


def _finish(axis: plt.Axes) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=True, color="#d1d5db")


def _fill(axes: Iterable[plt.Axes], images: Iterable[torch.Tensor]) -> None:
    """Show one image per axis, and hide the axes that are left."""
    axes = iter(axes)
    for image, axis in zip(images, axes, strict=False):
        _show(axis, image)
    for axis in axes:
        axis.set_axis_off()


def plot_data(images: torch.Tensor, labels: torch.Tensor, names: list[str], path: Path, seed: int = 0) -> None:
    """Ten random images of each class, and the number of images per class, from `images` of shape
    `(n, height, width)`, uint8, `labels` of shape `(n,)`, and the names of the classes."""
    generator = torch.Generator().manual_seed(seed)
    columns = 10
    with _figure(path, 11, 0.55 * len(names) + 0.4) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(0.55 * columns, 4.2))
        left.suptitle("Digits", fontweight="bold", fontsize=11)
        axes = left.subplots(len(names), columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
        for label, row in enumerate(axes):
            found = (labels == label).nonzero()[:, 0]
            _fill(row, images[found[torch.randperm(len(found), generator=generator)[:columns]]])
        axis = right.subplots()
        counts = labels.bincount(minlength=len(names))
        bars = axis.barh([*map(printable, names)], counts, color=BLUE, height=0.7)
        axis.bar_label(bars, [f"{count:,}" for count in counts.tolist()], padding=4, color=GRAY)
        axis.set(title=f"Class balance of {len(labels):,} images", xticks=[], xlim=(0, counts.max().item() * 1.18))
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(left=False)
        axis.invert_yaxis()


def plot_predictions(images: torch.Tensor, rows: list[dict], path: Path) -> None:
    """Images of shape `(n, height, width)`, uint8 or floats in [0, 1], with their predictions, mistakes in red. Each
    row has `prediction`, `probability`, `digit_score` and, if it is known, `label`. A prediction of `None` is shown as
    "-" or, if there is a score, which is too low then, as "?"."""
    columns = min(len(images), 10)
    lines = -(-len(images) // columns)
    with _figure(path, max(1.05 * columns, 2.2), 1.3 * lines) as figure:
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        _fill(axes, images)
        for row, axis in zip(rows, axes, strict=False):
            if row["prediction"] is None:
                title, reason = ("-", "no digit") if row["digit_score"] is None else ("?", "rejected")
                axis.set_title(title, fontsize=10, pad=3)
                axis.set_xlabel(reason, **SMALL)
                continue
            is_wrong = row.get("label") not in (None, row["prediction"])
            title = f"{row['prediction']}, not {row['label']}" if is_wrong else row["prediction"]
            axis.set_title(printable(title), color=RED if is_wrong else "black", fontsize=10, pad=3)
            axis.set_xlabel(f"{row['probability']:.1%}", **SMALL)
            if is_wrong:
                for spine in axis.spines.values():
                    spine.set(color=RED, linewidth=2)


def plot_attention(
    images: torch.Tensor, attentions: tuple[torch.Tensor, ...], predictions: list[str], path: Path
) -> None:
    """The attention of the CLS token to each patch, per layer and head, over `images` of shape `(n, height, width)`,
    uint8. `attentions` has a tensor of shape `(n, heads, 1 + patches, 1 + patches)` per layer."""
    maps = [(layer, head) for layer in range(len(attentions)) for head in range(attentions[layer].shape[1])]
    height, width = images.shape[1:]
    style = {"cmap": "Reds", "alpha": 0.65, "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    with _figure(path, 1.55 * (1 + len(maps)) + 0.6, 1.62 * len(images) + 0.45) as figure:
        axes = figure.subplots(len(images), 1 + len(maps), squeeze=False)
        for row, (image, line) in enumerate(zip(images, axes, strict=True)):
            _show(line[0], image)
            line[0].set_ylabel(printable(f"predicted {predictions[row]}"), fontsize=9)
            for (layer, head), axis in zip(maps, line[1:], strict=True):
                from_cls = attentions[layer][row, head, 0].float()
                side = round(len(from_cls[1:]) ** 0.5)
                _show(axis, image)
                extent = (-0.5, width - 0.5, height - 0.5, -0.5)
                drawn = axis.imshow(from_cls[1:].reshape(side, side), extent=extent, **style)
                axis.set_xlabel(f"itself {from_cls[0]:.0%}", **SMALL)
                if row == 0:
                    axis.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9.5)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=30, pad=0.01, format="{x:.0%}")
        bar.set_label("attention of the CLS token", fontsize=9)
        bar.outline.set_visible(False)


def plot_training(history: list[dict], path: Path) -> None:
    """Loss, accuracy and learning rate over the epochs of a run, from `log_history` of Trainer. Values that are `None`
    or not finite leave a gap."""

    def series(name: str) -> tuple[np.ndarray, np.ndarray]:
        points = {entry["epoch"]: entry[name] for entry in history if name in entry and "epoch" in entry}
        values = np.array([*points.values()], float)
        return np.array([*points], float), np.where(np.isfinite(values), values, np.nan)

    with _figure(path, 11, 3.2) as figure:
        loss, accuracy, rate = figure.subplots(1, 3)
        loss.plot(*series("loss"), color=GRAY, label="train")
        loss.plot(*series("eval_loss"), color=BLUE, label="validation")
        loss.set(title="Cross-entropy", yscale="log", xlabel="epoch")
        loss.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        loss.yaxis.set_minor_formatter(NullFormatter())
        loss.legend(frameon=False)
        epochs, values = series("eval_accuracy")
        accuracy.plot(epochs, values, color=BLUE)
        if np.isfinite(values).any():
            best = int(np.nanargmax(values))
            accuracy.plot(epochs[best], values[best], "o", color=RED, markersize=5)
            text = f"best {values[best]:.2%}, epoch {epochs[best]:g}"
            accuracy.text(0.97, 0.06, text, transform=accuracy.transAxes, ha="right", color=RED)
            accuracy.set_ylim(max(0, min(1, np.nanquantile(values, 0.1)) - 0.02), np.nanmax(values) + 0.01)
        accuracy.set(title="Validation accuracy", xlabel="epoch")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        rate.plot(*series("learning_rate"), color=BLUE)
        rate.set(title="Learning rate", xlabel="epoch", ylim=(0, None))


def plot_mistakes(
    images: torch.Tensor, labels: torch.Tensor, probabilities: torch.Tensor, names: list[str], path: Path
) -> None:
    """The confusion matrix and the most confident errors, from `images` of shape `(n, height, width)`, uint8, `labels`
    of shape `(n,)`, and `probabilities` of shape `(n, classes)`. `names` are those of the classes, followed by those
    of labels that are no class of the model, which get a row and no column."""
    from sklearn.metrics import confusion_matrix

    confidence, predictions = probabilities.max(1)
    names = [*map(printable, names)]
    confusion = confusion_matrix(labels, predictions, labels=range(len(names)))[:, : probabilities.shape[1]]
    wrong = (predictions != labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True)][:24]
    with _figure(path, 11, 5.2) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(5.2, 5.8))
        axis = left.subplots()
        errors = confusion.copy()
        np.fill_diagonal(errors, 0)
        axis.imshow(errors, cmap="Reds", vmax=max(errors.max() * 1.3, 1))
        for row, column in np.argwhere(confusion):
            color = GRAY if row == column else "black"
            axis.text(column, row, confusion[row, column], ha="center", va="center", fontsize=8, color=color)
        classes = names[: confusion.shape[1]]
        axis.set(title=f"{len(wrong):,} mistakes in {len(labels):,} images", xlabel="predicted", ylabel="label")
        axis.set_xticks(range(len(classes)), classes, rotation=0 if max(map(len, classes)) < 4 else 90)
        axis.set_yticks(range(len(names)), names)
        right.suptitle("Most confident errors: predicted, not the label", fontweight="bold", fontsize=11)
        axes = right.subplots(4, 6).flatten()
        _fill(axes, images[worst])
        for axis, index in zip(axes, worst.tolist(), strict=False):
            axis.set_title(f"{names[predictions[index]]}, not {names[labels[index]]}", fontsize=9, color=RED, pad=3)
            axis.set_xlabel(f"{confidence[index]:.0%}", **SMALL)


def plot_framing(
    names: list[str], pictures: list[PIL.Image.Image], framings: list[Framing], descriptions: list[str], path: Path,
    upright: list[np.ndarray],
) -> None:  # fmt: skip
    """A row per picture: as it was given, the ink, the digit in its bounding box, the frame over its description,
    which is red if there is no digit, and the digit upright, unless `upright` is empty."""
    titles = ["Picture", "Ink", "Digit", "Frame", *(["Upright"] if upright else [])]
    with _figure(path, 2.15 * len(titles), 2.45 * len(names) + 0.3) as figure:
        axes = figure.subplots(len(names), len(titles), squeeze=False)
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        for line, image in zip(axes, upright, strict=False):
            _show_in_square(line[4], image)
        for line, name, picture, found, text in zip(axes, names, pictures, framings, descriptions, strict=True):
            _show_in_square(line[0], picture)
            line[0].set_xlabel(f"{_shorten(name)}\n{picture.width}x{picture.height} pixels", **SMALL)
            for axis, part in zip(line[1:4], (found.ink, found.digit, found.image), strict=True):
                if part is None:
                    axis.set_box_aspect(1)  # keeps its title in line
                    axis.set_axis_off()
                else:
                    _show_in_square(axis, part)
            if found.digit is not None:
                top, bottom, left, right = bounds(found.digit)
                corner = (left - 0.5, top - 0.5)
                line[2].add_patch(plt.Rectangle(corner, right - left, bottom - top, fill=False, color=BLUE, lw=1.2))
            line[3].set_xlabel(text.replace(", ", "\n"), **SMALL | ({"color": RED} if found.problem else {}))


def plot_failures(parts: dict[str, list[tuple[str, PIL.Image.Image, torch.Tensor, str, str]]], path: Path) -> None:
    """Wrong answers in parts with a title each: the name of a picture, itself, its frame of shape `(height, width)`,
    what is wrong, and how sure the model was."""
    columns = 4
    lines = [max(1, -(-len(rows) // columns)) for rows in parts.values()]
    with _figure(path, 2.7 * columns, 1.75 * sum(lines) + 0.4 * len(parts)) as figure:
        subfigures = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=[count + 0.25 for count in lines])
        for subfigure, count, (title, rows) in zip(subfigures[:, 0], lines, parts.items(), strict=True):
            subfigure.suptitle(printable(title), fontweight="bold", fontsize=11)
            axes = subfigure.subplots(count, 2 * columns, squeeze=False).flatten()
            for axis in axes[2 * len(rows) :]:
                axis.set_axis_off()
            for index, (name, picture, frame, text, sureness) in enumerate(rows):
                given, framed = axes[2 * index : 2 * index + 2]
                _show_in_square(given, picture)
                _show(framed, frame)
                given.set_xlabel(_shorten(name, 20), **SMALL)
                framed.set_title(printable(text), color=RED, fontsize=9, pad=3)
                framed.set_xlabel(sureness, **SMALL)
