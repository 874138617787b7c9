"""Convert a checkpoint to a form that needs none of this code, or back, or make a Space of it."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jinja2
from huggingface_hub import ModelCardData

from ..cli.arguments import arg
from ..cli.errors import UsageError, printable
from ..cli.files import check_writable, replacing_files
from ..cli.inputs import read_text
from ..configuration_vit_mnist import VitMnistConfig
from .convert import export_vit, import_checkpoint
from .folder import DEFAULT_MODEL, load_checkpoint, quiet, read_card_data, save_checkpoint
from .onnx import export_onnx
from .space import TABLE, export_space, is_space, space_files
from .timm import export_timm

# Each writes a folder from a model and a processor, and returns a sentence for each setting that is lost.
FORMATS: dict[str, Callable[..., list[str]]] = {
    "vit": export_vit, "vit-rgb": partial(export_vit, rgb=True), "timm": export_timm, "onnx": export_onnx,
}  # fmt: skip
FORMAT_HELP = (
    "vit: transformers' own ViT, one channel. vit-rgb: the same with three channels, for pipelines. timm. onnx. "
    "import: the inverse, from vit, vit-rgb, timm or a file with timm's names. space: the page that draws and reads "
    "digits, as a static Space."
)


@dataclass
class ExportArguments:
    """What to convert, and to what."""

    format: str = field(metadata={"help": FORMAT_HELP, "choices": [*FORMATS, "import", "space"]})
    output: str = field(
        metadata={"help": "Folder to write. It must be empty, not exist, or, for space, hold a Space."}
    )
    model: str | None = arg(
        None,
        "Checkpoint folder, Hub id, or, for import, a file or folder. Default: the newest finished run in outputs/, "
        "else the bundled vit-mnist-tiny; for space, all bundled checkpoints.",
    )
    num_attention_heads: int = arg(
        VitMnistConfig.num_attention_heads, "Heads of the imported network. Weight files do not record them."
    )
    push_to_hub: str | None = arg(
        None, "Space on the Hub, NAME or NAMESPACE/NAME, to push the folder to: for space only."
    )


def run_export(args: ExportArguments) -> None:
    """Write the folder completely or not at all. Raises [`UsageError`] if the folder is not empty, or the checkpoint
    is missing or cannot be converted."""
    folder = Path(args.output)
    if os.path.isfile(folder):  # `Path.is_file` raises for a name that is too long
        raise UsageError(f"{folder} is a file: choose another --output.")
    check_writable(folder)
    makes_space = args.format == "space"
    if args.push_to_hub and not makes_space:
        raise UsageError(f"--push_to_hub pushes a Space, got --format {args.format}: use --format space.")
    if any(folder.iterdir()) and not (makes_space and is_space(folder)):
        raise UsageError(f"{folder} is not empty: choose another --output.")
    names = [args.model] if args.model else []
    lost: list[str] = []
    args = replace(args, model=args.model or str(DEFAULT_MODEL))
    name = _plain(Path(args.model).resolve().name)
    if args.format == "import":
        model, processor = import_checkpoint(args.model, args.num_attention_heads)
        card = f"---\nlibrary_name: transformers\n---\n\n# vit-mnist\n\nImported from {name}.\n"
        save_checkpoint(folder, model, processor, card, records={})
    elif makes_space:
        table = folder / TABLE
        owned = space_files(read_text(table)) if table.exists() else ()
        with replacing_files(folder, owned=owned) as staging, quiet():
            lost = export_space(staging, names)
    else:
        model, processor = load_checkpoint(args.model)
        with replacing_files(folder) as staging, quiet():
            lost = FORMATS[args.format](model.eval(), processor, staging)
            card = fill_export_card(args, name, model.config.image_size, lost)
            (staging / "README.md").write_text(card, encoding="utf-8")
    for sentence in lost:
        print(printable(f"Not exported: {sentence}"))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(printable(f"{path.stat().st_size:>9,} bytes  {path}"))
    if args.push_to_hub:
        from .hub import push_space  # the other exports do without the Hub's code

        print(f"Pushed to {push_space(folder, args.push_to_hub)}")


def _plain(text: str) -> str:
    """Text on one line, with escapes for HTML and links."""
    return re.sub(r"[\\`<>]|\](?=[(\[:])", r"\\\g<0>", printable(" ".join(text.split())))


def fill_export_card(args: ExportArguments, name: str, image_size: int, lost: list[str]) -> str:
    """The card of an export, with the license, the tags and the data of the checkpoint's own card, if it has one."""
    known = read_card_data(args.model)
    data = ModelCardData(
        library_name={"timm": "timm", "onnx": "transformers.js"}.get(args.format, "transformers"),
        pipeline_tag="image-classification", ignore_metadata_errors=True,
        **{key: known[key] for key in ("license", "tags", "datasets") if known.get(key)},
    )  # fmt: skip
    template = jinja2.Template(Path(__file__).with_name("export_card.md").read_text(encoding="utf-8"))
    values = {"name": name, "format": args.format, "size": image_size, "lost": map(_plain, lost)}
    return template.render(metadata=data.to_yaml(), **values) + "\n"
