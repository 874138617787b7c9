"""One style for all figures, light and dark. The colors are those of Okabe and Ito, which color-blind people can tell
apart (https://jfly.uni-koeln.de/color/).

Figures are about 5.5 inches wide, with text of about 9 points, which can be read where they are 400 pixels wide."""

import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import torch
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from ..cli.errors import printable
from ..cli.files import replacing
from ..grayscale_vit_mnist import to_grayscale

WIDTH = 5.5  # inches
# Without dates, versions and random names, the same figure is the same file.
METADATA: dict[str, dict] = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}


def _colors(*colors: str) -> Colormap:
    return LinearSegmentedColormap.from_list("", colors)


@dataclass(frozen=True)
class Style:
    """Colors of a figure: background and text, four colors of marks, and maps of zero to much (`sequential`), of
    negative to positive (`diverging`) and of black to white pixels (`pixels`)."""

    paper: str
    ink: str
    muted: str
    line: str
    blue: str
    red: str
    green: str
    orange: str
    sequential: Colormap
    diverging: Colormap
    pixels: Colormap

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of matplotlib."""
        text = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
        return dict.fromkeys(text, self.ink) | {
            "font.size": 10, "font.family": "DejaVu Sans", "text.parse_math": False,
            "figure.facecolor": self.paper, "axes.facecolor": self.paper, "savefig.facecolor": self.paper,
            "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": self.muted,
            "xtick.color": self.muted, "ytick.color": self.muted, "legend.frameon": False,
            "axes.titlesize": 10.5, "axes.titleweight": "bold", "figure.titlesize": 10.5, "figure.titleweight": "bold",
            "legend.fontsize": 9.5, "savefig.dpi": 190, "svg.hashsalt": "vit-mnist",
        }  # fmt: skip

    @property
    def small(self) -> dict[str, Any]:
        """Labels below an image."""
        return {"color": self.muted, "fontsize": 9, "labelpad": 2}

    @contextmanager
    def figure(self, path: Path, width: float, height: float, caption: str = "") -> Iterator[Any]:
        """A figure of that size in inches, over a caption, that is saved to `path`, as PNG or SVG by its suffix. It
        needs no screen, whatever the backend."""
        lines = textwrap.wrap(printable(caption), max(24, round(width * 15)))
        foot = 0.16 * len(lines) + 0.06
        with matplotlib.rc_context(self.parameters):
            whole = Figure(figsize=(width, height + foot), layout="constrained")
            body, below = whole.subfigures(2, 1, squeeze=False, height_ratios=(height, foot))[:, 0]
            below.text(0.01, 1, "\n".join(lines), color=self.muted, fontsize=8.5, va="top", linespacing=1.15)
            yield body
            with replacing(path) as staging:
                whole.savefig(staging, metadata=METADATA.get(path.suffix))

    def show(self, axis: plt.Axes, image: torch.Tensor) -> None:
        """Show grayscale pixels of shape `(height, width)`, uint8 or floats in [0, 1], ink in the color of text."""
        pixels = image * 255 if image.is_floating_point() else image
        axis.imshow(pixels, cmap=self.pixels, vmin=0, vmax=255, interpolation="nearest")
        self.finish(axis)

    def show_in_square(self, axis: plt.Axes, image: PIL.Image.Image | np.ndarray) -> None:
        """Show a picture of any shape as people see it, or an array of any unit with its greatest value as ink. Large
        ones are antialiased."""
        if isinstance(image, np.ndarray):
            axis.imshow(image, cmap=self.pixels, vmin=0, vmax=max(float(image.max()), 1))
        else:
            axis.imshow(_as_rgba(image))
        axis.set_box_aspect(1)
        axis.set_aspect("equal", adjustable="datalim")
        self.finish(axis)

    def finish(self, axis: plt.Axes, color: str | None = None) -> None:
        """Leave only a thin frame around an image, or a thick one in `color`."""
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(visible=True, color=color or self.line, linewidth=2 if color else 0.8)

    def fill(self, axes: Iterable[plt.Axes], images: Iterable[torch.Tensor]) -> None:
        """Show one image per axis, and hide the axes that are left."""
        axes = iter(axes)
        for image, axis in zip(images, axes, strict=False):
            self.show(axis, image)
        for axis in axes:
            axis.set_axis_off()

    def on(self, color: Any) -> str:
        """The color of text over `color`: whichever of text and background contrasts more with it."""
        brightness = [
            np.dot(matplotlib.colors.to_rgb(c), (0.299, 0.587, 0.114)) for c in (color, self.ink, self.paper)
        ]
        return self.ink if abs(brightness[0] - brightness[1]) > abs(brightness[0] - brightness[2]) else self.paper


LIGHT = Style(
    "#ffffff", "#1f2328", "#59636e", "#d1d9e0", blue="#0072b2", red="#c44500", green="#007a5a", orange="#e69f00",
    sequential=_colors("#ffffff", "#c6dcee", "#6aaed6", "#1f78b4", "#08306b"),
    diverging=_colors("#0b4f8a", "#6aaed6", "#ffffff", "#f4a261", "#a83a00"), pixels=_colors("#ffffff", "#1f2328"),
)  # fmt: skip
DARK = Style(
    "#0d1117", "#e6edf3", "#9198a1", "#3d444d", blue="#56b4e9", red="#ff8a4c", green="#2ec4a0", orange="#f0c24b",
    sequential=_colors("#0d1117", "#123b66", "#1f78b4", "#56b4e9", "#e3f3ff"),
    diverging=_colors("#9fd8ff", "#2b7fc0", "#0d1117", "#c4571b", "#ffc79e"), pixels=_colors("#0d1117", "#e6edf3"),
)  # fmt: skip


def shorten(name: str, length: int) -> str:
    """A name in one line, without its middle if it is longer."""
    name = printable(name)
    return name if len(name) <= length else f"{name[: length - 11]}...{name[-8:]}"


def _as_rgba(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith(("I", "F", "La")):  # which Pillow clips or refuses to convert
        gray = to_grayscale(image, background=255)
        image = PIL.Image.fromarray(gray if gray.dtype == np.uint8 else np.round(255 * gray).astype(np.uint8))
    image = image.convert("RGBA")
    image.thumbnail((400, 400))
    return image
