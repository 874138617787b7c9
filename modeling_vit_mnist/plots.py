"""
Figures and tables of the data, the network, its attention, its training and its mistakes.

Every `plot_*` function draws one PNG file; the figures are sized to be read where a README shows them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from .files import replacing
from .modeling_vit_mnist import VitMnistForImageClassification


BLUE, RED, GREY = "#2563a8", "#c8372d", "#6b7280"
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "savefig.dpi": 140,
}


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[plt.Figure]:
    """A figure that is saved to `path`, without a screen, whatever backend the session uses."""
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as staging:
            figure.savefig(staging)


def _show(axis: plt.Axes, frame: torch.Tensor) -> None:
    axis.imshow(frame, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(visible=True, color="#d1d5db")


def plot_data(images: torch.Tensor, labels: torch.Tensor, names: list[str], path: Path, seed: int = 0) -> None:
    """
    Ten random images of each class, and how many there are.

    Args:
        images (`torch.Tensor` of shape `(n, height, width)`, uint8), labels (`torch.Tensor` of shape `(n,)`): A split.
        names: The classes' names.
        path: The PNG file to write.
        seed: Of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    columns = 10
    with _figure(path, 11, 0.55 * len(names) + 0.4) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(0.55 * columns, 4.2))
        left.suptitle("Digits", fontweight="bold", fontsize=11)
        axes = left.subplots(len(names), columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
        for label, row in enumerate(axes):
            found = (labels == label).nonzero()[:, 0]
            chosen = found[torch.randperm(len(found), generator=generator)[:columns]]
            for axis in row:
                axis.set_axis_off()
            for axis, index in zip(row, chosen, strict=False):
                axis.set_axis_on()
                _show(axis, images[index])
        axis = right.subplots()
        counts = labels.bincount(minlength=len(names))
        bars = axis.barh(names, counts, color=BLUE, height=0.7)
        axis.bar_label(bars, [f"{count:,}" for count in counts.tolist()], padding=4, color=GREY)
        axis.set(title=f"Class balance of {len(labels):,} images", xticks=[], xlim=(0, counts.max().item() * 1.18))
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(left=False)
        axis.invert_yaxis()


def plot_predictions(
    images: torch.Tensor,
    predictions: list[str],
    labels: list[str | None],
    probabilities: list[float],
    path: Path,
) -> None:
    """
    Images under their predictions, mistakes in red with the right label.

    Args:
        images (`torch.Tensor` of shape `(n, height, width)`): Frames, uint8 or floats in [0, 1].
        predictions, labels, probabilities: One per image; the label is `None` where it is not known.
        path: The PNG file to write.
    """
    count = len(images)
    columns = min(count, 10)
    rows = -(-count // columns)
    with _figure(path, max(1.05 * columns, 2.2), 1.3 * rows) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis in axes:
            axis.set_axis_off()
        for index, axis in zip(range(count), axes, strict=False):
            axis.set_axis_on()
            frame = images[index]
            _show(axis, frame * 255 if frame.is_floating_point() else frame)
            is_wrong = labels[index] not in (None, predictions[index])
            title = f"{predictions[index]}, not {labels[index]}" if is_wrong else predictions[index]
            axis.set_title(title, color=RED if is_wrong else "black", fontsize=10, pad=3)
            axis.set_xlabel(f"{probabilities[index]:.1%}", color=GREY, fontsize=8, labelpad=2)
            if is_wrong:
                for spine in axis.spines.values():
                    spine.set(color=RED, linewidth=2)


def plot_attention(
    images: torch.Tensor, attentions: tuple[torch.Tensor, ...], predictions: list[str], path: Path
) -> None:
    """
    What the CLS token looks at: its attention to each patch, per layer and head, over the image.

    Args:
        images (`torch.Tensor` of shape `(n, height, width)`, uint8): Frames.
        attentions: Per layer, a `torch.Tensor` of shape `(n, heads, 1 + patches, 1 + patches)`: probabilities.
        predictions: One per image.
        path: The PNG file to write.
    """
    maps = [(layer, head) for layer in range(len(attentions)) for head in range(attentions[layer].shape[1])]
    height, width = images.shape[1:]
    with _figure(path, 1.55 * (1 + len(maps)) + 0.6, 1.62 * len(images) + 0.45) as figure:
        axes = figure.subplots(len(images), 1 + len(maps), squeeze=False)
        for row, (frame, line) in enumerate(zip(images, axes, strict=True)):
            _show(line[0], frame)
            line[0].set_ylabel(f"predicted {predictions[row]}", fontsize=9)
            for (layer, head), axis in zip(maps, line[1:], strict=True):
                from_cls = attentions[layer][row, head, 0].float()
                side = round(len(from_cls[1:]) ** 0.5)
                _show(axis, frame)
                drawn = axis.imshow(
                    from_cls[1:].reshape(side, side), cmap="Reds", alpha=0.65, vmin=0, vmax=1,
                    extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest",
                )  # fmt: skip
                axis.set_xlabel(f"itself {from_cls[0]:.0%}", color=GREY, fontsize=8, labelpad=2)
                if row == 0:
                    axis.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9.5)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, aspect=30, pad=0.01, format="{x:.0%}")
        bar.set_label("attention of the CLS token", fontsize=9)
        bar.outline.set_visible(False)


