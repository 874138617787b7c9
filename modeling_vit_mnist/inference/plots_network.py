"""Figures of a network: its parameters, patches, filters, positions and attention. `plot_*` functions write the PNG or
SVG file `path`, with `caption` below the figure."""

import math
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.ticker import FixedLocator

from ..configuration_vit_mnist import VitMnistConfig
from ..modeling_vit_mnist import VitMnistForImageClassification
from .architecture import parameter_budget
from .style import LIGHT, WIDTH, Style, shorten

MAX_FILTERS = 8  # shown
MAX_COLUMNS = 6  # of attention beside an image


def _as_grid(values: torch.Tensor) -> torch.Tensor:
    """One value per patch, of shape `(patches,)`, at its place in the image."""
    side = round(len(values) ** 0.5)
    return values.reshape(side, side)


def _draw_grid(axis: plt.Axes, size: int, patch: int, color: str) -> None:
    for line in range(patch, size, patch):
        axis.axhline(line - 0.5, color=color, lw=1)
        axis.axvline(line - 0.5, color=color, lw=1)


def plot_patches(
    image: torch.Tensor, tokens: torch.Tensor, patch_size: int, path: Path, caption: str = "", style: Style = LIGHT
) -> None:
    """An image of shape `(side, side)`, uint8, its patches in reading order, and the tokens of shape
    `(patches, hidden_size)` that the patch embedding makes of them."""
    side = len(image)
    count = side // patch_size
    with style.figure(path, WIDTH, 3.1, caption) as figure:
        left, middle, right = figure.subfigures(1, 3, width_ratios=(1.75, 1.9, 1.85))
        axis = left.subplots()
        style.show(axis, image)
        _draw_grid(axis, side, patch_size, style.orange)
        axis.set_title(f"image\n{side}x{side} pixels")
        middle.suptitle(f"{count * count} patches\nof {patch_size}x{patch_size} pixels")
        axes = middle.subplots(count, count, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04})
        for number, axis in enumerate(axes.flatten()):
            row, column = divmod(number, count)
            top, begin = row * patch_size, column * patch_size
            style.show(axis, image[top : top + patch_size, begin : begin + patch_size])
            if count <= 7:
                axis.set_xlabel(str(number + 1), color=style.muted, fontsize=8, labelpad=1)
        axis = right.subplots()
        limit = float(tokens.abs().max())
        height, width = tokens.shape
        options = {"cmap": style.diverging, "vmin": -limit, "vmax": limit, "aspect": "auto"}
        drawn = axis.imshow(tokens, extent=(0.5, width + 0.5, height + 0.5, 0.5), **options)
        axis.set_title(f"{len(tokens)} tokens\nof {tokens.shape[1]} numbers")
        axis.set(xlabel="filter", ylabel="patch")
        for sides, count in ((axis.xaxis, width), (axis.yaxis, height)):
            sides.set_major_locator(FixedLocator(range(1, count + 1, 1 if count <= 16 else math.ceil(count / 4))))
        axis.tick_params(length=0, labelsize=8.5 if width <= 8 else 7)
        right.colorbar(drawn, ax=axis, fraction=0.08, pad=0.03).outline.set_visible(False)


def plot_filters(
    model: VitMnistForImageClassification, images: torch.Tensor, responses: torch.Tensor, path: Path,
    caption: str = "", style: Style = LIGHT,
) -> None:  # fmt: skip
    """The filters of the patch embedding, the first [`MAX_FILTERS`] of a larger network, and below them how each
    responds to each patch of `images` of shape `(n, side, side)`: `responses` of shape `(n, patches, hidden_size)`."""
    weights = model.vit.patch_embed.proj.weight.detach().float().cpu()
    filters = weights.sum(1)[:MAX_FILTERS]  # (filters, patch, patch): a gray pixel is the same in all channels
    responses = responses[..., : len(filters)]
    columns = 1 + len(filters)
    size = WIDTH / (columns + 0.9)
    with style.figure(path, WIDTH, (size + 0.08) * (1 + len(images)) + 0.45, caption) as figure:
        grid = {"wspace": 0.06, "hspace": 0.06}
        axes = figure.subplots(1 + len(images), columns, squeeze=False, gridspec_kw=grid)
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.5, 0.5, "filter", ha="center", va="center", transform=axes[0, 0].transAxes)
        limits = [float(values.abs().max()) for values in (filters, responses)]
        for number, axis in enumerate(axes[0, 1:]):
            drawn = axis.imshow(filters[number], cmap=style.diverging, vmin=-limits[0], vmax=limits[0])
            axis.set_title(str(number + 1))
            style.finish(axis)
        bars = [figure.colorbar(drawn, ax=axes[0], fraction=0.04, pad=0.02, shrink=0.9)]
        for image, line, row in zip(images, axes[1:], responses, strict=True):
            style.show(line[0], image)
            _draw_grid(line[0], image.shape[1], model.config.patch_size, style.line)
            for axis, values in zip(line[1:], row.T, strict=True):
                drawn = axis.imshow(_as_grid(values), cmap=style.diverging, vmin=-limits[1], vmax=limits[1])
                style.finish(axis)
        bars.append(figure.colorbar(drawn, ax=axes[1:], fraction=0.04, pad=0.02, aspect=30, label="response"))
        for bar in bars:
            bar.outline.set_visible(False)


