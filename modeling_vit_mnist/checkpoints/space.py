"""Write the page of `demo/web` with checkpoints as a folder that stands alone: a static Space of the Hub."""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import jinja2
import torch
from huggingface_hub.utils import yaml_dump
from safetensors import safe_open

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
PAGE_SUFFIXES = (".html", ".js", ".css")
# Settings that the page reads.
CONFIG_FIELDS = {
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "layer_norm_eps",
    "qkv_bias", "id2label", "label2id", "hidden_dropout_prob", "attention_probs_dropout_prob",
}  # fmt: skip
# Those that must be in the files: without them, the page would compute something else.
READ_FIELDS = {
    "config.json": (
        "image_size", "patch_size", "num_attention_heads", "num_hidden_layers", "layer_norm_eps", "id2label",
    ),
    "preprocessor_config.json": ("image_mean", "image_std", "do_deskew"),
}  # fmt: skip
PROCESSOR_FIELDS = {"do_frame", "do_deskew", "image_mean", "image_std", "resample"}


def is_space(folder: Path) -> bool:
    """Whether a folder holds what [`export_space`] writes, and may be written again."""
    return all((folder / name).is_file() for name in ("README.md", "index.html", TABLE))


def space_files(table: str) -> list[str]:
    """The files of a Space that [`export_space`] wrote with this `checkpoint_table.js`: the page's, and those of the
    checkpoints in the table. Other files in it are the user's."""
    page = [path.name for path in PAGE.iterdir() if path.suffix in PAGE_SUFFIXES]
    folders = re.findall(r'"folder": "([\w-][\w.-]*)"', table)
    copies = [f"{folder}/{file}" for folder in folders for file in (*MODEL_FILES, RESULTS)]
    return [*page, "README.md", LICENSE, *copies]


def export_space(folder: Path, names: Collection[str]) -> list[str]:
    """Write the page with checkpoints, folders or Hub ids, or with the bundled ones if there are no `names`. Returns a
    sentence for each setting that the page ignores. Raises [`UsageError`] for a checkpoint that the page cannot
    compute."""
    if not (PAGE / "index.html").is_file():
        raise UsageError(f"The page is missing: no folder {PAGE}.")
    names = names or [str(path) for path in map(asset, BUNDLED) if path.is_dir()]
    for path in PAGE.iterdir():
        if path.suffix in PAGE_SUFFIXES:
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(asset("data/mnist-5k") / "LICENSE", folder / LICENSE)
    table, licenses, lost = {}, set(), []
    for name in names:
        model, processor = load_checkpoint(name)
        lost += _check(name, model, processor)
        target = re.sub(r"[^\w.-]+", "-", Path(name).resolve().name).strip(".-") or "checkpoint"
        licenses.add(_copy(name, folder / target))
        _check_copy(name, folder / target, model, processor)
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
    results = read_record(Path(found[RESULTS])) if found[RESULTS] else None
    if isinstance(results, dict) and results.get("weights") in (None, hash_weights(target)):
        shutil.copyfile(found[RESULTS], target / RESULTS)  # older versions did not record the weights
    license = read_card_data(name).get("license")
    return license if isinstance(license, str) else None


def _check_copy(
    name: str, copy: Path, model: VitMnistForImageClassification, processor: VitMnistImageProcessor
) -> None:
    """Raise [`UsageError`] if the files of a checkpoint do not say what it is loaded as: the page knows no other names
    and defaults."""
    advice = f"Load {name} in Python, and save it with save_pretrained."
    texts = model.config.to_json_string(), processor.to_json_string()
    for (file, fields), text in zip(READ_FIELDS.items(), texts, strict=True):
        record, values = read_record(copy / file), json.loads(text)
        for field in fields:
            if record.get(field) != values[field]:
                raise UsageError(
                    f"{file} of {name} has {field}={record.get(field)}, and is loaded with {values[field]}. {advice}"
                )
    with safe_open(copy / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        kinds = {weights.get_slice(key).get_dtype() for key in names}
    if names != model.state_dict().keys() or kinds != {"F32"}:
        raise UsageError(f"model.safetensors of {name} has other names or types than those of the page. {advice}")
