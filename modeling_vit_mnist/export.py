"""
A checkpoint for those who have none of this code: as transformers' own ViT, for timm, as ONNX; and the way back.

Nothing is approximated: weights keep their bits on the way out and back (int8 ONNX aside, which is for reading only).
"""

import json
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit import ViTImageProcessor

from . import hub
from .configuration_vit_mnist import VitMnistConfig
from .errors import InputError
from .files import check_writable, replacing_files
from .image_processing_vit_mnist import VitMnistImageProcessor
from .inference import DEFAULT_MODEL
from .modeling_vit_mnist import VitMnistForImageClassification


# Our parameters, which are timm's under the prefix `vit.`, and what transformers calls them.
IN_TREE_NAMES = (
    (r"vit\.cls_token", "vit.embeddings.cls_token"),
    (r"vit\.pos_embed", "vit.embeddings.position_embeddings"),
    (r"vit\.patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
    (r"vit\.blocks\.(\d+)\.norm1", r"vit.layers.\1.layernorm_before"),
    (r"vit\.blocks\.(\d+)\.norm2", r"vit.layers.\1.layernorm_after"),
    (r"vit\.blocks\.(\d+)\.attn\.proj", r"vit.layers.\1.attention.o_proj"),
    (r"vit\.blocks\.(\d+)\.mlp", r"vit.layers.\1.mlp"),
    (r"vit\.norm", "vit.layernorm"),
    (r"head", "classifier"),
)
# What the two configurations have in common.
SHARED_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "image_size", "patch_size", "qkv_bias",
    "id2label", "label2id",
)  # fmt: skip
# How much red, green and blue count. A grey image gives the same logits with any weights that add up to 1; powers of
# two leave the bits of the weights alone, and green, which the eye sees best, counts most.
CHANNEL_WEIGHTS = (0.25, 0.5, 0.25)


