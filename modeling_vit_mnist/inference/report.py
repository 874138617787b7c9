"""The report of a finished run: one HTML page with its recipe, results and figures, which needs no other file."""

import base64
import contextlib
import html
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoints.card import read_run
from ..checkpoints.folder import REPORT_FILE
from ..checkpoints.record import other_split
from ..cli.errors import UsageError, printable
from ..cli.files import check_writable, write_text
from ..data.sources import SAMPLE
from .images import uses_framing
from .subject import Subject
from .visualize import VIEWS

# Title, format and text alternative of each figure, by view.
FIGURES = {
    "training": ("Training", "svg", "Loss, validation accuracy and learning rate over the epochs"),
    "mistakes": ("Mistakes", "png", "Confusion matrix and most confident errors"),
    "calibration": ("Calibration", "svg", "Accuracy over the probability of the predicted class"),
    "attention": ("Attention", "png", "Attention of the CLS token to each patch, per layer and head"),
    "rollout": ("Attention rollout", "png", "Attention per layer beside its rollout through all layers"),
    "framing": ("Framing", "png", "Pictures of digits, their ink, box and frame"),
    "warps": ("Augmentation", "png", "Training images as they were augmented"),
    "architecture": ("Network", "svg", "The stages of the network, with shapes and parameters"),
    "parameters": ("Parameters", "svg", "Number of parameters of each part"),
}
# Nothing is loaded: the policy makes a browser refuse what an escaped name could not.
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --muted: #59636e; --line: #d1d9e0; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #0d1117; --ink: #e6edf3; --muted: #9198a1; --line: #3d444d; }}
}}
body {{ margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1, h2 {{ line-height: 1.2; }}
h2 {{ margin: 2.5rem 0 0.75rem; border-bottom: 1px solid var(--line); }}
table {{ border-collapse: collapse; }}
th, td {{ padding: 0.2rem 1.5rem 0.2rem 0; text-align: left; vertical-align: top; font-weight: normal; }}
th {{ min-width: 9rem; overflow-wrap: normal; }}
th, summary, .note {{ color: var(--muted); }}
summary {{ cursor: pointer; }}
img {{ max-width: 100%; height: auto; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_report(subject: Subject, folder: Path) -> None:
    """Write `report.html`, on the run in the folder `--model`, to `folder`. Raises [`UsageError`] if there is no
    finished run, or the images of the split cannot be loaded."""
    run, results = read_run(Path(subject.args.model))
    check_writable(folder)
    if subject.dataset.source == SAMPLE.name:  # named, it is loaded without another warning about the Hub
        subject.data_args = replace(subject.data_args, dataset_name=str(SAMPLE))
    body = [_summary(subject, results), _heading("Results"), _table(_results(results))]
    body += [_heading("Recipe"), *(_details(part, run[part]) for part in run if run[part])]
    body += [_heading("Environment"), _table(results.get("versions", {}) | {"device": results.get("device", "-")})]
    for view, (title, kind, alternative) in FIGURES.items():
        if view == "framing" and not uses_framing(subject.processor):
            continue
        body += [_heading(title), _figure(subject, view, kind, alternative)]
    write_text(folder / REPORT_FILE, PAGE.format(title=html.escape(printable(subject.name)), body="\n".join(body)))
    print(f"Wrote {printable(str(folder / REPORT_FILE))}")


def _heading(title: str) -> str:
    return f"<h2>{title}</h2>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.6g}"
    return html.escape(printable("-" if value is None else str(value)))


def _table(rows: dict[str, Any]) -> str:
    lines = (f'<tr><th scope="row">{_cell(name)}</th><td>{_cell(value)}</td></tr>' for name, value in rows.items())
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _details(title: str, values: dict[str, Any]) -> str:
    is_open = " open" if title in ("augmentation", "training") else ""
    return f"<details{is_open}><summary>{_cell(title)}</summary>\n{_table(values)}\n</details>"


def _results(results: dict[str, Any]) -> dict[str, str]:
    """The figures of `all_results.json` that are worth a line, in words."""
    percent, seconds = "{:.2%}".format, "{:,.0f} s".format
    shown: dict[str, tuple[str, Callable[[Any], str]]] = {
        "parameters": ("parameters", "{:,}".format), "eval_accuracy": ("validation accuracy", percent),
        "test_accuracy": ("test accuracy", percent), "test_macro_f1": ("test macro F1", "{:.4f}".format),
        "test_loss": ("test cross-entropy", "{:.4f}".format),
        "test_expected_calibration_error": ("test calibration error", "{:.4f}".format),
        "best_epoch": ("selected epoch", "{:g}".format), "epoch": ("epochs", "{:g}".format),
        "train_samples": ("training images", "{:,}".format),
        "validation_samples": ("validation images", "{:,}".format), "test_samples": ("test images", "{:,}".format),
        "train_runtime": ("training time", seconds), "duration": ("time of the whole run", seconds),
        "ended_at": ("ended at", str), "weights": ("SHA-256 of the weights", str),
    }  # fmt: skip
    try:
        return {words: form(results[name]) for name, (words, form) in shown.items() if results.get(name) is not None}
    except (TypeError, ValueError) as error:
        raise UsageError(f"all_results.json holds a value of the wrong type: {error}") from error


def _summary(subject: Subject, results: dict[str, Any]) -> str:
    shown = f"{len(subject.dataset):,} {subject.data}"
    text = f"<p>Trained on {_cell(results['dataset'])}. The figures of images show {_cell(shown)}.</p>"
    is_other = subject.dataset.source != results["dataset"] or len(subject.dataset) != results.get("test_samples")
    is_other |= subject.args.split != "test"
    if is_other or other_split(subject.run, "test", subject.dataset, subject.data_args):
        text += '\n<p class="note">These are other images than those of the results below.</p>'
    return text


def _figure(subject: Subject, view: str, kind: str, alternative: str) -> str:
    """A view as a picture for light and dark pages, or the reason why there is none."""
    before = subject.args
    sources = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for is_dark in (True, False):
                subject.args = replace(before, output_dir=folder, format=kind, dark=is_dark)
                with contextlib.redirect_stdout(io.StringIO()):
                    VIEWS[view](subject)
                sources.append(_data_uri(subject.path(view)))
    except UsageError as error:
        return f'<p class="note">Not shown: {_cell(error)}</p>'
    finally:
        subject.args = before
    dark, light = sources
    alternative = html.escape(alternative)
    return (
        f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{alternative}"></picture>'
    )


def _data_uri(file: Path) -> str:
    kind = {"svg": "image/svg+xml", "png": "image/png"}[file.suffix[1:]]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
