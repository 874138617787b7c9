"""Checkpoint folders: load one, or write one that is complete: weights, config, processor, code, card and records."""

import difflib
import hashlib
import json
import logging
import math
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import huggingface_hub
import PIL.Image
import PIL.ImageDraw
import torch
from huggingface_hub.errors import HTTPError  # any failed connection
from huggingface_hub.utils import yaml_dump
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file, resolve_revision

from ..cli.assets import asset
from ..cli.errors import UsageError
from ..cli.files import replacing_files
from ..cli.inputs import check_values, read_text
from ..configuration_vit_mnist import VitMnistConfig
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification
from .checks import check_dtypes, check_files, check_num_weights, check_shapes

logger = logging.getLogger(__name__)

DEFAULT_MODEL = asset("vit-mnist-tiny")
RUNS = Path("outputs")  # where the recipes put theirs
# The code that travels with every checkpoint.
CODE_FILES = tuple(
    f"{name}_vit_mnist.py"
    for name in ("configuration", "modeling", "image_processing", "grayscale", "framing", "morphology", "deskewing")
)
# The files of a complete checkpoint.
CHECKPOINT_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", *CODE_FILES, "README.md")
# Records of `benchmarks/` that a card shows: accuracy over seeds, accuracy on corrupted images.
MEASUREMENTS = ("seeds", "robustness")
RECORDS = ("run.json", "all_results.json", "history.json", *(f"{name}.json" for name in MEASUREMENTS))
# All files that describe one set of weights. A folder can hold other files, too: training checkpoints, logs, tokens.
OWN_FILES = (*CHECKPOINT_FILES, *RECORDS, ".eval_results/*.yaml", "digit-?.png")
# Describes the weights, too, but is not pushed: the Hub shows the card.
REPORT_FILE = "report.html"
CACHE_ADVICE = " If the copy in the cache is damaged, delete it or pass force_download=True."
# What reading a damaged file, or a config with a value of the wrong type, can raise besides `OSError`.
UNREADABLE = (
    AttributeError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError, SafetensorError,
    huggingface_hub.errors.StrictDataclassError,
)  # fmt: skip
# Arguments of `from_pretrained` that say where to look.
LOCATION = ("revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only")
# Pen strokes in an image of 28x28 pixels: the examples of the card's widget.
EXAMPLES = {
    "2": [(8, 9), (12, 5), (18, 7), (17, 13), (8, 22), (21, 22)],
    "4": [(17, 24), (17, 4), (7, 16), (22, 16)],
    "7": [(7, 7), (20, 7), (12, 24)],
}


def find_default_model() -> Path:
    """The newest finished run in `outputs/`, else the bundled vit-mnist-tiny."""
    runs = [
        results for results in RUNS.glob("*/all_results.json")
        if all((results.parent / name).is_file() for name in CHECKPOINT_FILES)
    ]  # fmt: skip
    return max(runs, key=lambda results: results.stat().st_mtime).parent if runs else DEFAULT_MODEL


def load_checkpoint(
    name_or_path: str | os.PathLike, ignore_mismatched_sizes: bool = False, **kwargs
) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    """Load a classifier and its processor from a folder or the Hub, and check that they are complete and fit together.

    `ignore_mismatched_sizes` initializes weights of another shape, such as a head for other classes, and logs their
    names. `kwargs` are passed on to `from_pretrained`. Config, weights and processor come from the same commit. A
    checkpoint without a processor gets the default one, which is logged.

    Raises:
        UsageError: the folder is missing or holds no checkpoint of this model; weights are missing, left over,
            unreadable, of other shapes, not finite or not floats; the config has a value of the wrong type, or is of
            another problem than single-label classification; or the processor is unreadable or made for another model.
        ConnectionError: the Hub cannot be reached and the checkpoint is not cached.
        OSError: the download cannot be stored, for example because the disk is full.
    """
    name = str(name_or_path)
    is_local = os.path.isdir(name)
    if is_local:
        folder = Path(name, kwargs.get("subfolder") or "")
        if not (folder / "config.json").is_file():
            raise UsageError(f"{folder} holds no checkpoint: config.json is missing.")
        if not any(folder.glob("*.safetensors")):
            raise UsageError(f"{folder} holds no weights: model.safetensors is missing.")
        check_files(folder)
    elif os.path.isfile(name):
        raise UsageError(f"{name} is a file, not a checkpoint folder. `run_export.py --format import` converts files.")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).parent == RUNS:
        near = difflib.get_close_matches(name, map(str, [*Path().glob("*/"), *RUNS.glob("*/")]), n=1)
        raise UsageError(f"No checkpoint folder {name!r}" + (f": did you mean {near[0]}?" if near else "."))
    known = {key: kwargs[key] for key in ("revision", "token", "local_files_only", "cache_dir") if key in kwargs}
    kwargs["revision"] = resolve_revision(name, **known)  # once, so that all files come from one commit
    location = {key: value for key, value in kwargs.items() if key in LOCATION}
    kwargs.setdefault("return_dict", True)  # the scripts read outputs by name
    try:
        config, _ = VitMnistConfig.get_config_dict(name, **location)
        found = config.get("model_type") if isinstance(config, dict) else None
        if found != VitMnistConfig.model_type:
            raise UsageError(f"{name} holds a model of type {found!r}, not 'vit_mnist'.")
        num_weights = check_dtypes(name, config, location, variant=kwargs.get("variant"), use_safetensors=True)
        check_num_weights(name, num_weights, VitMnistConfig.from_dict(config))
        with quiet():
            model, info = VitMnistForImageClassification.from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **kwargs
            )
        processor = _load_processor(name, model.config.image_size, location)
    except UsageError:
        raise
    except OSError as error:
        raise _explain(error, name, is_local) from error
    except UNREADABLE as error:
        is_type = isinstance(error, (AttributeError, LookupError, TypeError))
        reason = f"config.json has a value of the wrong type ({error})." if is_type else str(error)
        advice = "" if is_local else CACHE_ADVICE
        raise UsageError(f"Cannot read the checkpoint in {name}: {reason}{advice}") from error
    for kind, keys in (("missing", info["missing_keys"]), ("left over", info["unexpected_keys"])):
        if keys:
            raise UsageError(
                f"The weights in {name} do not match this model: {len(keys)} {kind}, such as {min(keys)}."
            )
    if not ignore_mismatched_sizes:
        check_shapes(name, info)
    if renewed := sorted(key for key, *_ in info["mismatched_keys"]):
        logger.warning("Newly initialized, since the shapes in %s differ: %s.", name, ", ".join(renewed))
    check_usable(name, model, processor)
    return model, processor