def plot_parameters(config: VitMnistConfig, path: Path, caption: str = "", style: Style = LIGHT) -> None:
    """Where the parameters of a network are: a bar for each part, with its count and share. The bar of a block is
    divided into attention, MLP and LayerNorms."""
    budget = parameter_budget(config)
    total = sum(count for counts in budget.values() for count in counts.values())
    colors = {"attention": style.blue, "MLP": style.orange, "LayerNorms": style.green, "": style.muted}
    with style.figure(path, WIDTH, 0.33 * len(budget) + 0.75, caption) as figure:
        axis = figure.subplots()
        for row, counts in enumerate(budget.values()):
            left = 0
            for kind in ("attention", "MLP", "LayerNorms", ""):
                if kind in counts:
                    axis.barh(row, counts[kind], left=left, color=colors[kind], height=0.72)
                    left += counts[kind]
            axis.text(left, row, f" {left:,} ({left / total:.1%})", va="center", fontsize=9.5)
        largest = max(sum(counts.values()) for counts in budget.values())
        axis.set_yticks(range(len(budget)), budget)
        axis.set(xlim=(0, largest * 1.32), ylim=(len(budget) - 0.5, -0.5), xticks=[])
        axis.set_title(f"{total:,} parameters", loc="left")
        axis.tick_params(left=False)
        axis.spines["bottom"].set_visible(False)
        handles = [plt.Rectangle((0, 0), 1, 1, color=colors[kind], label=kind) for kind in colors if kind]
        axis.legend(handles=handles, loc="lower right")


def plot_positions(similarity: torch.Tensor, path: Path, caption: str = "", style: Style = LIGHT) -> None:
    """How similar the position embeddings are: a map per patch, at its place, of its cosines with all patches.
    `similarity` has shape `(1 + patches, 1 + patches)`, CLS first, which has the map on the right."""
    side = round((len(similarity) - 1) ** 0.5)
    options = {"cmap": style.diverging, "norm": Normalize(-1, 1), "interpolation": "nearest"}
    with style.figure(path, WIDTH, 3.75, caption) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(3.9, 1.6))
        left.suptitle("position of each patch")
        axes = left.subplots(side, side, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
        for number, axis in enumerate(axes.flatten()):
            drawn = axis.imshow(_as_grid(similarity[1 + number, 1:]), **options)
            row, column = divmod(number, side)
            axis.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color=style.ink, lw=1.4))
            style.finish(axis)
        right.suptitle("position of CLS")
        axis = right.subplots()
        axis.imshow(_as_grid(similarity[0, 1:]), **options)
        style.finish(axis)
        axis.set_anchor("N")
        bar = right.colorbar(
            drawn, ax=axis, location="bottom", fraction=0.1, pad=0.08, ticks=(-1, 0, 1), label="cosine"
        )
        bar.outline.set_visible(False)


