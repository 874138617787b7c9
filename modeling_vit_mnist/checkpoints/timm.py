"""A checkpoint as a timm model, and back. timm itself is not needed."""

import functools
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from ..cli.errors import UsageError
from ..configuration_vit_mnist import LIMITS, VitMnistConfig
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification
from .checks import FLOATS, check_header
from .folder import check_problem
from .settings import (
    BASE_FIELDS,
    WITHOUT_LOGITS,
    changed_fields,
    describe_losses,
    fold_channels,
    normalization,
    own_processor,
    refuse,
)

logger = logging.getLogger(__name__)

# Arguments of timm's VisionTransformer by our fields.
NAMES = {
    "image_size": "img_size", "patch_size": "patch_size", "num_channels": "in_chans", "hidden_size": "embed_dim",
    "num_hidden_layers": "depth", "num_attention_heads": "num_heads", "qkv_bias": "qkv_bias",
    "attention_probs_dropout_prob": "attn_drop_rate",
}  # fmt: skip
# Activations by transformers' name. Those of the same function to rounding share a name in timm.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "quick_gelu": "quick_gelu",
    "relu": "relu", "relu6": "relu6", "leaky_relu": "leaky_relu", "silu": "silu", "swish": "silu", "mish": "mish",
    "hardswish": "hard_swish", "sigmoid": "sigmoid", "tanh": "tanh", "linear": "identity",
}  # fmt: skip
OWN_ACTIVATIONS = {theirs: ours for ours, theirs in reversed(ACTIVATIONS.items())} | {
    "swish": "silu", "hardswish": "hardswish",
}  # fmt: skip
LAYER_NORM_EPS = 1e-6  # of timm's LayerNorm, and the default here. No argument of a saved model changes it.
# Arguments that change the network, and the values that our network has.
FIXED = {
    "global_pool": "token", "class_token": True, "pos_embed": "learn", "no_embed_class": False, "reg_tokens": 0,
    "pre_norm": False, "final_norm": True, "fc_norm": False, "pool_include_prefix": False, "qk_norm": False,
    "scale_attn_norm": False, "scale_mlp_norm": False, "proj_bias": True, "norm_layer": "layernorm",
}  # fmt: skip
# Arguments without effect on the logits of an image of the usual size: of training and of other sizes.
WITHOUT_EFFECT = (
    "drop_rate", "pos_drop_rate", "proj_drop_rate", "patch_drop_rate", "drop_path_rate", "weight_init", "fix_init",
    "dynamic_img_size", "dynamic_img_pad", "strict_img_size",
)  # fmt: skip
# Architectures whose defaults are those of the class, and their number of heads.
PLAIN = r"(?:vit|deit)_(tiny|small|base|large|huge)_patch\d+_\d+"
HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
# timm's defaults of `pretrained_cfg`.
PRETRAINED = {
    "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic", "crop_pct": 0.875,
    "crop_mode": "center", "input_size": (3, 224, 224), "fixed_input_size": False,
}  # fmt: skip


