"""The model card of a finished run, and the results that the Hub shows beside it."""

import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..cli.assets import asset
from ..cli.errors import UsageError
from ..cli.files import replacing_files, write_text
from ..data.arguments import DEFAULT_DATASET
from ..data.sources import SAMPLE
from .folder import CODE_FILES, EXAMPLES, draw_examples, write_records

# Records of `benchmarks/` that a card shows: accuracy over seeds, accuracy on corrupted images.
MEASUREMENTS = ("seeds", "robustness")
VERSIONED = ("torch", "transformers", "datasets", "accelerate", "safetensors", "huggingface-hub")


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result of a run."""
    return {name: importlib.metadata.version(name) for name in VERSIONED} | {"Python": platform.python_version()}


def add_measurement(folder: str | os.PathLike, name: str, record: dict) -> None:
    """Write a benchmark's record, one of [`MEASUREMENTS`], to a checkpoint folder, and its figures to the card there.
    Raises [`UsageError`] if the folder holds no finished run."""
    read_run(Path(folder))  # raises before anything is written
    write_text(Path(folder) / f"{name}.json", json.dumps(record, indent=2) + "\n")
    renew(folder)


def renew(folder: str | os.PathLike) -> None:
    """Write the code, the card, its examples and its results in a finished run's folder again, from this package and
    the records there. Weights, config and records are unchanged. Raises [`UsageError`] if the folder holds no finished
    run."""
    folder = Path(folder)
    run, results = read_run(folder)
    files = {name: folder / f"{name}.json" for name in MEASUREMENTS}
    measured = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.is_file()}
    with replacing_files(folder) as staging:
        for name in CODE_FILES:
            shutil.copy(Path(__file__).resolve().parents[1] / name, staging / name)
        (staging / "README.md").write_text(fill_card(run, results, measured), encoding="utf-8")
        draw_examples(staging, run["model"]["id2label"].values())
        write_records(staging, fill_eval_results(results))


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records `run.json` and `all_results.json` of a finished run. Raises [`UsageError`] if the folder holds no
    finished run."""
    try:
        run, results = (json.loads((folder / name).read_text("utf-8")) for name in ("run.json", "all_results.json"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no finished run: {error}") from error
    return run, results


def fill_eval_results(results: dict[str, Any]) -> dict[str, list]:
    """The test accuracy of `all_results.json` in the Hub's format, by file name; nothing if the dataset is not on the
    Hub. The Hub shows it once the dataset is registered as a benchmark whose task has the dataset's name."""
    if "/" not in results["dataset"]:
        return {}
    name = results["dataset"].rpartition("/")[2]
    entry = EvalResultEntry(
        dataset_id=results["dataset"], task_id=name, value=round(results["test_accuracy"], 4),
        date=results["ended_at"][:10], notes=f"accuracy on the {results['test_samples']:,} images of the test split",
    )  # fmt: skip
    return {f".eval_results/{name}.yaml": eval_result_entries_to_yaml([entry])}


def fill_card(run: dict[str, Any], results: dict[str, Any], measured: dict[str, Any] | None = None) -> str:
    """The model card of a run, from `model_card.md` and the contents of its records."""
    dataset = results["dataset"]
    is_sample, is_mnist = dataset == SAMPLE.name, dataset == DEFAULT_DATASET
    labels = run["model"]["id2label"].values()
    metrics = (
        ("accuracy", "Accuracy", results["test_accuracy"]),
        ("f1", "Macro F1", results["test_macro_f1"]),
        ("loss", "Cross-entropy", results["test_loss"]),
    )
    task = {
        "task_type": "image-classification", "task_name": "Image Classification", "dataset_type": dataset,
        "dataset_name": "MNIST" if is_mnist else dataset, "dataset_split": "test",
    }  # fmt: skip
    data = ModelCardData(
        language=None, license="mit", library_name="transformers", pipeline_tag="image-classification",
        tags=["vision", "vit", "mnist", "tiny"], datasets=[dataset] if "/" in dataset else None,
        metrics=["accuracy", "f1"], model_name="vit-mnist",
        eval_results=[
            EvalResult(**task, metric_type=kind, metric_name=name, metric_value=round(value, 4))
            for kind, name, value in metrics
        ],
        widget=[{"src": f"digit-{d}.png", "example_title": f"A drawn {d}"} for d in EXAMPLES if d in labels] or None,
    )  # fmt: skip
    flags = {"is_sample": is_sample, "is_mnist": is_mnist or is_sample}
    template = str(asset("model_card.md"))
    card = ModelCard.from_template(data, template, run=run, results=results, measured=measured or {}, **flags)
    return str(card).rstrip("\n") + "\n"