def check_problem(name: str, config: PreTrainedConfig) -> None:
    """Raise [`UsageError`] if a model does not choose one of several classes: a softmax would make no probabilities of
    its logits."""
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise UsageError(
            f"Cannot use {name}: only single-label classification of two or more classes is supported, "
            f"got problem_type={config.problem_type!r} and num_labels={config.num_labels}."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings and reports of other packages, where this one says what matters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _load_processor(name: str, image_size: int, location: dict[str, Any]) -> VitMnistImageProcessor:
    """The processor of a checkpoint; a default one if it has none."""
    try:
        settings, _ = VitMnistImageProcessor.get_image_processor_dict(name, **location)
    except OSError:
        try:
            cached_file(name, "preprocessor_config.json", **location)
        except OSError as error:
            if error.errno is not None or error.__cause__ is not None:  # neither for a file that does not exist
                raise
            logger.warning("%s has no preprocessor_config.json: using MNIST's mean and standard deviation.", name)
            return VitMnistImageProcessor(size=image_size)
        raise ValueError("preprocessor_config.json holds no JSON object.") from None
    kind = settings.get("image_processor_type", "VitMnistImageProcessor") if isinstance(settings, dict) else None
    if kind != "VitMnistImageProcessor":
        raise UsageError(f"{name} holds a processor of type {kind!r}, not 'VitMnistImageProcessor'.")
    try:
        return VitMnistImageProcessor.from_dict(settings)
    except TypeError as error:
        raise UsageError(f"Cannot read preprocessor_config.json in {name}: {error}") from error


def check_usable(name: str, model: VitMnistForImageClassification, processor: VitMnistImageProcessor) -> None:
    """Raise [`UsageError`] for weights that are not finite, a problem as in [`check_problem`], or a processor that
    makes images of another size, number of channels or type than the model's."""
    check_problem(name, model.config)
    fault, image_size = find_non_finite(model), model.config.image_size
    size = (processor.size["height"], processor.size["width"])
    resizes = processor.do_resize or processor.do_center or processor.do_frame
    if not fault and resizes and size != (image_size, image_size):
        fault = f"its processor makes images of {size[0]}x{size[1]}, the model takes {image_size}x{image_size}"
    if not fault and model.config.num_channels != 1:
        fault = f"its processor makes images of one channel, the model takes {model.config.num_channels}"
    if not fault and not (processor.do_rescale or processor.do_normalize):
        fault = "its processor neither rescales nor normalizes, the model takes floats"
    if fault:
        raise UsageError(f"Cannot use the checkpoint in {name}: {fault}.")


def find_non_finite(model: torch.nn.Module) -> str | None:
    """The first weights that hold NaN or infinity, in words."""
    names = (name for name, weights in model.named_parameters() if not (weights.is_meta or weights.isfinite().all()))
    return next((f"{name} holds weights that are not finite" for name in names), None)


def _explain(error: OSError, name: str, is_local: bool) -> OSError | UsageError:
    """The error for the user. transformers raises `OSError` for everything, and says why in its cause."""
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)

    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((link for link in chain if isinstance(link, kinds)), None)

    if is_local or first(huggingface_hub.errors.RevisionNotFoundError):
        return UsageError(f"Cannot read the checkpoint in {name}: {error}")
    if first(huggingface_hub.errors.GatedRepoError):
        return UsageError(f"{name} is gated: request access on its page, and run `hf auth login`.")
    if first(huggingface_hub.errors.RepositoryNotFoundError):
        return UsageError(f"No folder and no Hub repository {name!r} (or it is private).")
    if first(HTTPError, ConnectionError, TimeoutError, huggingface_hub.errors.LocalEntryNotFoundError):
        return ConnectionError(f"No folder {name!r}, and downloading it from the Hub failed: {error}")
    failed = next((link for link in chain if isinstance(link, OSError) and link.errno is not None), None)
    if failed is not None:
        where = failed.filename or huggingface_hub.constants.HF_HUB_CACHE
        return OSError(failed.errno, f"Cannot store {name} from the Hub: {failed.strerror}", str(where))
    return UsageError(f"Cannot read the checkpoint in {name}: {error}{CACHE_ADVICE}")


