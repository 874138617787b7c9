"""Figures of a run and its results: training curves, mistakes, calibration. `plot_*` functions write the PNG or SVG
file `path`, with `caption` below the figure."""

import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from .analysis import Calibration, count_warmup, learning_rates
from .style import LIGHT, WIDTH, Style, shorten

MAX_NAME = 16  # characters of a class
MAX_NUMBERED = 40  # classes of a confusion matrix with a number in each cell


def _series(history: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of what a history holds of them. Values that are `None` or not finite are NaN."""
    points = {entry["epoch"]: entry[name] for entry in history if name in entry and "epoch" in entry}
    values = np.array([*points.values()], float)
    return np.array([*points], float), np.where(np.isfinite(values), values, np.nan)


def plot_training(
    history: list[dict], path: Path, caption: str = "", style: Style = LIGHT, run: dict[str, Any] | None = None,
    best_epoch: float | None = None,
) -> None:  # fmt: skip
    """Loss, accuracy and learning rate over the epochs of a run, from `log_history` of Trainer. Values that are `None`
    or not finite leave a gap. `run`, the content of `run.json`, adds the learning rate of each step with the warmup
    enlarged, and the epoch in which augmentation ends. `best_epoch` is that of the checkpoint, as `all_results.json`
    says; by default, as the history says."""
    run = run or {}
    with style.figure(path, WIDTH, 7, caption) as figure:
        loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(1.15, 1, 1))
        loss.plot(*_series(history, "loss"), color=style.orange, label="training images, augmented")
        loss.plot(*_series(history, "eval_loss"), color=style.blue, label="validation images, not augmented")
        if not run.get("augmentation"):
            loss.lines[0].set_label("training images")
            loss.lines[1].set_label("validation images")
        for line in loss.lines:
            line.set_marker("o" if len(line.get_xdata()) < 4 else "")  # of a single point, no line is drawn
        loss.set_title("Cross-entropy", loc="left")
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        loss.yaxis.set_minor_formatter(NullFormatter())
        loss.legend()
        epochs, values = _series(history, "eval_accuracy")
        accuracy.plot(epochs, values, color=style.blue)
        if np.isfinite(values).any():
            selected = _selected_epoch(history, run) if best_epoch is None else best_epoch
            for chosen in np.flatnonzero(abs(epochs - selected) < 0.01):  # results are rounded to 0.01
                accuracy.plot(epochs[chosen], values[chosen], "o", color=style.red, markersize=5, clip_on=False)
                text = f"selected: {values[chosen]:.2%}, epoch {epochs[chosen]:g}"
                box = {"facecolor": style.paper, "edgecolor": "none", "pad": 2}
                accuracy.text(0.97, 0.07, text, transform=accuracy.transAxes, ha="right", color=style.red, bbox=box)
            low = np.nanquantile(values, 0.1) if len(values) > 20 else np.nanmin(values)
            accuracy.set_ylim(max(0, min(1, low) - 0.02), np.nanmax(values) + 0.01)
        accuracy.set_title("Validation accuracy", loc="left")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        logged = _series(history, "learning_rate")
        rate.plot(*logged, color=style.blue)
        rate.set_title("Learning rate", loc="left")
        rate.set(xlabel="epoch", ylim=(0, None))
        _mark_augmentation((loss, accuracy), history, run, style)
        _show_warmup(rate, history, run, style)


def _selected_epoch(history: list[dict], run: dict[str, Any]) -> float:
    """The epoch whose weights are those of the checkpoint: the first with the best value of the run's metric, or the
    last one."""
    training = run.get("training", {})
    if training.get("load_best_model_at_end") is False:
        return _last_epoch(history)
    history = [entry for entry in history if entry.get("epoch")] or history  # not the evaluation before the first step
    epochs, values = _series(history, f"eval_{training.get('metric_for_best_model', 'accuracy')}")
    if not np.isfinite(values).any():
        epochs, values = _series(history, "eval_accuracy")
    sign = -1 if training.get("greater_is_better") is False else 1
    return float(epochs[np.nanargmax(sign * values)])


def _last_epoch(history: list[dict]) -> float:
    """The number of epochs that a history records; 0 if there is none."""
    epochs = _series(history, "epoch")[0]
    return max(epochs[np.isfinite(epochs)], default=0)


def _mark_augmentation(axes: tuple[plt.Axes, ...], history: list[dict], run: dict[str, Any], style: Style) -> None:
    """Say why the training loss drops where augmentation ends."""
    until, last = run.get("augmentation", {}).get("augment_until", 1), _last_epoch(history)
    if not isinstance(until, float) or not 0 < until < 1 or not last:
        return
    for axis in axes:
        axis.axvline(until * last, color=style.muted, lw=1, ls=(0, (4, 3)), zorder=1)
    text = f"after epoch {until * last:g}, training images\nare not augmented: they are\neasier, their loss is lower"
    box = {"facecolor": style.paper, "edgecolor": "none", "alpha": 0.8, "pad": 1}
    place = {"ha": "right", "va": "center", "color": style.muted, "fontsize": 9.5, "bbox": box}
    _, values = _series(history, "loss")
    bottom, height = np.log(axes[0].get_ylim()[0]), np.diff(np.log(axes[0].get_ylim())).item()
    level = (np.log(np.nanmin(values, initial=np.exp(bottom + height))) - bottom) / height  # of the loss at the end
    middle = level - 0.22 if level > 0.45 else 0.52
    axes[0].text((until - 0.02) * last, middle, text, transform=axes[0].get_xaxis_transform(), **place)


def _show_warmup(axis: plt.Axes, history: list[dict], run: dict[str, Any], style: Style) -> None:
    """Mark the warmup, and enlarge it if it is a few steps of many."""
    training = run.get("training", {})
    steps = max((entry["step"] for entry in history if isinstance(entry.get("step"), int)), default=0)
    last = _last_epoch(history)
    rates = learning_rates(training, steps) if last else None
    warmup = count_warmup(training, steps) if rates else 0
    if not 0 < warmup <= steps == len(rates):
        return
    epochs = np.arange(1, 1 + steps) * last / steps
    axis.lines[0].set_data(epochs, rates)
    axis.set(ylim=(0, 1.05 * max(rates)), xlim=(-0.05 * last, 1.05 * last))
    axis.axvspan(0, warmup * last / steps, color=style.orange, alpha=0.35, lw=0)
    title = f"warmup: {warmup:,} step{'s' if warmup > 1 else ''}"
    if warmup > steps / 20:
        axis.text((warmup / steps + 0.02) * last, 0.05 * max(rates), title, fontsize=9.5)
        return
    inset = axis.inset_axes((0.6, 0.42, 0.38, 0.5))
    shown = min(4 * warmup, steps)
    inset.plot(range(1, 1 + shown), rates[:shown], color=style.blue)
    inset.axvspan(0, warmup, color=style.orange, alpha=0.35, lw=0)
    inset.set(ylim=(0, None), xlim=(0, shown), yticks=[], xlabel="step")
    inset.set_title(title, fontsize=9.5, fontweight="normal", pad=3)
    inset.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    inset.tick_params(labelsize=9)


def plot_mistakes(
    images: torch.Tensor, labels: torch.Tensor, probabilities: torch.Tensor, names: list[str], path: Path,
    caption: str = "", style: Style = LIGHT, without_digit: int = 0,
) -> None:  # fmt: skip
    """The confusion matrix in percent of each label, and the most confident errors, from `images` of shape
    `(n, height, width)`, uint8, `labels` of shape `(n,)`, and `probabilities` of shape `(n, classes)`. `names` are
    those of the classes, followed by those of labels that are no class of the model, which get a row and no column.
    Further images, `without_digit`, count as wrong. Beyond [`MAX_NUMBERED`] classes, cells are small, without their
    numbers."""
    from sklearn.metrics import confusion_matrix

    confidence, predictions = probabilities.max(1)
    names = [shorten(name, MAX_NAME) for name in names]
    confusion = confusion_matrix(labels, predictions, labels=range(len(names)))[:, : probabilities.shape[1]]
    totals = labels.bincount(minlength=len(names)).numpy()
    rates = confusion / np.maximum(totals, 1)[:, None]
    wrong = (predictions != labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True)][:18]
    columns = 6
    lines = max(1, math.ceil(len(worst) / columns))
    is_numbered = len(names) <= MAX_NUMBERED
    cell_width, cell_height = (0.42, 0.38) if is_numbered else (0.1, 0.09)  # inches
    width = max(WIDTH, cell_width * len(names) + 1)
    heights = (cell_height * len(names) + 1.05, 1.35 * lines + 0.3)
    with style.figure(path, width, sum(heights), caption) as figure:
        top, below = figure.subfigures(2, 1, height_ratios=heights)
        axis = top.subplots()
        errors = rates.copy()
        np.fill_diagonal(errors, 0)
        color = axis.imshow(errors, cmap=style.sequential, vmax=max(errors.max() * 1.3, 1e-3), aspect="auto")
        for row, column in np.argwhere(confusion) if is_numbered else ():
            is_right = row == column
            options = {"color": style.muted} if is_right else {"color": style.on(color.to_rgba(errors[row, column]))}
            text = f"{100 * rates[row, column]:.1f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=9, **options)
        classes = names[: confusion.shape[1]]
        count, total = len(wrong) + without_digit, len(labels) + without_digit
        title = f"{count / total:.2%} wrong: {count:,} of {total:,} images"
        axis.set_title(title + (f", {without_digit:,} of them without a digit" if without_digit else ""))
        axis.set(xlabel="predicted, % of the label's images", ylabel="label (images)")
        axis.set_xticks(range(len(classes)), classes, rotation=0 if max(map(len, classes)) < 4 else 90)
        axis.set_yticks(range(len(names)), [f"{name} ({n:,})" for name, n in zip(names, totals.tolist(), strict=True)])
        axis.tick_params(length=0, **({} if is_numbered else {"labelsize": 6}))
        below.suptitle("Most confident errors: predicted, not the label")
        axes = below.subplots(lines, columns, squeeze=False).flatten()
        style.fill(axes, images[worst])
        for axis, index in zip(axes, worst.tolist(), strict=False):
            title = f"{names[predictions[index]]}, not {names[labels[index]]}"
            is_long = len(title) > 12
            title = title.replace(", not ", ",\nnot ") if is_long else title
            axis.set_title(title, fontsize=7.5 if is_long else 9.5, fontweight="normal", color=style.red, pad=3)
            axis.set_xlabel(f"{confidence[index]:.0%}", **style.small)


def plot_calibration(found: Calibration, path: Path, caption: str = "", style: Style = LIGHT) -> None:
    """The reliability diagram: accuracy and mean probability of the images in each bin, and how many they are."""
    bins, has_any = len(found.counts), found.counts.numpy() > 0
    centers, counts = ((np.arange(bins) + 0.5) / bins)[has_any], found.counts.numpy()[has_any]
    with style.figure(path, WIDTH, 4.8, caption) as figure:
        diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        diagram.plot((0, 1), (0, 1), color=style.muted, lw=1, ls=(0, (4, 3)), label="perfect calibration")
        diagram.bar(centers, found.accuracy[has_any], 0.92 / bins, color=style.blue, label="accuracy")
        options = {"color": style.orange, "ls": "", "marker": "_", "markersize": 15, "markeredgewidth": 3}
        diagram.plot(centers, found.confidence[has_any], label="mean probability", **options)
        diagram.set(xlim=(0, 1), ylim=(0, 1.03))
        diagram.set_title(f"Expected calibration error: {found.error:.4f}")
        diagram.legend(loc="upper left")
        diagram.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        histogram.bar(centers, counts, 0.92 / bins, color=style.muted)
        for center, count in zip(centers, counts.tolist(), strict=True):
            place = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            histogram.annotate(f"{count:,}", (center, count), annotation_clip=False, **place)
        histogram.set_yscale("log")
        histogram.set(ylim=(0.5, counts.max() * 8), xlabel="probability of the predicted class")
        histogram.yaxis.set_major_locator(NullLocator())
        histogram.yaxis.set_minor_locator(NullLocator())
        histogram.set_ylabel(f"{counts.sum():,} images")
        histogram.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