def plot_training(history: list[dict], path: Path) -> None:
    """
    Loss, accuracy and learning rate over the epochs of a run.

    Args:
        history: Trainer's `log_history`.
        path: The PNG file to write.
    """

    def series(name: str) -> tuple[list[float], list[float]]:
        points = {entry["epoch"]: entry[name] for entry in history if name in entry and "epoch" in entry}
        return list(points), list(points.values())

    with _figure(path, 11, 3.2) as figure:
        loss, accuracy, rate = figure.subplots(1, 3)
        loss.plot(*series("loss"), color=GREY, label="train")
        loss.plot(*series("eval_loss"), color=BLUE, label="validation")
        loss.set(title="Cross-entropy", yscale="log", xlabel="epoch")
        loss.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        loss.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        loss.legend(frameon=False)
        epochs, values = series("eval_accuracy")
        accuracy.plot(epochs, values, color=BLUE)
        if values:
            best = int(np.argmax(values))
            accuracy.plot(epochs[best], values[best], "o", color=RED, markersize=5)
            accuracy.text(
                0.97, 0.06, f"best {values[best]:.2%}, epoch {epochs[best]:g}", transform=accuracy.transAxes,
                ha="right", color=RED,
            )  # fmt: skip
            accuracy.set_ylim(max(0, min(1, np.quantile(values, 0.1)) - 0.02), max(values) + 0.01)
        accuracy.set(title="Validation accuracy", xlabel="epoch")
        accuracy.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        rate.plot(*series("learning_rate"), color=BLUE)
        rate.set(title="Learning rate", xlabel="epoch", ylim=(0, None))


def plot_mistakes(
    images: torch.Tensor, labels: torch.Tensor, probabilities: torch.Tensor, names: list[str], path: Path
) -> None:
    """
    The confusion matrix, and the mistakes the model was surest of.

    Args:
        images (`torch.Tensor` of shape `(n, height, width)`, uint8), labels (`torch.Tensor` of shape `(n,)`): A split.
        probabilities (`torch.Tensor` of shape `(n, classes)`): Predictions.
        names: The classes' names.
        path: The PNG file to write.
    """
    from sklearn.metrics import confusion_matrix

    confidence, predictions = probabilities.max(1)
    confusion = confusion_matrix(labels, predictions, labels=range(len(names)))
    wrong = (predictions != labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True)][:24]
    with _figure(path, 11, 5.2) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(5.2, 5.8))
        axis = left.subplots()
        errors = confusion.copy()
        np.fill_diagonal(errors, 0)
        axis.imshow(errors, cmap="Reds", vmax=max(errors.max() * 1.3, 1))
        for row, column in np.argwhere(confusion):
            on_diagonal = row == column
            axis.text(
                column, row, confusion[row, column], ha="center", va="center", fontsize=8,
                color=GREY if on_diagonal else "black",
            )  # fmt: skip
        ticks = range(len(names))
        axis.set(title=f"{len(wrong):,} mistakes in {len(labels):,} images", xlabel="predicted", ylabel="label")
        axis.set_xticks(ticks, names, rotation=0 if max(map(len, names)) < 4 else 90)
        axis.set_yticks(ticks, names)
        right.suptitle("Surest mistakes: predicted, not the label", fontweight="bold", fontsize=11)
        axes = right.subplots(4, 6).flatten()
        for axis in axes:
            axis.set_axis_off()
        for axis, index in zip(axes, worst.tolist(), strict=False):
            axis.set_axis_on()
            _show(axis, images[index])
            axis.set_title(f"{names[predictions[index]]}, not {names[labels[index]]}", fontsize=9, color=RED, pad=3)
            axis.set_xlabel(f"{confidence[index]:.0%}", fontsize=8, color=GREY, labelpad=2)


