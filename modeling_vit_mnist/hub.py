"""
The checkpoint folder: weights, config, processor, code, card and records, complete as it stands, and the Hub.
"""

import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
import PIL.Image
import PIL.ImageDraw
import transformers
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the latter of any connection that fails
from safetensors import SafetensorError

from .arguments import DEFAULT_DATASET
from .configuration_vit_mnist import VitMnistConfig
from .data import SAMPLE_FOLDER
from .errors import InputError
from .files import replacing_files, write_text
from .image_processing_vit_mnist import VitMnistImageProcessor
from .modeling_vit_mnist import VitMnistForImageClassification


logger = logging.getLogger(__name__)

CARD_TEMPLATE = Path(__file__).resolve().parents[1] / "model_card.md"
# Records of `benchmarks/` that a card shows: accuracy over seeds, accuracy on spoilt images.
MEASUREMENTS = ("seeds", "robustness")
# What makes a checkpoint complete.
CHECKPOINT_FILES = (
    "config.json", "model.safetensors", "preprocessor_config.json", "configuration_vit_mnist.py",
    "modeling_vit_mnist.py", "image_processing_vit_mnist.py", "frames_vit_mnist.py", "README.md",
)  # fmt: skip
# What goes to the Hub. Files are named, as a folder may hold anything besides: training checkpoints, logs, tokens.
UPLOADED = (
    *CHECKPOINT_FILES, "run.json", "all_results.json", "history.json", *(f"{name}.json" for name in MEASUREMENTS),
    ".eval_results/*.yaml", "digit-?.png",
)  # fmt: skip
# Strokes of a pen in a frame of 28x28 pixels: the images that the card's widget offers, which are nobody's data.
EXAMPLES = {
    "2": [(8, 9), (12, 5), (18, 7), (17, 13), (8, 22), (21, 22)],
    "4": [(17, 24), (17, 4), (7, 16), (22, 16)],
    "7": [(7, 7), (20, 7), (12, 24)],
}
# Seconds before a push is tried again. huggingface_hub waits for longer than that, and more often, in the requests
# that it repeats by itself: asking what is there already and, where hf_xet is installed, the commit.
RETRY_WAITS = (2, 8)
VERSIONED = ("torch", "transformers", "datasets", "accelerate", "safetensors", "huggingface-hub")


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """No progress bars of transformers for loading and saving a few kilobytes."""
    was_on = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            transformers.utils.logging.enable_progress_bar()


