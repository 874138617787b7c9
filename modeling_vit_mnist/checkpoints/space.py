"""Write the page of `demo/web` with checkpoints as a folder that stands alone: a static Space of the Hub."""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import jinja2
import torch
from huggingface_hub.utils import yaml_dump

from ..cli.assets import asset
from ..cli.errors import UsageError
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification
from .folder import find_file, hash_weights, load_checkpoint, read_card_data, read_record
from .settings import BASE_FIELDS, WITHOUT_LOGITS, changed_fields, describe_losses, refuse

PAGE = asset("demo/web")
# A wheel holds only the first one.
BUNDLED = ("vit-mnist-tiny", "vit-mnist-best", "vit-mnist-small")
MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
RESULTS = "all_results.json"
TABLE = "checkpoint_table.js"
LICENSE = "LICENSE-mnist-5k"  # of the examples on the page
# All that a Space of ours holds. Such files that are not written again are deleted.
SPACE_FILES = ("README.md", LICENSE, "*.html", "*.js", "*.css", *(f"*/{name}" for name in (*MODEL_FILES, RESULTS)))
# Settings that the page reads.
CONFIG_FIELDS = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "layer_norm_eps",
    "qkv_bias", "id2label", "label2id", "hidden_dropout_prob", "attention_probs_dropout_prob",
}  # fmt: skip
PROCESSOR_FIELDS = {"do_frame", "do_deskew", "image_mean", "image_std", "resample", "background"}


def is_space(folder: Path) -> bool:
    """Whether a folder holds what [`export_space`] writes, and may be written again."""
    return all((folder / name).is_file() for name in ("README.md", "index.html", TABLE))


def export_space(folder: Path, names: Collection[str] = ()) -> list[str]:
    """Write the page with checkpoints, folders or Hub ids, by default the bundled ones. Returns a sentence for each
    setting that the page ignores. Raises [`UsageError`] for a checkpoint that the page cannot compute."""
    if not (PAGE / "index.html").is_file():
        raise UsageError(f"The page is missing: no folder {PAGE}.")
    names = names or [str(path) for path in map(asset, BUNDLED) if path.is_dir()]
    for path in PAGE.iterdir():
        if path.suffix in (".html", ".js", ".css"):
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(asset("data/mnist-5k") / "LICENSE", folder / LICENSE)
    table, licenses, lost = {}, set(), []
    for name in names:
        lost += _check(name, *load_checkpoint(name))
        target = re.sub(r"[^\w.-]+", "-", Path(name).resolve().name).strip(".-") or "checkpoint"
        licenses.add(_copy(name, folder / target))
        table[target.removeprefix("vit-mnist-") or target] = {"folder": target}
    (folder / TABLE).write_text(f"export const CHECKPOINTS = {json.dumps(table, indent=2)};\n", encoding="utf-8")
    card = {
        "title": "vit-mnist", "emoji": "✏️", "colorFrom": "yellow", "colorTo": "red", "sdk": "static",
        "app_file": "index.html", "pinned": False, "short_description": "Draw a digit, see attention",
        "license": licenses.pop() if len(licenses) == 1 else None,
        "models": [name for name in names if not Path(name).is_dir()],  # they are ids on the Hub
    }  # fmt: skip
    template = jinja2.Template(Path(__file__).with_name("space_card.md").read_text(encoding="utf-8"))
    metadata = yaml_dump({key: value for key, value in card.items() if value not in (None, [])}, sort_keys=False)
    (folder / "README.md").write_text(template.render(metadata=metadata.strip()) + "\n", encoding="utf-8")
    return lost


def _check(name: str, model: VitMnistForImageClassification, processor: VitMnistImageProcessor) -> list[str]:
    """A sentence for each setting of a checkpoint that the page ignores. Raises [`UsageError`] for what would change
    the logits."""
    refuse("the page", changed_fields(model.config, CONFIG_FIELDS | WITHOUT_LOGITS | BASE_FIELDS))
    if model.dtype != torch.float32:
        refuse("the page", {"dtype": str(model.dtype).removeprefix("torch.")})
    lost = describe_losses(processor, "the page", PROCESSOR_FIELDS)
    return lost if processor.do_frame else [*lost, f"{name} has do_frame=False. The page frames each picture."]


def _copy(name: str, target: Path) -> str | None:
    """Copy what the page reads of a checkpoint. Returns the license in its card."""
    found = {file: find_file(name, file) for file in (*MODEL_FILES, RESULTS)}
    for file in MODEL_FILES:
        if found[file] is None:
            raise UsageError(f"{name} lacks {file}, which the page reads.")
    if target.exists():
        raise UsageError(f"Two checkpoints have the name {target.name!r}: rename one.")
    target.mkdir()
    for file in MODEL_FILES:
        shutil.copyfile(found[file], target / file)
    if found[RESULTS] and read_record(Path(found[RESULTS])).get("weights") in (None, hash_weights(target)):
        shutil.copyfile(found[RESULTS], target / RESULTS)  # older versions did not record the weights
    return read_card_data(name).get("license")
