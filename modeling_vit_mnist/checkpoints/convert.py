"""A checkpoint as transformers' own ViT, as a timm model, and back. Exports keep the bits of all weights."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.models.vit import ViTConfig, ViTForImageClassification

from ..cli.errors import UsageError
from ..configuration_vit_mnist import VitMnistConfig
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification

# Names of our parameters, which are timm's with the prefix `vit.`, and of transformers' ViT.
HF_VIT_NAMES = (
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
# Fields that both configurations have.
SHARED_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "image_size", "patch_size", "qkv_bias",
    "id2label", "label2id",
)  # fmt: skip
# Weights of red, green and blue. With any weights that add up to 1, a gray image has the same logits. Powers of two
# keep the bits of the network's weights.
CHANNEL_WEIGHTS = (0.25, 0.5, 0.25)
PATCH_WEIGHT = "vit.embeddings.patch_embeddings.projection.weight"
State = dict[str, torch.Tensor]


def to_hf_vit(state: State) -> State:
    """Our state dict as that of [`transformers.ViTForImageClassification`], with qkv in three parts."""
    renamed = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"vit\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            layer, kind = match.groups()
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"vit.layers.{layer}.attention.{part}_proj.{kind}"] = piece.clone()
            continue
        for ours, theirs in HF_VIT_NAMES:
            if re.match(ours + r"(\.|$)", name):
                renamed[re.sub("^" + ours, theirs, name)] = tensor
    return renamed


def from_hf_vit(state: State, expected: State) -> State:
    """The inverse of [`to_hf_vit`], with the names of `expected`, a state dict of our model of the same size."""
    return {name: torch.cat([state[theirs] for theirs in to_hf_vit({name: own})]) for name, own in expected.items()}


def hf_vit_config(config: VitMnistConfig, num_channels: int) -> ViTConfig:
    return ViTConfig(**{name: getattr(config, name) for name in SHARED_FIELDS}, num_channels=num_channels)


def hf_vit_model(model: VitMnistForImageClassification, rgb: bool = False) -> ViTForImageClassification:
    """transformers' own class with our weights: the same logits, to rounding. `rgb` gives it three channels instead of
    one, for pipelines, which convert every image to RGB."""
    state = to_hf_vit(model.state_dict())
    if rgb:
        state[PATCH_WEIGHT] = torch.cat([weight * state[PATCH_WEIGHT] for weight in CHANNEL_WEIGHTS], dim=1)
    theirs = ViTForImageClassification(hf_vit_config(model.config, 3 if rgb else 1)).to(model.dtype)
    theirs.load_state_dict(state)
    return theirs.eval()


def hf_vit_processor(processor: VitMnistImageProcessor, channels: int):
    from transformers.models.vit import ViTImageProcessor  # here, since it warns if torchvision is missing

    size = {"height": processor.size["height"], "width": processor.size["width"]}
    return ViTImageProcessor(
        size=size, resample=processor.resample, rescale_factor=processor.rescale_factor,
        image_mean=list(processor.image_mean) * channels, image_std=list(processor.image_std) * channels,
    )  # fmt: skip


def export_vit(model, processor, folder: Path, rgb: bool = False) -> None:
    """Folder of a [`transformers.ViTForImageClassification`] that loads with transformers alone."""
    hf_vit_model(model, rgb).save_pretrained(folder)
    hf_vit_processor(processor, 3 if rgb else 1).save_pretrained(folder)


def export_timm(model, processor, folder: Path) -> None:
    """Folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads with every weight."""
    config = model.config
    state = {name.removeprefix("vit."): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    network = {
        "img_size": config.image_size, "patch_size": config.patch_size, "in_chans": config.num_channels,
        "embed_dim": config.hidden_size, "depth": config.num_hidden_layers, "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio, "qkv_bias": config.qkv_bias,
    }  # fmt: skip
    pretrained = {
        "num_classes": config.num_labels, "input_size": [config.num_channels, config.image_size, config.image_size],
        "fixed_input_size": True, "interpolation": "bilinear", "crop_pct": 1.0, "mean": list(processor.image_mean),
        "std": list(processor.image_std), "first_conv": "patch_embed.proj", "classifier": "head",
        "label_names": [config.id2label[index] for index in range(config.num_labels)],
    }  # fmt: skip
    record = {
        "architecture": "vit_tiny_patch16_224", "num_classes": config.num_labels, "num_features": config.hidden_size,
        "model_args": network, "pretrained_cfg": pretrained,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def import_checkpoint(
    path: str | Path, num_attention_heads: int = VitMnistConfig.num_attention_heads
) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    """Convert a checkpoint to ours: the folder of a transformers ViT or a timm model, or a `.pth`, `.pt`, `.bin` or
    `.safetensors` file with timm's names, which does not contain the number of heads. Raises [`UsageError`] if it is
    missing, cannot be read, or is a network that ours cannot represent."""
    path = Path(path)
    if not path.is_dir():
        return _from_timm(_read_state(path), num_attention_heads), VitMnistImageProcessor()
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no readable config.json: {error}") from error
    if config.get("model_type") == "vit":
        return _import_hf_vit(path)
    if "model_args" not in config:
        raise UsageError(f"{path} holds neither a transformers ViT nor a timm model with model_args.")
    heads = config["model_args"].get("num_heads", num_attention_heads)
    pretrained = config.get("pretrained_cfg", {})
    model = _from_timm(_read_state(path / "model.safetensors"), heads, pretrained.get("label_names"))
    return model, _own_processor(path, pretrained.get("mean"), pretrained.get("std"))


def _read_state(path: Path) -> State:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors raise exceptions of their own
        kind = "a safetensors file" if path.suffix == ".safetensors" else "a .pth file of plain tensors"
        raise UsageError(f"Cannot read the weights in {path}: this is not {kind}.") from error
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or "patch_embed.proj.weight" not in state:
        raise UsageError(f"{path} holds no state dict with timm's names: patch_embed.proj.weight is missing.")
    return state


def _from_timm(state: State, num_heads: int, names: list[str] | None = None) -> VitMnistForImageClassification:
    try:
        width, channels, patch, _ = state["patch_embed.proj.weight"].shape
        config = VitMnistConfig(
            hidden_size=width, num_channels=channels, patch_size=patch, num_attention_heads=num_heads,
            image_size=patch * math.isqrt(state["pos_embed"].shape[1] - 1),
            num_hidden_layers=sum(name.endswith(".norm1.weight") for name in state),
            intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
            qkv_bias="blocks.0.attn.qkv.bias" in state,
            id2label=dict(enumerate(names or map(str, range(state["head.weight"].shape[0])))),
        )  # fmt: skip
        model = VitMnistForImageClassification(config)
        model.load_state_dict({name if name.startswith("head.") else f"vit.{name}": t for name, t in state.items()})
    except (KeyError, RuntimeError, ValueError, StrictDataclassError) as error:
        raise UsageError(f"These weights do not match a ViT classifier: {' '.join(str(error).split())}") from error
    return model


def _import_hf_vit(folder: Path) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    try:
        theirs, info = ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UsageError(f"Cannot read the checkpoint in {folder}: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise UsageError(f"The checkpoint in {folder} is incomplete: {missing[0]} is missing.")
    config = theirs.config
    if config.num_channels not in (1, 3):
        raise UsageError(f"{folder} holds a network with {config.num_channels} channels: only 1 or 3 can be imported.")
    state = theirs.state_dict()
    state[PATCH_WEIGHT] = state[PATCH_WEIGHT].sum(1, keepdim=True)  # the effect of a gray image
    own = VitMnistConfig(**{name: getattr(config, name) for name in SHARED_FIELDS})
    model = VitMnistForImageClassification(own).to(theirs.dtype)
    model.load_state_dict(from_hf_vit(state, model.state_dict()))
    record = folder / "preprocessor_config.json"
    settings = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return model, _own_processor(folder, settings.get("image_mean"), settings.get("image_std"), config.image_size)


def _own_processor(
    folder: Path, mean: list[float] | None, std: list[float] | None, image_size: int = VitMnistConfig.image_size
) -> VitMnistImageProcessor:
    values: dict[str, Any] = {"image_mean": mean, "image_std": std}
    for name, value in values.items():
        if value and len(set(value)) > 1:
            raise UsageError(f"{folder} normalizes colors differently ({name} {value}); a grayscale processor cannot.")
    return VitMnistImageProcessor(size=image_size, **{name: value[:1] for name, value in values.items() if value})