def to_in_tree(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict as that of [`transformers.ViTForImageClassification`]: the fused qkv in three parts."""
    renamed = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"vit\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            layer, kind = match.groups()
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"vit.layers.{layer}.attention.{part}_proj.{kind}"] = piece.clone()
            continue
        for ours, theirs in IN_TREE_NAMES:
            if re.match(ours + r"(\.|$)", name):
                renamed[re.sub("^" + ours, theirs, name)] = tensor
    return renamed


def from_in_tree(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The way back.

    Args:
        state: Of a [`transformers.ViTForImageClassification`].
        expected: A state dict of our model of the same size, for its names.
    """
    renamed = {}
    for name in expected:
        if ".attn.qkv." in name:
            stem, kind = name.replace(".blocks.", ".layers.").split(".attn.qkv.")
            renamed[name] = torch.cat([state[f"{stem}.attention.{part}_proj.{kind}"] for part in "qkv"])
        else:
            (theirs,) = to_in_tree({name: expected[name]})
            renamed[name] = state[theirs]
    return renamed


def in_tree_config(config: VitMnistConfig, num_channels: int) -> ViTConfig:
    return ViTConfig(**{name: getattr(config, name) for name in SHARED_FIELDS}, num_channels=num_channels)


def in_tree_model(model: VitMnistForImageClassification, rgb: bool = False) -> ViTForImageClassification:
    """
    transformers' own class with our weights: the same logits, to rounding.

    Args:
        model: One channel.
        rgb (`bool`): With three channels instead, for pipelines, which turn every image to RGB.
    """
    state = to_in_tree(model.state_dict())
    if rgb:
        name = "vit.embeddings.patch_embeddings.projection.weight"
        state[name] = torch.cat([weight * state[name] for weight in CHANNEL_WEIGHTS], dim=1)
    theirs = ViTForImageClassification(in_tree_config(model.config, 3 if rgb else 1)).to(model.dtype)
    theirs.load_state_dict(state)
    return theirs.eval()


def in_tree_processor(processor: VitMnistImageProcessor, channels: int) -> ViTImageProcessor:
    return ViTImageProcessor(
        size={"height": processor.size["height"], "width": processor.size["width"]},
        resample=processor.resample,
        rescale_factor=processor.rescale_factor,
        image_mean=list(processor.image_mean) * channels,
        image_std=list(processor.image_std) * channels,
    )


def export_vit(model, processor, folder: Path, rgb: bool = False) -> None:
    """Folder of a [`transformers.ViTForImageClassification`] that loads with transformers alone."""
    channels = 3 if rgb else 1
    in_tree_model(model, rgb).save_pretrained(folder)
    in_tree_processor(processor, channels).save_pretrained(folder)


def export_vit_rgb(model, processor, folder: Path) -> None:
    export_vit(model, processor, folder, rgb=True)


def export_timm(model, processor, folder: Path) -> None:
    """Folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, strictly."""
    config = model.config
    state = {name.removeprefix("vit."): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    mean, std = list(processor.image_mean), list(processor.image_std)
    record = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "in_chans": config.num_channels,
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": config.intermediate_size / config.hidden_size,
            "qkv_bias": config.qkv_bias,
        },
        "pretrained_cfg": {
            "num_classes": config.num_labels,
            "input_size": [config.num_channels, config.image_size, config.image_size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": mean,
            "std": std,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": [config.id2label[index] for index in range(config.num_labels)],
        },
    }
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


class WholePipeline(nn.Module):
    """From grey uint8 images to probabilities, the processor's arithmetic included."""

    def __init__(self, model: VitMnistForImageClassification, processor: VitMnistImageProcessor):
        super().__init__()
        self.model = model
        self.factor, self.mean, self.std = processor.rescale_factor, processor.image_mean[0], processor.image_std[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixel_values = (images.unsqueeze(1).float() * self.factor - self.mean) / self.std
        return self.model(pixel_values).logits.softmax(-1)


class Logits(nn.Module):
    """From one or three channels to logits, without an output class, which ONNX has no word for."""

    def __init__(self, model: VitMnistForImageClassification):
        super().__init__()
        self.model = model
        self.register_buffer("weights", torch.tensor(CHANNEL_WEIGHTS).view(1, -1, 1, 1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        grey = (self.weights * pixel_values).sum(1, keepdim=True)  # a single channel is broadcast to three
        return self.model(grey).logits


def export_onnx(model: VitMnistForImageClassification, processor: VitMnistImageProcessor, folder: Path) -> None:
    """
    ONNX files with a dynamic batch, laid out as transformers.js expects them, the class names in their metadata:

    - `onnx/model.onnx`: `pixel_values` `(batch, channels, height, width)`, float32, of one channel or three, to
      `logits` `(batch, classes)`;
    - `onnx/model_quantized.onnx`: the same, the weights of its matrix products in int8;
    - `onnx/model_images.onnx`: `images` `(batch, height, width)`, grey uint8, to `probabilities` `(batch, classes)`.

    And `config.json` and `preprocessor_config.json` of the in-tree ViT, which transformers.js knows; with three
    channels, since it turns every image to RGB.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = model.eval()
    model.set_attn_implementation("eager")
    side = model.config.image_size
    (folder / "onnx").mkdir()
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    plain = folder / "onnx" / "model.onnx"
    # Traced with two images: with one, the batch would be taken for a constant.
    _write_onnx(Logits(model), torch.zeros(2, 1, side, side), "pixel_values", "logits", names, plain)
    whole = WholePipeline(model, processor).eval()
    images = torch.zeros(2, side, side, dtype=torch.uint8)
    _write_onnx(whole, images, "images", "probabilities", names, folder / "onnx" / "model_images.onnx")
    with _quiet():
        quantize_dynamic(
            plain, folder / "onnx" / "model_quantized.onnx", weight_type=QuantType.QInt8, per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
        )  # fmt: skip
    in_tree_config(model.config, 3).save_pretrained(folder)
    in_tree_processor(processor, 3).save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress reports and warnings about packages that are not needed."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _write_onnx(
    module: nn.Module, example: torch.Tensor, given: str, result: str, names: list[str], path: Path
) -> None:
    import onnx

    with _quiet():
        program = torch.onnx.export(
            module, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=[given], output_names=[result], verbose=False,
        )  # fmt: skip
    proto = program.model_proto
    for item in (*proto.graph.node, *proto.graph.value_info, *proto.graph.initializer, proto.graph):
        item.doc_string = ""
        del item.metadata_props[:]  # stack traces of this machine, nine tenths of the file
    del proto.graph.value_info[:]
    if given == "pixel_values":
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "channels"  # see `Logits`
    onnx.helper.set_model_props(proto, {"labels": json.dumps(names)})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, path)


def import_checkpoint(
    path: str | Path, num_attention_heads: int = VitMnistConfig.num_attention_heads
) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    """
    A checkpoint of another form as ours: the exports above, or any of their kind, or a file of timm's names.

    Args:
        path: Folder of an in-tree ViT or of a timm model, or a `.pth`, `.pt`, `.bin` or `.safetensors` file.
        num_attention_heads (`int`): For files, which do not say.

    Raises:
        InputError: there is none, it cannot be read, or it is a network that ours cannot be.
    """
    path = Path(path)
    if path.is_dir():
        try:
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} holds no readable config.json: {error}") from error
        if config.get("model_type") == "vit":
            return _import_in_tree(path)
        if "model_args" not in config:
            raise InputError(f"{path} holds neither an in-tree ViT nor a timm model with model_args.")
        heads = config["model_args"].get("num_heads", num_attention_heads)
        mean, std = (config.get("pretrained_cfg", {}).get(name) for name in ("mean", "std"))
        names = config.get("pretrained_cfg", {}).get("label_names")
        return _from_timm(_read_state(path / "model.safetensors"), heads, names), _own_processor(path, mean, std)
    return _from_timm(_read_state(path), num_attention_heads), VitMnistImageProcessor()


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors each have their own
        kind = "a safetensors file" if path.suffix == ".safetensors" else "a .pth file of plain tensors"
        raise InputError(f"The weights in {path} cannot be read: this is not {kind}.") from error
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or "patch_embed.proj.weight" not in state:
        raise InputError(f"{path} holds no state dict of timm's names: patch_embed.proj.weight is missing.")
    return state


def _from_timm(
    state: dict[str, torch.Tensor], num_attention_heads: int, names: list[str] | None = None
) -> VitMnistForImageClassification:
    try:
        width, channels, patch, _ = state["patch_embed.proj.weight"].shape
        config = VitMnistConfig(
            hidden_size=width,
            num_channels=channels,
            patch_size=patch,
            image_size=patch * math.isqrt(state["pos_embed"].shape[1] - 1),
            num_hidden_layers=sum(name.endswith(".norm1.weight") for name in state),
            num_attention_heads=num_attention_heads,
            intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
            qkv_bias="blocks.0.attn.qkv.bias" in state,
            id2label=dict(enumerate(names or map(str, range(state["head.weight"].shape[0])))),
        )
        model = VitMnistForImageClassification(config)
        model.load_state_dict({name if name.startswith("head.") else f"vit.{name}": t for name, t in state.items()})
    except (KeyError, RuntimeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"These weights are not of such a network: {' '.join(str(error).split())}") from error
    return model


def _import_in_tree(folder: Path) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    try:
        theirs, info = ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(f"The checkpoint in {folder} cannot be read: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"The checkpoint in {folder} is incomplete: {missing[0]} is missing.")
    config = theirs.config
    if config.num_channels not in (1, 3):
        raise InputError(f"{folder} holds a network of {config.num_channels} channels: 1 or 3 can be imported.")
    state = theirs.state_dict()
    weight = "vit.embeddings.patch_embeddings.projection.weight"
    state[weight] = state[weight].sum(1, keepdim=True)  # what a grey image meets
    own = VitMnistConfig(**{name: getattr(config, name) for name in SHARED_FIELDS})
    model = VitMnistForImageClassification(own).to(theirs.dtype)
    model.load_state_dict(from_in_tree(state, model.state_dict()))
    record = folder / "preprocessor_config.json"
    settings = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return model, _own_processor(folder, settings.get("image_mean"), settings.get("image_std"), config.image_size)


def _own_processor(
    folder: Path, mean: list[float] | None, std: list[float] | None, image_size: int = VitMnistConfig.image_size
) -> VitMnistImageProcessor:
    values = {name: value for name, value in (("image_mean", mean), ("image_std", std)) if value}
    for name, value in values.items():
        if len(set(value)) > 1:
            raise InputError(f"{folder} normalises colours differently ({name} {value}): no grey processor does that.")
    return VitMnistImageProcessor(size=image_size, **{name: value[:1] for name, value in values.items()})


FORMATS = {"vit": export_vit, "vit-rgb": export_vit_rgb, "timm": export_timm, "onnx": export_onnx}
SNIPPETS = {
    "vit": """```python
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("FOLDER")
processor = AutoImageProcessor.from_pretrained("FOLDER")  # takes grey images
```""",
    "vit-rgb": """```python
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER")
```""",
    "timm": """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)
```""",
    "onnx": """```js
import { pipeline } from "@huggingface/transformers";

const classify = await pipeline("image-classification", "./FOLDER", { dtype: "fp32" }); // or "q8"
```

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/onnx/model_images.onnx")
probabilities = session.run(None, {"images": np.zeros((1, 28, 28), np.uint8)})[0]
```""",
}


@dataclass
class ExportArguments:
    """What to turn into what."""

    format: str = field(
        metadata={
            "help": "vit: transformers' own class, one channel. vit-rgb: the same with three, for pipelines. timm. "
            "onnx. import: the way back, from any of the first three or a file of timm's names.",
            "choices": [*FORMATS, "import"],
        }
    )
    output: str = field(metadata={"help": "Folder to write; must not exist, or be empty."})
    model: str = field(
        default=str(DEFAULT_MODEL), metadata={"help": "Checkpoint folder, Hub id, or, to import, a file or folder."}
    )
    num_attention_heads: int = field(
        default=VitMnistConfig.num_attention_heads, metadata={"help": "To import a file, which does not say."}
    )


def run_export(args: ExportArguments) -> None:
    """
    Write the folder asked for, whole or not at all.

    Raises:
        InputError: the folder is not empty, or there is no such checkpoint.
    """
    folder = Path(args.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: choose another --output.")
    check_writable(folder)
    if args.format == "import":
        with hub.without_progress_bars():
            model, processor = import_checkpoint(args.model, args.num_attention_heads)
        card = f"---\nlibrary_name: transformers\n---\n\n# vit-mnist\n\nImported from {Path(args.model).name}.\n"
        hub.save_checkpoint(folder, model, processor, card, records={})
    else:
        model, processor = hub.load_checkpoint(args.model)
        with replacing_files(folder) as staging, hub.without_progress_bars(), _quiet():
            FORMATS[args.format](model.eval(), processor, staging)
            (staging / "README.md").write_text(_card(args), encoding="utf-8")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size:>9,} bytes  {path}")


def _card(args: ExportArguments) -> str:
    library = {"timm": "timm", "onnx": "transformers.js"}.get(args.format, "transformers")
    name = Path(args.model).name
    return (
        f"---\nlibrary_name: {library}\npipeline_tag: image-classification\nlicense: mit\ntags:\n- mnist\n---\n\n"
        f"# {name} as {args.format}\n\nThe weights of {name}, whose card has the results and the limits.\n\n"
        f"{SNIPPETS[args.format]}\n"
    )