def save_checkpoint(
    folder: str | os.PathLike, model: VitMnistForImageClassification, processor: Any, card: str | None,
    records: dict[str, Any],
) -> None:  # fmt: skip
    """Write a complete checkpoint folder: [`CHECKPOINT_FILES`] (without a card for now if it is `None`), the digits of
    the card's widget, and `records` (file name to content, as JSON or YAML). `all_results.json` gets the hash of the
    weights that it describes. Records and cards of other weights are deleted. The files are written to a temporary
    folder first and moved at the end.

    Raises, with the old files unchanged:
        FloatingPointError: weights or figures are not finite.
        OSError: the folder cannot be written, or the disk is full.
    """
    if fault := find_non_finite(model):
        raise FloatingPointError(f"Refusing to save the checkpoint to {folder}: {fault}.")
    try:
        with replacing_files(Path(folder), owned=(*OWN_FILES, REPORT_FILE)) as staging:
            model.save_pretrained(staging)
            processor.save_pretrained(staging)
            shutil.copymode(staging / "config.json", staging / "model.safetensors")  # readable for its owner only
            if card is not None:
                (staging / "README.md").write_text(card, encoding="utf-8")
            draw_examples(staging, model.config.id2label.values())
            if results := records.get("all_results.json"):
                results["weights"] = hash_weights(staging)
            write_records(staging, records)
    except SafetensorError as error:
        raise OSError(f"Cannot save the checkpoint to {folder}: {error}") from error


def hash_weights(folder: Path) -> str:
    """SHA-256 hash of the weights in a checkpoint folder."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def write_records(folder: Path, records: dict[str, Any]) -> None:
    """Write `records`, file name to content, as YAML or JSON by the suffix of the name. NaN and infinity, which JSON
    does not have, become null in `history.json`, and raise `FloatingPointError` elsewhere."""
    for name, record in records.items():
        if name == "history.json":
            record = _without_non_finite(record)
        try:
            text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        except ValueError as error:
            raise FloatingPointError(f"Refusing to write {name}: it holds figures that are not finite.") from error
        if name.endswith(".yaml"):
            text = yaml_dump(record, sort_keys=False)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _without_non_finite(record: Any) -> Any:
    """A copy with `None` in place of NaN and infinity."""
    if isinstance(record, dict):
        return {key: _without_non_finite(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_without_non_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def read_record(path: Path) -> Any:
    """The content of a JSON file. Raises [`UsageError`] if it cannot be read, or holds NaN or infinity."""

    def refuse(number: str):
        raise ValueError(f"{number} is no number")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except UsageError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"Cannot read {path}: {error}") from error


def find_file(name: str, file: str) -> str | None:
    """Path of a file of a checkpoint, in its folder or downloaded; `None` if it has none."""
    optional = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(name, file, **optional)


def read_card_data(name: str) -> dict[str, Any]:
    """The metadata of a checkpoint's card; empty if it has none. Raises [`UsageError`] if they cannot be read."""
    card = find_file(name, "README.md")
    try:
        data = (huggingface_hub.metadata_load(card) if card else None) or {}
    except Exception as error:  # of the YAML parser, or of huggingface_hub
        raise UsageError(f"Cannot read the metadata of {card}: {' '.join(str(error).split())}") from error
    check_values(f"The card of {name}", data)
    for key in ("license", "tags", "datasets"):
        value = data.get(key) or ""
        if not all(isinstance(item, str) for item in (value if isinstance(value, list) else [value])):
            raise UsageError(f"The metadata of {card} have {key}={value!r}: write text, or a list of texts.")
    return data


def draw_examples(folder: Path, labels: Any) -> None:
    """Draw the [`EXAMPLES`] that are among the labels, as `digit-2.png` and so on."""
    for label in EXAMPLES.keys() & set(labels):
        image = PIL.Image.new("L", (28, 28))
        PIL.ImageDraw.Draw(image).line(EXAMPLES[label], fill=255, width=2, joint="curve")
        image.save(folder / f"digit-{label}.png")