# What each parameter's sizes are, by the end of its name.
_SIZES = {
    "cls_token": "1 x 1 x hidden_size",
    "pos_embed": "1 x (1 + num_patches) x hidden_size",
    "patch_embed.proj.weight": "hidden_size x num_channels x patch_size x patch_size",
    "patch_embed.proj.bias": "hidden_size",
    "norm1.weight": "hidden_size",
    "norm1.bias": "hidden_size",
    "attn.qkv.weight": "(q, k, v) 3 * hidden_size x hidden_size",
    "attn.qkv.bias": "(q, k, v) 3 * hidden_size",
    "attn.proj.weight": "hidden_size x hidden_size",
    "attn.proj.bias": "hidden_size",
    "norm2.weight": "hidden_size",
    "norm2.bias": "hidden_size",
    "mlp.fc1.weight": "intermediate_size x hidden_size",
    "mlp.fc1.bias": "intermediate_size",
    "mlp.fc2.weight": "hidden_size x intermediate_size",
    "mlp.fc2.bias": "hidden_size",
    "vit.norm.weight": "hidden_size",
    "vit.norm.bias": "hidden_size",
    "head.weight": "num_labels x hidden_size",
    "head.bias": "num_labels",
}


def parameter_table(model: VitMnistForImageClassification) -> str:
    """Every parameter of a classifier: name, shape, count and what its sizes are; then the total."""
    rows = [("parameter", "shape", "count", "where the count comes from")]
    for name, parameter in model.named_parameters():
        meaning = next(meaning for end, meaning in _SIZES.items() if name.endswith(end))
        rows.append((name, " x ".join(map(str, parameter.shape)), f"{parameter.numel():,}", meaning))
    rows.append(("total", "", f"{model.num_parameters():,}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{n:<{widths[0]}}  {s:<{widths[1]}}  {c:>{widths[2]}}  {m}".rstrip() for n, s, c, m in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


@torch.no_grad()
def stage_shapes(
    model: VitMnistForImageClassification, pixel_values: torch.Tensor
) -> list[tuple[str, tuple[int, ...]]]:
    """The shape after every stage of a forward pass, in order, as its modules were passed."""
    stages = [("pixel_values", tuple(pixel_values.shape))]
    meanings = {"patch_embed": "patches, projected", "pos_drop": "with CLS token and positions"}

    def hook(name: str):
        def record(module: nn.Module, inputs, output):
            tensor = output[0] if isinstance(output, tuple) else output
            label = name.removeprefix("vit.")
            stages.append((f"{label} ({meanings[label]})" if label in meanings else label, tuple(tensor.shape)))

        return record

    shown = ("patch_embed", "pos_drop", "norm1", "qkv", "attn", "norm2", "fc1", "mlp", "norm", "head")
    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in shown or name.rpartition(".")[2].isdigit()
    ]
    try:
        model(pixel_values, output_hidden_states=True)  # or the last block would show its CLS token alone
    finally:
        for handle in handles:
            handle.remove()
    return stages