def export_timm(model, processor, folder: Path) -> list[str]:
    """Folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads with every weight. Returns a sentence
    for each setting that is lost. Raises [`UsageError`] if the logits would change."""
    config = model.config
    check_problem("this model", config)
    carried = {*NAMES, "intermediate_size", "hidden_act", "hidden_dropout_prob"}
    refuse("timm", changed_fields(config, besides=carried | WITHOUT_LOGITS | BASE_FIELDS))
    if config.hidden_act not in ACTIVATIONS:
        refuse("timm", {"hidden_act": config.hidden_act})
    drop = config.hidden_dropout_prob
    network = {theirs: getattr(config, ours) for ours, theirs in NAMES.items()} | {
        "mlp_ratio": mlp_ratio(config), "act_layer": ACTIVATIONS[config.hidden_act], "pos_drop_rate": drop,
        "proj_drop_rate": drop,
    }  # fmt: skip
    mean, std = normalization(processor)
    pretrained = {
        "num_classes": config.num_labels, "input_size": [config.num_channels, config.image_size, config.image_size],
        "fixed_input_size": True, "interpolation": PIL.Image.Resampling(processor.resample).name.lower(),
        "crop_pct": 1.0, "crop_mode": "squash", "mean": [mean] * config.num_channels,
        "std": [std] * config.num_channels, "first_conv": "patch_embed.proj", "classifier": "head",
        "label_names": [config.id2label[index] for index in range(config.num_labels)],
    }  # fmt: skip
    record = {
        "architecture": "vit_tiny_patch16_224", "num_classes": config.num_labels, "num_features": config.hidden_size,
        "model_args": network, "pretrained_cfg": pretrained,
        "digit_score_threshold": config.digit_score_threshold,  # for the way back: timm does not read it
    }  # fmt: skip
    settings = ("size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    lost = describe_losses(processor, "timm", settings)
    if drop:
        lost.append(f"In training, timm applies hidden_dropout_prob={drop} inside the MLP, too.")
    state = {name.removeprefix("vit."): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return lost


def mlp_ratio(config: VitMnistConfig) -> float:
    """The ratio for which `int(hidden_size * ratio)`, as timm computes it, is the intermediate size."""
    ratio = config.mlp_ratio
    return ratio if int(config.hidden_size * ratio) == config.intermediate_size else math.nextafter(ratio, math.inf)


def import_timm(folder: Path, record: dict[str, Any]) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    """The model and the processor of a folder that timm has saved, given its `config.json`. Raises [`UsageError`] for
    an argument that changes the network to one that is not ours, and logs those without effect on logits."""
    architecture = str(record["architecture"])
    plain = re.fullmatch(PLAIN, architecture)
    if not plain:
        raise UsageError(f"{folder} holds the architecture {architecture!r}: only plain vit_* can be imported.")
    if record.get("global_pool") not in (None, FIXED["global_pool"]):
        refuse("vit-mnist", {"global_pool": record["global_pool"]})
    arguments = {name: value for name, value in (record.get("model_args") or {}).items() if value is not None}
    pretrained = PRETRAINED | {k: v for k, v in record.get("pretrained_cfg", record).items() if v is not None}
    activation = arguments.pop("act_layer", "") or "gelu"
    if activation not in OWN_ACTIVATIONS:
        refuse("vit-mnist", {"act_layer": activation})
    if str(arguments.get("norm_layer")).replace("_", "").lower() == FIXED["norm_layer"]:
        arguments["norm_layer"] = FIXED["norm_layer"]
    read = {*NAMES.values(), "mlp_ratio", "num_classes"}
    other = {name: value for name, value in arguments.items() if name not in read}
    refuse("vit-mnist", {name: v for name, v in other.items() if name not in WITHOUT_EFFECT and v != FIXED.get(name)})
    lost = {name: value for name, value in other.items() if name in WITHOUT_EFFECT and value}
    drop = arguments.get("proj_drop_rate", 0.0)
    if drop == arguments.get("pos_drop_rate", 0.0):
        lost = {name: value for name, value in lost.items() if name not in ("pos_drop_rate", "proj_drop_rate")}
    else:
        drop = 0.0
    if lost:
        logger.warning("Ignoring what does not change logits: %s.", ", ".join(f"{k}={v!r}" for k, v in lost.items()))

    names = record.get("label_names", pretrained.get("label_names"))
    model = from_timm(
        read_state(folder / "model.safetensors"), arguments.get("num_heads", HEADS[plain[1]]),
        names, hidden_act=OWN_ACTIVATIONS[activation],
        hidden_dropout_prob=drop, attention_probs_dropout_prob=arguments.get("attn_drop_rate", 0.0),
        digit_score_threshold=record.get("digit_score_threshold"),
    )  # fmt: skip
    size = model.config.image_size
    input_size, is_fixed = pretrained["input_size"][1:], pretrained["fixed_input_size"]
    found = {
        "img_size": arguments.get("img_size", input_size if is_fixed else 224),
        "input_size": arguments.get("img_size", input_size) if is_fixed else input_size,
        "patch_size": arguments.get("patch_size", int(architecture.split("_")[2].removeprefix("patch"))),
        "num_classes": arguments.get("num_classes", record.get("num_classes", pretrained.get("num_classes"))),
        "label_offset": pretrained.get("label_offset", 0),
    }  # fmt: skip
    own = {
        "img_size": size, "input_size": size, "patch_size": model.config.patch_size,
        "num_classes": model.config.num_labels, "label_offset": 0,
    }  # fmt: skip
    for name, value in found.items():  # timm would resize or replace the weights
        if value is not None and {*np.ravel(value).tolist()} != {own[name]}:
            raise UsageError(f"{folder} has {name} {value}, but its weights are for {own[name]}.")
    return model, _import_timm_processor(folder, pretrained, size)


def _import_timm_processor(folder: Path, pretrained: dict[str, Any], size: int) -> VitMnistImageProcessor:
    crop = {"crop_pct": pretrained["crop_pct"], "crop_mode": pretrained["crop_mode"]}
    if crop["crop_pct"] != 1 or crop["crop_mode"] not in ("squash", "center"):
        raise UsageError(
            f"{folder} crops images ({crop}), which vit-mnist cannot. To import it without, set crop_pct to 1.0 and "
            "crop_mode to squash in its config.json."
        )
    if crop["crop_mode"] == "center":
        logger.warning("timm crops images that are not square (crop_mode center): vit-mnist will squeeze them.")
    try:
        resample = PIL.Image.Resampling[pretrained["interpolation"].upper()]
    except KeyError:
        refuse("vit-mnist", {"interpolation": pretrained["interpolation"]})
    settings = {"image_mean": pretrained["mean"], "image_std": pretrained["std"], "resample": resample, "size": size}
    return own_processor(folder, settings)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file. Raises [`UsageError`] if there is none with timm's names."""
    try:
        check_header(path)
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UsageError:
        raise
    except Exception as error:  # pickle, zip and safetensors raise exceptions of their own
        kind = "a safetensors file" if path.suffix == ".safetensors" else "a .pth file of plain tensors"
        reason = getattr(error, "strerror", None) or f"this is not {kind}"
        reason = reason if path.is_file() else "there is no such file"
        raise UsageError(f"Cannot read the weights in {path}: {reason}.") from error
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or "patch_embed.proj.weight" not in state:
        raise UsageError(f"{path} holds no state dict with timm's names: patch_embed.proj.weight is missing.")
    return state


def from_timm(
    state: dict[str, torch.Tensor], num_heads: int, names: list | dict | None = None, **settings
) -> VitMnistForImageClassification:
    """Our model with timm's weights. Raises [`UsageError`] if they are of another network, or not floats."""
    try:
        for name, tensor in state.items():
            if tensor.dtype not in FLOATS:
                raise ValueError(f"{name} is of type {tensor.dtype}")
            if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
                raise ValueError(f"{name} has {tensor.numel():,} numbers, and fewer are stored")
        if (rows := state["head.weight"].shape[0]) > LIMITS["num_labels"]:
            raise ValueError(f"there are {rows:,} classes, and at most {LIMITS['num_labels']:,} are supported")
        if isinstance(names, dict):
            names = [names[str(index)] for index in range(len(names))]
        names = [*(names or map(str, range(rows)))]
        weight = fold_channels(state["patch_embed.proj.weight"])
        width, channels, patch, _ = weight.shape
        config = VitMnistConfig(
            hidden_size=width, num_channels=channels, patch_size=patch, num_attention_heads=num_heads,
            image_size=patch * math.isqrt(state["pos_embed"].shape[1] - 1),
            num_hidden_layers=sum(name.endswith(".norm1.weight") for name in state),
            intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
            qkv_bias="blocks.0.attn.qkv.bias" in state, layer_norm_eps=LAYER_NORM_EPS,
            id2label=dict(enumerate(names)), **settings,
        )  # fmt: skip
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in state.values()))  # no rounding
        model = VitMnistForImageClassification(config).to(dtype)
        state = state | {"patch_embed.proj.weight": weight}
        model.load_state_dict({name if name.startswith("head.") else f"vit.{name}": t for name, t in state.items()})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, StrictDataclassError) as error:
        raise UsageError(f"These weights do not match a ViT classifier: {' '.join(str(error).split())}") from error
    return model
