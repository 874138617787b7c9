"""
Draw every figure of the documentation from the bundled checkpoints, light and dark.

    python benchmarks/figures.py                  # all, to docs/figures
    python benchmarks/figures.py attention warps  # some

Figures of images show the bundled sample. Mistakes and calibration are those of the whole test split, where MNIST is
found. `docs/figures/accuracy.csv` holds the accuracies, parameters and times, each with its source. The same figures
are drawn again as the same files.
"""

import argparse
import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from modeling_vit_mnist.cli.errors import UsageError, run_script
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.sources import SAMPLE
from modeling_vit_mnist.inference import plots
from modeling_vit_mnist.inference.arguments import VisualizeArguments
from modeling_vit_mnist.inference.style import WIDTH
from modeling_vit_mnist.inference.subject import Subject
from modeling_vit_mnist.inference.visualize import show

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
SHOWN = ("2", "5", "7", "8")  # the first test image of each
LABELLED = (90, 92, 94, 95, 96, 97, 98, 99, 99.5)  # accuracies, in percent
# Where the name of a network stands beside its mark: offset in points, horizontal and vertical alignment.
PLACES = {
    "left": ((-7, 0), "right", "center"), "right": ((7, 0), "left", "center"), "above": ((0, 9), "center", "bottom"),
    "below": ((0, -8), "center", "top"),
}  # fmt: skip


def read_results() -> list[dict]:
    """The rows of `accuracy.csv`. Numbers that are not given are `None`."""
    numbers = ("parameters", "accuracy", "std", "n", "seconds", "seconds_std")
    with (FIGURES / "accuracy.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row | {name: float(row[name]) if row[name] else None for name in numbers} for row in rows]


def draw_results(subject: Subject, column: str) -> None:
    """Accuracy over `parameters` or `seconds` of training, on scales that are logarithmic in both and in the error."""
    over_seconds = column == "seconds"
    shown = [row for row in read_results() if row[column] and (over_seconds or row["kind"] != "recipe")]
    caption = (
        "MNIST test accuracy: mean and standard deviation over seeds, on one or two CPU cores (benchmarks/README.md); "
        "of the original, its best."
        if over_seconds
        else "MNIST test accuracy: of this package, mean and standard deviation over seeds; of others, as published "
        "(sources: docs/figures/accuracy.csv). Some of them may have been selected on the test split."
    )
    target = subject.target("seconds" if over_seconds else "accuracy", caption)
    style = target["style"]
    colors = {"ours": style.blue, "recipe": style.blue, "original": style.red, "published": style.muted}
    with style.figure(target["path"], WIDTH, 3.9, caption) as figure:
        axis = figure.subplots()
        axis.set(xscale="log", yscale="log", xlabel="seconds of training" if over_seconds else "parameters")
        for row in shown:
            x, error, color = row[column], 100 - row["accuracy"], colors[row["kind"]]
            spread = {"yerr": row["std"], "xerr": row["seconds_std"] if over_seconds else None}
            marker = "s" if row["kind"] == "published" else "o"
            axis.errorbar(x, error, **spread, fmt=marker, color=color, markersize=6, capsize=2, elinewidth=1)
            offset, ha, va = PLACES[row["label"]]
            weight = "bold" if row["kind"] == "ours" else "normal"
            box = {"facecolor": style.paper, "edgecolor": "none", "pad": 0.5}  # over the lines of the grid
            options = {"color": color, "fontsize": 9, "fontweight": weight, "bbox": box}
            axis.annotate(row["network"], (x, error), offset, textcoords="offset points", ha=ha, va=va, **options)
        errors = [100 - row["accuracy"] for row in shown]
        axis.set(ylim=(1.25 * max(errors), min(errors) / 1.3))
        axis.yaxis.set_major_locator(FixedLocator([100 - value for value in LABELLED]))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}%"))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.margins(x=0.12)
        axis.grid(color=style.line, lw=0.6)
        axis.set_axisbelow(True)
        axis.set_title("Accuracy and training time" if over_seconds else "Accuracy and size", loc="left")
    print(f"Wrote {target['path']}")


def draw_predictions(subject: Subject) -> None:
    """Thirty-two test images of the sample, at equal distances, as they are read."""
    dataset, probabilities = subject.dataset, subject.probabilities
    indices = range(0, len(dataset), len(dataset) // 32)[:32]
    confidence, predicted = (values.tolist() for values in probabilities[indices].max(1))
    labels = [dataset.names[label] for label in dataset.labels[indices].tolist()]
    rows = [
        {"prediction": dataset.names[number], "probability": value, "digit_score": None, "label": label}
        for number, value, label in zip(predicted, confidence, labels, strict=True)
    ]
    target = subject.target("predictions", f"{subject.name}, {subject.data}. Below each, the probability.")
    plots.plot_predictions(dataset.images[indices], rows, **target)
    print(f"Wrote {target['path']}")


def figures(output: Path) -> dict[str, tuple[Subject, str, Callable[[Subject], None]]]:
    """What each figure shows, its format, and what draws it, by name."""
    tiny, best = (str(ROOT / f"vit-mnist-{name}") for name in ("tiny", "best"))
    sample, whole = DataArguments(dataset_name=str(SAMPLE)), DataArguments()
    args = VisualizeArguments(model=tiny, output_dir=str(output), device="cpu")
    images = Subject(args, sample)
    names = [images.dataset.names[label] for label in images.dataset.labels.tolist()]
    index = [names.index(name) for name in SHOWN]
    images.args = args = replace(args, index=index)
    framed = Subject(replace(args, model=best, index=index[:3]), sample)
    statistics = Subject(args, whole)
    one = Subject(replace(args, index=index[1:2]), sample)
    subjects = {
        "architecture": (images, "svg"), "parameters": (images, "svg"), "positions": (images, "png"),
        "patches": (one, "png"), "filters": (images, "png"), "attention": (images, "png"), "rollout": (images, "png"),
        "warps": (Subject(replace(args, index=[0, 1, 2, 3]), sample), "png"), "training": (images, "svg"),
        "mistakes": (statistics, "png"), "calibration": (statistics, "svg"), "framing": (framed, "png"),
    }  # fmt: skip
    drawn = {name: (subject, kind, partial(show, name)) for name, (subject, kind) in subjects.items()}
    return drawn | {
        "predictions": (images, "png", draw_predictions),
        "accuracy": (images, "svg", partial(draw_results, column="parameters")),
        "seconds": (images, "svg", partial(draw_results, column="seconds")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], allow_abbrev=False)
    parser.add_argument("names", nargs="*", help="Figures to draw. Default: all.")
    parser.add_argument("--output_dir", type=Path, default=FIGURES, help="Folder of the figures.")
    args = parser.parse_args()
    known = figures(args.output_dir)
    if unknown := [name for name in args.names if name not in known]:
        raise UsageError(f"No figure {unknown[0]!r}: choose from {', '.join(known)}.")
    for name in args.names or known:
        subject, kind, draw = known[name]
        before = subject.args
        for dark in (False, True):
            subject.args = replace(before, format=kind, dark=dark)
            draw(subject)
        subject.args = before


if __name__ == "__main__":
    run_script(main)