@without_progress_bars()
def load_checkpoint(
    name_or_path: str | os.PathLike, ignore_mismatched_sizes: bool = False, **kwargs
) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    """
    Load a classifier and its processor from a folder or the Hub, and make sure that every weight was there.

    Args:
        name_or_path: Folder or Hub id.
        ignore_mismatched_sizes (`bool`): Start weights of another shape anew (a head for other classes).
        kwargs: Passed on to `from_pretrained`.

    Raises:
        InputError: no such folder, no checkpoint in it, another model's, or weights missing or unreadable.
        ConnectionError: the Hub cannot be reached and the checkpoint is not cached.
    """
    name = str(name_or_path)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{name} holds no checkpoint: config.json is missing.")
        if not any(folder.glob("*.safetensors")):
            raise InputError(f"{name} holds no weights: model.safetensors is missing.")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"There is no checkpoint folder {name!r}.")
    try:
        config, kwargs = VitMnistConfig.get_config_dict(name, **kwargs)
        if config.get("model_type") != VitMnistConfig.model_type:
            raise InputError(f"{name} holds a model of type {config.get('model_type')!r}, not 'vit_mnist'.")
        model, info = VitMnistForImageClassification.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=ignore_mismatched_sizes, **kwargs
        )
        try:
            processor = VitMnistImageProcessor.from_pretrained(name)
        except OSError:
            processor = VitMnistImageProcessor(size=model.config.image_size)
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise InputError(f"There is neither a folder nor a Hub repository {name!r} (or it is private).") from error
    except OSError as error:
        if folder.is_dir():
            raise InputError(f"The checkpoint in {name} cannot be read: {error}") from error
        raise ConnectionError(f"{name} is no folder here and cannot be had from the Hub: {error}") from error
    except (SafetensorError, huggingface_hub.errors.StrictDataclassError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The checkpoint in {name} cannot be read: {error}") from error
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more are missing" if len(missing) > 1 else " is missing"
        raise InputError(f"The weights in {name} are not this model's: {missing[0]}{more}.")
    return model, processor


@without_progress_bars()
def save_checkpoint(
    folder: str | os.PathLike,
    model: VitMnistForImageClassification,
    processor: VitMnistImageProcessor,
    card: str,
    records: dict[str, dict],
) -> None:
    """
    Write a complete checkpoint folder: `model.safetensors`, `config.json`, `preprocessor_config.json`, the four code
    files, `README.md`, the digits that its widget shows, and `records` (file name to content, as JSON or YAML).

    Everything is written beside the old files first and then put in their place, the records last: a full disk or a
    killed process leaves the old files as they were.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    try:
        with replacing_files(Path(folder), last=records) as staging:
            model.save_pretrained(staging)
            processor.save_pretrained(staging)
            shutil.copymode(staging / "config.json", staging / "model.safetensors")  # written for its owner only
            (staging / "README.md").write_text(card, encoding="utf-8")
            draw_examples(staging, model.config.id2label.values())
            _write_records(staging, records)
    except SafetensorError as error:
        raise OSError(f"The checkpoint cannot be saved to {folder}: {error}") from error


def _write_records(folder: Path, records: dict[str, dict | list]) -> None:
    for name, record in records.items():
        is_yaml = name.endswith(".yaml")
        text = yaml.safe_dump(record, sort_keys=False) if is_yaml else json.dumps(record, indent=2) + "\n"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def draw_examples(folder: Path, labels: Collection[str]) -> None:
    """Draw those of [`EXAMPLES`] that are among the classes, as `digit-2.png` and so on."""
    for label in EXAMPLES.keys() & set(labels):
        image = PIL.Image.new("L", (28, 28))
        PIL.ImageDraw.Draw(image).line(EXAMPLES[label], fill=255, width=2, joint="curve")
        image.save(folder / f"digit-{label}.png")


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide how a run turns out."""
    return {name: importlib.metadata.version(name) for name in VERSIONED} | {"Python": platform.python_version()}


def add_measurement(folder: str | os.PathLike, name: str, record: dict) -> None:
    """
    Put a benchmark's record, one of [`MEASUREMENTS`], into a checkpoint folder and its figures into the card there.

    Raises:
        InputError: the folder holds no finished run.
    """
    _read_run(Path(folder))  # or nothing is written
    write_text(Path(folder) / f"{name}.json", json.dumps(record, indent=2) + "\n")
    write_card(folder)


def write_card(folder: str | os.PathLike) -> None:
    """
    Write the card of a finished run anew from its records, with the results and the digits that the Hub shows by it.

    Raises:
        InputError: the folder holds no finished run.
    """
    folder = Path(folder)
    run, results = _read_run(folder)
    measured = {
        name: json.loads((folder / f"{name}.json").read_text("utf-8"))
        for name in MEASUREMENTS
        if (folder / f"{name}.json").is_file()
    }
    with replacing_files(folder) as staging:
        (staging / "README.md").write_text(fill_card(run, results, measured), encoding="utf-8")
        draw_examples(staging, run["model"]["id2label"].values())
        _write_records(staging, fill_eval_results(results))


def _read_run(folder: Path) -> tuple[dict, dict]:
    try:
        run, results = (json.loads((folder / name).read_text("utf-8")) for name in ("run.json", "all_results.json"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no finished run: {error}") from error
    return run, results


def fill_eval_results(results: dict) -> dict[str, list]:
    """
    The accuracy on the test split in the Hub's own format, by the name of its file; nothing where the dataset is not
    on the Hub. The Hub shows it once the dataset is registered as a benchmark whose task has the dataset's name.

    Args:
        results: What `all_results.json` holds.
    """
    if "/" not in results["dataset"]:
        return {}
    name = results["dataset"].rpartition("/")[2]
    entry = EvalResultEntry(
        dataset_id=results["dataset"],
        task_id=name,
        value=round(results["test_accuracy"], 4),
        date=results["ended_at"][:10],
        notes=f"accuracy on the {results['test_samples']:,} images of the test split",
    )
    return {f".eval_results/{name}.yaml": eval_result_entries_to_yaml([entry])}


def fill_card(run: dict, results: dict, measured: dict[str, dict] | None = None) -> str:
    """
    The model card of a run, from `model_card.md`.

    Args:
        run: What [`training.describe_run`] returns.
        results: What `all_results.json` holds.
        measured: Records of [`MEASUREMENTS`], as far as they have been made.
    """
    is_hub_dataset = "/" in results["dataset"]
    is_sample = results["dataset"] == SAMPLE_FOLDER.name
    is_mnist = results["dataset"] == DEFAULT_DATASET
    dataset = {"dataset_type": results["dataset"], "dataset_name": "MNIST" if is_mnist else results["dataset"]}
    task = {"task_type": "image-classification", "task_name": "Image Classification"}
    metrics = (
        ("accuracy", "Accuracy", results["test_accuracy"]),
        ("f1", "Macro F1", results["test_macro_f1"]),
        ("loss", "Cross-entropy", results["test_loss"]),
    )
    data = ModelCardData(
        language=None,
        license="mit",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["vision", "vit", "mnist", "tiny"],
        datasets=[results["dataset"]] if is_hub_dataset else None,
        metrics=["accuracy", "f1"],
        model_name="vit-mnist",
        eval_results=[
            EvalResult(
                **task,
                **dataset,
                dataset_split="test",
                metric_type=kind,
                metric_name=name,
                metric_value=round(value, 4),
            )
            for kind, name, value in metrics
        ],
        widget=[
            {"src": f"digit-{label}.png", "example_title": f"A drawn {label}"}
            for label in EXAMPLES
            if label in run["model"]["id2label"].values()
        ]
        or None,
    )
    card = ModelCard.from_template(
        data, template_path=str(CARD_TEMPLATE), run=run, results=results, measured=measured or {},
        is_sample=is_sample, is_mnist=is_mnist or is_sample,
    )  # fmt: skip
    return str(card).rstrip("\n") + "\n"


def push(
    folder: str | os.PathLike,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    allow_sample: bool = False,
) -> str:
    """
    Upload a complete checkpoint folder in one commit, creating the repository if need be. Pushing the same folder
    again commits nothing, and neither does trying again after an answer got lost.

    Args:
        folder: The checkpoint folder, which is only read.
        repo_id: `name` or `namespace/name`.
        token: Default: the one of `hf auth login` or `HF_TOKEN`.
        private: Whether a new repository is private. Default: as the namespace is set up.
        allow_sample: Push a model trained on the kept sample, too.

    Returns:
        `str`: The repository's address.

    Raises:
        InputError: no complete checkpoint, a model of the kept sample, an impossible name, a card that the Hub
            rejects, or a token that is missing or has no right to write there.
        ConnectionError: the Hub cannot be reached, or failed each time.
    """
    folder = Path(folder)
    _check_pushable(folder, allow_sample)
    api = huggingface_hub.HfApi(token=token)
    for wait in (*RETRY_WAITS, None):
        try:
            return _upload(api, folder, repo_id, private)
        except (HTTPError, OSError, RuntimeError, json.JSONDecodeError) as error:  # RuntimeError: of hf_xet
            if wait is None or not _may_pass(error):
                raise _explain(error, folder, repo_id) from error
            logger.warning("Pushing to %s failed, trying again in %d s: %s", repo_id, wait, _reason(error))
            time.sleep(wait)
        except ValueError as error:
            raise InputError(f"{folder} cannot be pushed to {repo_id!r}: {error}") from error


def _check_pushable(folder: Path, allow_sample: bool) -> None:
    if missing := [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]:
        raise InputError(f"{folder} is no complete checkpoint: {missing[0]} is missing.")
    if allow_sample or not (folder / "run.json").is_file():  # an imported checkpoint has none
        return
    run, _ = _read_run(folder)
    if run["data"]["source"] == SAMPLE_FOLDER.name:
        raise InputError(
            f"The model in {folder} was trained on the kept sample, no match for MNIST, so it is not pushed: train on "
            "the full set, or pass --push_sample_model (allow_sample=True) to push it all the same."
        )


def _upload(api: huggingface_hub.HfApi, folder: Path, repo_id: str, private: bool | None) -> str:
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(
        folder_path=folder,
        repo_id=repo.repo_id,
        allow_patterns=list(UPLOADED),
        commit_message="Upload vit-mnist checkpoint",
        # The Hub takes the commit onto this one only: repeated after its answer got lost, it is refused (412).
        parent_commit=api.model_info(repo.repo_id).sha,
    )
    return str(repo)


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _may_pass(error: Exception) -> bool:
    """Whether a failed push may succeed in a moment: the connection or the Hub failed, or a commit came in between."""
    status = _status(error)
    if status is None:  # a connection that broke, or an error page where JSON should be
        return isinstance(error, (HTTPError, json.JSONDecodeError))
    return status in (408, 412, 429) or status >= 500


def _explain(error: Exception, folder: Path, repo_id: str) -> Exception:
    """What to tell the person: wrong input where it is for them to change, else a failure."""
    safe = f"The checkpoint is complete in {folder}: the same command pushes it."
    if _status(error) == 401:
        return InputError(
            f"Pushing to {repo_id} needs a valid token (401): run `hf auth login` or pass --hub_token. {safe}"
        )
    if _status(error) == 403:
        return InputError(
            f"The token has no right to push to {repo_id} (403): pass a repository of yours by --hub_model_id, or a "
            f"token that may write there. {safe}"
        )
    return ConnectionError(f"Pushing to {repo_id} failed: {_reason(error)}. {safe}")


def _reason(error: Exception) -> str:
    says = f"the Hub answered {_status(error)}: {error.server_message or error}" if _status(error) else str(error)
    return " ".join(says.split()).rstrip(".")