def _show_attention(
    axis: plt.Axes, image: torch.Tensor, from_cls: torch.Tensor, norm: Normalize, style: Style
) -> None:
    """Attention to each patch as a color, under the outline of the digit, and below it, the share of the CLS token
    itself. `from_cls` has shape `(1 + patches,)` and sums to 1."""
    values = _as_grid(from_cls[1:])
    height, width = image.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(values, extent=extent, cmap=style.sequential, norm=norm, interpolation="nearest")
    pixels = image.float() * (1 if image.is_floating_point() else 1 / 255)
    if pixels.max() > 0.5:
        axis.contour(pixels, levels=[0.5], colors=[style.red], linewidths=0.9)
    style.finish(axis)
    cell = axis.inset_axes((0, -0.24, 1, 0.2))
    color = style.sequential(norm(from_cls[0].item()))
    cell.set_facecolor(color)
    cell.text(
        0.5, 0.47, f"CLS {from_cls[0]:.0%}", transform=cell.transAxes, ha="center", va="center", color=style.on(color),
        fontsize=8.5,
    )  # fmt: skip
    style.finish(cell)


def _plot_maps(
    images: torch.Tensor, maps: dict[str, dict[str, torch.Tensor]], predictions: list[str], path: Path, caption: str,
    style: Style,
) -> None:  # fmt: skip
    """Maps of attention by the titles of their rows and columns, for each image, with its prediction, all on one
    scale. Each map has shape `(n, 1 + patches)`."""
    limit = max(0.1, max(float(values.max()) for row in maps.values() for values in row.values()))
    norm = PowerNorm(0.5, 0, limit)
    columns = 1 + len(next(iter(maps.values())))
    size = max(0.8, (WIDTH - 0.7) / columns)
    lines = len(images) * len(maps)
    with style.figure(path, size * columns + 0.7, (size * 1.3 + 0.05) * lines + 0.45, caption) as figure:
        axes = iter(figure.subplots(lines, columns, squeeze=False))
        for number, image in enumerate(images):
            for row, (name, titled) in enumerate(maps.items()):
                first, *others = next(axes)
                if row == 0:
                    style.show(first, image)
                    answer = shorten(predictions[number], 14)
                    first.set_xlabel(f"read as{' ' if len(answer) < 6 else chr(10)}{answer}", **style.small)
                else:
                    first.set_axis_off()
                others[0].set_ylabel(name)
                for (title, values), axis in zip(titled.items(), others, strict=True):
                    _show_attention(axis, image, values[number].float(), norm, style)
                    if number == row == 0:
                        axis.set_title(title)
        colors = matplotlib.cm.ScalarMappable(norm, style.sequential)
        ticks = [tick for tick in (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.7, 1) if tick <= limit]
        bar = figure.colorbar(
            colors, ax=figure.axes, fraction=0.05, aspect=30, pad=0.02, format="{x:.0%}", ticks=ticks
        )
        bar.outline.set_visible(False)


def plot_attention(
    images: torch.Tensor, attentions: tuple[torch.Tensor, ...], predictions: list[str], path: Path,
    caption: str = "", style: Style = LIGHT,
) -> None:  # fmt: skip
    """The attention of the CLS token, per layer and head, over `images` of shape `(n, height, width)`, uint8.
    `attentions` has a tensor of shape `(n, heads, 1 + patches, 1 + patches)` per layer. The scale of colors is the
    square root, on which heads that spread their attention can be read beside those that do not. Layers that do not
    fit beside each other get a row each."""
    layers = {
        f"layer {layer}": {f"head {head + 1}": attention[:, head, 0] for head in range(attention.shape[1])}
        for layer, attention in enumerate(attentions, 1)
    }
    if sum(map(len, layers.values())) <= MAX_COLUMNS:
        row = {f"{layer}\n{head}": values for layer, heads in layers.items() for head, values in heads.items()}
        layers = {"": row}
    _plot_maps(images, layers, predictions, path, caption, style)


def plot_rollout(
    images: torch.Tensor, attentions: tuple[torch.Tensor, ...], rollout: torch.Tensor, predictions: list[str],
    path: Path, caption: str = "", style: Style = LIGHT,
) -> None:  # fmt: skip
    """The attention of the CLS token in each layer, the mean of its heads, beside its rollout of shape
    `(n, 1 + patches, 1 + patches)`, on one scale. `images` and `attentions` as in [`plot_attention`]."""
    maps = {f"layer {layer}": attention.mean(1)[:, 0] for layer, attention in enumerate(attentions, 1)}
    _plot_maps(images, {"": maps | {"rollout": rollout[:, 0]}}, predictions, path, caption, style)
