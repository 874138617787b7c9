"""Checkpoint folders: load one, or write one that is complete: weights, config, processor, code, card and records."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import PIL.Image
import PIL.ImageDraw
from huggingface_hub.utils import yaml_dump
from safetensors import SafetensorError

from ..cli.assets import asset
from ..cli.errors import UsageError
from ..cli.files import replacing_files
from ..configuration_vit_mnist import VitMnistConfig
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification

DEFAULT_MODEL = asset("vit-mnist-tiny")
# The code that travels with every checkpoint.
CODE_FILES = tuple(f"{name}_vit_mnist.py" for name in ("configuration", "modeling", "image_processing", "framing"))
# The files of a complete checkpoint.
CHECKPOINT_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", *CODE_FILES, "README.md")
# Arguments of `from_pretrained` that say where to look.
LOCATION = ("revision", "subfolder", "token", "cache_dir", "force_download", "local_files_only")
# Pen strokes in an image of 28x28 pixels: the examples of the card's widget.
EXAMPLES = {
    "2": [(8, 9), (12, 5), (18, 7), (17, 13), (8, 22), (21, 22)],
    "4": [(17, 24), (17, 4), (7, 16), (22, 16)],
    "7": [(7, 7), (20, 7), (12, 24)],
}


def load_checkpoint(
    name_or_path: str | os.PathLike, ignore_mismatched_sizes: bool = False, **kwargs
) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    """Load a classifier and its processor from a folder or the Hub, and check that no weight is missing.

    `ignore_mismatched_sizes` initializes weights of another shape, such as a head for other classes. `kwargs` are
    passed on to `from_pretrained`.

    Raises:
        UsageError: the folder is missing or holds no checkpoint of this model, or weights are missing or unreadable.
        ConnectionError: the Hub cannot be reached and the checkpoint is not cached.
    """
    name = str(name_or_path)
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UsageError(f"{name} holds no checkpoint: config.json is missing.")
        if not any(folder.glob("*.safetensors")):
            raise UsageError(f"{name} holds no weights: model.safetensors is missing.")
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"No checkpoint folder {name!r}.")
    try:
        location = {key: value for key, value in kwargs.items() if key in LOCATION}
        config, _ = VitMnistConfig.get_config_dict(name, **location)
        if config.get("model_type") != VitMnistConfig.model_type:
            raise UsageError(f"{name} holds a model of type {config.get('model_type')!r}, not 'vit_mnist'.")
        model, info = VitMnistForImageClassification.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=ignore_mismatched_sizes, **kwargs
        )
        try:
            processor = VitMnistImageProcessor.from_pretrained(name, **location)
        except OSError:
            processor = VitMnistImageProcessor(size=model.config.image_size)
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise UsageError(f"No folder and no Hub repository {name!r} (or it is private).") from error
    except OSError as error:
        if folder.is_dir():
            raise UsageError(f"Cannot read the checkpoint in {name}: {error}") from error
        raise ConnectionError(f"No folder {name!r}, and downloading it from the Hub failed: {error}") from error
    except UsageError:
        raise
    except (SafetensorError, huggingface_hub.errors.StrictDataclassError, RuntimeError, ValueError) as error:
        raise UsageError(f"Cannot read the checkpoint in {name}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"The weights in {name} do not match this model: {len(missing)} missing, such as {missing[0]}."
        )
    return model, processor


def save_checkpoint(
    folder: str | os.PathLike, model: VitMnistForImageClassification, processor: Any, card: str,
    records: dict[str, Any],
) -> None:  # fmt: skip
    """Write a complete checkpoint folder: [`CHECKPOINT_FILES`], the digits of the card's widget, and `records` (file
    name to content, as JSON or YAML). The files are written to a temporary folder first and moved at the end, records
    last. Raises `OSError` if the folder cannot be written, or the disk is full. The old files are unchanged."""
    try:
        with replacing_files(Path(folder), last=records) as staging:
            model.save_pretrained(staging)
            processor.save_pretrained(staging)
            shutil.copymode(staging / "config.json", staging / "model.safetensors")  # readable for its owner only
            (staging / "README.md").write_text(card, encoding="utf-8")
            draw_examples(staging, model.config.id2label.values())
            write_records(staging, records)
    except SafetensorError as error:
        raise OSError(f"Cannot save the checkpoint to {folder}: {error}") from error


def write_records(folder: Path, records: dict[str, Any]) -> None:
    """Write `records`, file name to content, as YAML or JSON by the suffix of the name."""
    for name, record in records.items():
        text = yaml_dump(record, sort_keys=False) if name.endswith(".yaml") else json.dumps(record, indent=2) + "\n"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def draw_examples(folder: Path, labels: Any) -> None:
    """Draw the [`EXAMPLES`] that are among the labels, as `digit-2.png` and so on."""
    for label in EXAMPLES.keys() & set(labels):
        image = PIL.Image.new("L", (28, 28))
        PIL.ImageDraw.Draw(image).line(EXAMPLES[label], fill=255, width=2, joint="curve")
        image.save(folder / f"digit-{label}.png")
