"""The drawing of a network, from its config alone."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from ..configuration_vit_mnist import VitMnistConfig
from .architecture import parameter_budget
from .style import LIGHT, WIDTH, Style

LEFT, RIGHT, CENTER = 22, 82, 52  # of the boxes, on a sheet that is 100 wide
ROW = 7.4  # from one box to the next
MAX_DRAWN = 24  # tokens, heads or classes


class _Sheet:
    """Boxes from top to bottom, with the shape of their output on the left and their parameters on the right."""

    def __init__(self, axis: plt.Axes, style: Style):
        self.axis, self.style, self.y = axis, style, 0.0

    def text(self, x: float, text: str, align: str = "center", **options) -> None:
        options = {"fontsize": 9.5, "color": self.style.ink} | options
        self.axis.text(x, self.y, text, ha=align, va="center", **options)

    def sides(self, shape: str, count: int | None = None) -> None:
        self.text(LEFT - 6, shape, "right", color=self.style.muted)
        if count is not None:
            self.text(100, f"{count:,}", "right")

    def box(self, text: str, color: str, shape: str = "", count: int | None = None, inside: int | None = None) -> None:
        box = FancyBboxPatch(
            (LEFT, self.y - 2.3), RIGHT - LEFT, 4.6, boxstyle="round,pad=0,rounding_size=1", facecolor=color + "33",
            edgecolor=color, lw=1.2,
        )  # fmt: skip
        self.axis.add_patch(box)
        self.text(CENTER if inside is None else CENTER - 4, text)
        self.sides(shape, count)
        if inside is not None:
            self.text(RIGHT - 1.5, f"{inside:,}", "right", fontsize=9)
        self.y += ROW

    def arrow(self, start: float, end: float, x: float = CENTER) -> None:
        arrow = FancyArrowPatch((x, start), (x, end), arrowstyle="-|>", mutation_scale=8, color=self.style.muted, lw=1)
        self.axis.add_patch(arrow)

    def squares(self, number: int, color: str, first: str | None = None) -> None:
        """A row of that many squares, the first in a color of its own, with dots in place of those that do not fit."""
        drawn = min(number, MAX_DRAWN)
        size = min(3.2, (RIGHT - LEFT) / (drawn + (2 if number > drawn else 0)))
        left = CENTER - size * drawn / 2
        for index in range(drawn):
            fill = first if first and index == 0 else color
            corner = (left + index * size, self.y - size / 2)
            self.axis.add_patch(Rectangle(corner, size, size, facecolor=fill + "55", edgecolor=fill, lw=1))
        if number > drawn:
            self.text(left + size * drawn + 1, "...", "left")

    def add(self, begin: float) -> None:
        """A sum with what entered at `begin`: the residual connection."""
        color, x = self.style.muted, RIGHT + 5
        self.axis.plot([CENTER, x, x, CENTER + 2], [begin, begin, self.y, self.y], color=color, lw=1)
        self.axis.add_patch(plt.Circle((CENTER, self.y), 1.7, facecolor=self.style.paper, edgecolor=color, lw=1.2))
        self.text(CENTER, "+", fontsize=11)
        self.y += 5


def plot_architecture(config: VitMnistConfig, path: Path, caption: str = "", style: Style = LIGHT) -> None:
    """The forward pass of a network from top to bottom: for each stage its sizes, the shape of its output and the
    number of its parameters."""
    budget = parameter_budget(config)
    counts = {part: sum(kinds.values()) for part, kinds in budget.items()}
    block = budget["block 1"]
    width, patch, side = config.hidden_size, config.patch_size, config.image_size // config.patch_size
    patches, depth, heads = config.num_patches, config.num_hidden_layers, config.num_attention_heads
    tokens = f"{1 + patches} x {width}"
    shadows = min(depth - 1, 5)
    with style.figure(path, WIDTH, 6.45 + 0.05 * shadows, caption) as figure:
        axis = figure.subplots()
        axis.set(xlim=(0, 100.5), ylim=(111 + 0.9 * shadows, -13))
        axis.set_axis_off()
        sheet = _Sheet(axis, style)

        sheet.y = -11
        sheet.text(LEFT - 6, "shape", "right", fontweight="bold")
        sheet.text(100, "parameters", "right", fontweight="bold")
        sheet.y = 0
        axis.add_patch(
            Rectangle((CENTER - 8.5, -8.5), 17, 17, facecolor=style.blue + "22", edgecolor=style.blue, lw=1)
        )
        cuts = [17 * cut / side - 8.5 for cut in range(1, side)]
        axis.vlines([CENTER + cut for cut in cuts], -8.5, 8.5, color=style.blue, lw=0.8)
        axis.hlines(cuts, CENTER - 8.5, CENTER + 8.5, color=style.blue, lw=0.8)
        sheet.text(
            CENTER + 11, f"image, cut into\n{side} x {side} patches of\n{patch} x {patch} pixels", "left", fontsize=9
        )
        sheet.sides(f"{config.num_channels} x {config.image_size} x {config.image_size}")
        sheet.y = 15
        sheet.arrow(8.5, 12.7)
        pixels = config.num_channels * patch * patch
        sheet.box(
            f"patch embedding: linear {pixels} → {width}",
            style.blue,
            f"{patches} x {width}",
            counts["patch embedding"],
        )
        sheet.arrow(17.3, 20.4)
        sheet.squares(1 + patches, style.blue, style.orange)
        sheet.sides(tokens, counts["CLS token"])
        sheet.y += 3.6
        sheet.text(CENTER, f"CLS token and {patches} patches", fontsize=9, color=style.muted)
        sheet.y += 5.4
        sheet.arrow(sheet.y - 3.8, sheet.y - 2.3)
        sheet.box("+ position embeddings", style.blue, tokens, counts["positions"])

        top = sheet.y - 2.7
        bottom = top + 47.5
        for shadow in range(shadows, -1, -1):
            corner = (LEFT - 4 + 0.7 * shadow, top + 0.9 * shadow)
            frame = FancyBboxPatch(
                corner, RIGHT - LEFT + 12, bottom - top, boxstyle="round,pad=0,rounding_size=1.5",
                facecolor=style.paper, edgecolor=style.muted, lw=1,
            )  # fmt: skip
            axis.add_patch(frame)
        sheet.arrow(top - 2.5, top)
        sheet.y = top + 2.6
        blocks = f"{depth} block{'s' if depth > 1 else ''} of {counts['block 1']:,} parameters"
        sheet.text(LEFT - 2.5, blocks, "left", fontweight="bold", fontsize=9)
        sheet.y = top + 10.5
        attention = f"attention: {heads} head{'s' if heads > 1 else ''} of {width // heads}"
        mlp = f"MLP: {width} → {config.intermediate_size} → {width}, {config.hidden_act.upper()}"
        for text, color, inside in (
            (attention, style.red, block["attention"]), (mlp, style.green, block["MLP"])
        ):  # fmt: skip
            begin = sheet.y - 4.3
            sheet.arrow(begin - 1.2, sheet.y - 2.3)
            sheet.box("LayerNorm", style.muted, inside=block["LayerNorms"] // 2)
            sheet.arrow(sheet.y - ROW + 2.3, sheet.y - 2.3)
            sheet.box(text, color, tokens, inside=inside)
            sheet.y -= 1.2
            sheet.arrow(sheet.y - 3.9, sheet.y - 1.7)
            sheet.add(begin)
            sheet.y += 2.2

        sheet.y = bottom + 0.9 * shadows + 5.2
        sheet.arrow(bottom + 0.9 * shadows, sheet.y - 2.3)
        sheet.box("LayerNorm, then the CLS token alone", style.orange, f"{width}", counts["LayerNorm"])
        sheet.arrow(sheet.y - ROW + 2.3, sheet.y - 2.3)
        sheet.box(f"head: linear {width} → {config.num_labels}", style.blue, "", counts["head"])
        sheet.arrow(sheet.y - ROW + 2.3, sheet.y - 1.8)
        sheet.squares(config.num_labels, style.green)
        sheet.sides(f"{config.num_labels}")
        sheet.y += 3.8
        sheet.text(CENTER, f"{config.num_labels} logits, one per class", fontsize=9, color=style.muted)
        sheet.text(100, f"total {sum(counts.values()):,}", "right", fontweight="bold")
