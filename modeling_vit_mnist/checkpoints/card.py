"""The model card of a finished run, and the results that the Hub shows beside it."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..cli.assets import asset
from ..cli.errors import UsageError, printable
from ..cli.files import replacing_files
from ..data.arguments import DEFAULT_DATASET
from ..data.sources import SAMPLE
from .folder import CODE_FILES, EXAMPLES, MEASUREMENTS, draw_examples, hash_weights, read_record, write_records

logger = logging.getLogger(__name__)

VERSIONED = ("torch", "transformers", "datasets", "accelerate", "safetensors", "huggingface-hub")


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the result of a run."""
    return {name: importlib.metadata.version(name) for name in VERSIONED} | {"Python": platform.python_version()}


def add_measurement(folder: str | os.PathLike, name: str, record: dict) -> None:
    """Write a benchmark's record, one of [`MEASUREMENTS`], to a checkpoint folder, together with what it describes,
    and its figures to the card there. Raises [`UsageError`] if the folder holds no finished run."""
    folder = Path(folder)
    run, _ = read_run(folder)  # raises before anything is written
    with replacing_files(folder) as staging:
        write_records(staging, {f"{name}.json": record | identify(folder, name, run)})
    renew(folder)


def identify(folder: Path, name: str, run: dict[str, Any]) -> dict[str, str]:
    """What a measurement in a checkpoint folder describes: `robustness` the weights, `seeds` the recipe, which is the
    whole of `run.json` but its seed. Returns a SHA-256 hash by kind."""
    if name == "seeds":
        training = {key: value for key, value in run["training"].items() if key != "seed"}
        return {
            "recipe": hashlib.sha256(json.dumps(run | {"training": training}, sort_keys=True).encode()).hexdigest()
        }
    return {"weights": hash_weights(folder)}


def read_measurements(folder: Path, run: dict[str, Any]) -> dict[str, dict]:
    """The records of [`MEASUREMENTS`] in a finished run's folder. One that describes other weights or another recipe
    is left out, which is logged."""
    measured = {}
    for name in MEASUREMENTS:
        if not (folder / f"{name}.json").is_file():
            continue
        record = read_record(folder / f"{name}.json")
        if isinstance(record, dict) and identify(folder, name, run).items() <= record.items():
            measured[name] = record
        else:
            logger.warning("Ignoring %s.json in %s: it was measured on another model. Measure again.", name, folder)
    return measured


def renew(folder: str | os.PathLike) -> None:
    """Write the code, the card, its examples and its results in a finished run's folder again, from this package and
    the records there. Weights, config and records are unchanged. Raises [`UsageError`] if the folder holds no finished
    run."""
    folder = Path(folder)
    run, results = read_run(folder)
    measured = read_measurements(folder, run)
    with replacing_files(folder) as staging:
        for name in CODE_FILES:
            shutil.copy(Path(__file__).resolve().parents[1] / name, staging / name)
        (staging / "README.md").write_text(fill_card(run, results, measured), encoding="utf-8")
        draw_examples(staging, run["model"]["id2label"].values())
        write_records(staging, fill_eval_results(results))


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The records `run.json` and `all_results.json` of a finished run. Raises [`UsageError`] if the folder holds no
    finished run, or other weights than the run's."""
    try:
        run, results = (read_record(folder / name) for name in ("run.json", "all_results.json"))
        if missing := [name for name in ("model", "data", "training") if name not in run]:
            raise UsageError(f"run.json lacks {missing[0]!r}")
        if "test_accuracy" not in results:
            raise UsageError("all_results.json lacks 'test_accuracy'")
        if "weights" in results and results["weights"] != hash_weights(folder):  # older versions did not record it
            raise UsageError("all_results.json describes other weights than model.safetensors")
    except (OSError, UsageError, TypeError) as error:
        raise UsageError(f"{folder} holds no finished run: {error}") from error
    return run, results


def fill_eval_results(results: dict[str, Any]) -> dict[str, list]:
    """The test accuracy of `all_results.json` in the Hub's format, by file name; nothing if the dataset is not on the
    Hub. The Hub shows it once the dataset is registered as a benchmark whose task has the dataset's name."""
    if not is_hub_id(results["dataset"]):
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
    short = "mnist" if is_sample or is_mnist else dataset.rpartition("/")[2]
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
    start = run["model"].get("fine_tuned_from")
    data = ModelCardData(
        language=None, license="mit" if is_mnist or is_sample else None, library_name="transformers",
        pipeline_tag="image-classification", tags=["vision", "vit", short, "tiny"],
        datasets=[dataset] if is_hub_id(dataset) else None, metrics=["accuracy", "f1"], model_name=f"vit-{short}",
        base_model=start if is_hub_id(str(start)) else None,
        eval_results=[
            EvalResult(**task, metric_type=kind, metric_name=name, metric_value=round(value, 4))
            for kind, name, value in metrics
        ],
        widget=[{"src": f"digit-{d}.png", "example_title": f"A drawn {d}"} for d in EXAMPLES if d in labels] or None,
    )  # fmt: skip
    settings = run["training"].items()
    training = {name: table_cell(value) if isinstance(value, str) else value for name, value in settings}
    values = {
        "run": run | {"training": training},
        "results": results | {"dataset": table_cell(dataset)}, "measured": measured or {},
        "is_sample": is_sample, "is_mnist": is_mnist or is_sample, "model_name": table_cell(data.model_name),
        "class_names": [table_cell(name) for name in labels], "started_from": table_cell(start),
    }  # fmt: skip
    card = ModelCard.from_template(data, str(asset("model_card.md")), **values)
    return str(card).rstrip("\n") + "\n"


def is_hub_id(dataset: str) -> bool:
    """Whether a dataset of this name came from the Hub. One from a folder has the folder's name, without a slash."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", dataset) is not None


def table_cell(text: Any) -> str:
    """Text that Markdown shows as it is, in one line, in a table, too."""
    return re.sub(r"^[-+#=]|[\\`*|<>\[\]]", r"\\\g<0>", printable(" ".join(str(text).split())))
