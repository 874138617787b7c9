"""A checkpoint as transformers' own ViT, and back. Exports keep the bits of all weights, and lose no setting
silently."""

import logging
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.models.vit import ViTConfig, ViTForImageClassification

from ..cli.errors import UsageError
from ..configuration_vit_mnist import LABELS, LIMITS, VitMnistConfig
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification
from .checks import check_dtypes, check_files, check_num_weights, check_shapes
from .folder import UNREADABLE, check_usable, quiet, read_record
from .settings import (
    BASE_FIELDS,
    FRAMING,
    SETTINGS,
    UNUSED,
    WITHOUT_LOGITS,
    changed_fields,
    describe_losses,
    fold_channels,
    own_processor,
    refuse,
)
from .timm import from_timm, import_timm, read_state

logger = logging.getLogger(__name__)

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
# Fields that both configurations have, but for what `save_pretrained` records itself.
SHARED_FIELDS = {field.name for field in fields(VitMnistConfig)} & {field.name for field in fields(ViTConfig)} - {
    "architectures", "dtype", "transformers_version",
}  # fmt: skip
# Fields of our configuration alone, which an exported `config.json` has, too.
EXTRA_FIELDS = {"initializer", "digit_score_threshold"}
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
            name = re.sub(rf"^{ours}(?=\.|$)", theirs, name)
        renamed[name] = tensor
    return renamed


def from_hf_vit(state: State, expected: State) -> State:
    """The inverse of [`to_hf_vit`], with the names of `expected`, a state dict of our model of the same size."""
    return {name: torch.cat([state[theirs] for theirs in to_hf_vit({name: own})]) for name, own in expected.items()}


def hf_vit_config(config: VitMnistConfig, num_channels: int) -> ViTConfig:
    """The config of transformers' ViT. Raises [`UsageError`] for a setting that it lacks."""
    refuse("transformers' ViT", changed_fields(config, besides=SHARED_FIELDS | WITHOUT_LOGITS | BASE_FIELDS))
    # ViT reads none of [`EXTRA_FIELDS`]. They are there for the way back, and for users.
    shared = {name: getattr(config, name) for name in SHARED_FIELDS | EXTRA_FIELDS}
    return ViTConfig(**shared | {"num_channels": num_channels})


def hf_vit_model(model: VitMnistForImageClassification, rgb: bool) -> ViTForImageClassification:
    """transformers' own class with our weights: the same logits, to rounding. `rgb` gives it three channels instead of
    one, for pipelines, which convert every image to RGB. Raises [`UsageError`] if it cannot represent the network."""
    state = to_hf_vit(model.state_dict())
    channels = model.config.num_channels
    if rgb and channels == 1:
        state[PATCH_WEIGHT] = torch.cat([weight * state[PATCH_WEIGHT] for weight in CHANNEL_WEIGHTS], dim=1)
        channels = 3
    theirs = ViTForImageClassification(hf_vit_config(model.config, channels)).to(model.dtype)
    if extra := sorted(state.keys() - theirs.state_dict().keys()):
        raise UsageError(f"Cannot convert the weights {extra[0]}: transformers' ViT has none of this name.")
    theirs.load_state_dict(state)
    return theirs.eval()


def hf_vit_processor(processor: VitMnistImageProcessor, channels: int):
    """transformers' processor with our settings, but for [`FRAMING`]."""
    from transformers.models.vit import ViTImageProcessor  # here, since it warns if torchvision is missing

    settings = {name: getattr(processor, name) for name in SETTINGS - {*FRAMING, *UNUSED}}
    settings |= {name: bool(value) for name, value in settings.items() if name.startswith("do_")}
    settings |= {name: [float(np.ravel(settings[name])[0])] * channels for name in ("image_mean", "image_std")}
    size = {side: processor.size[side] for side in ("height", "width")}
    return ViTImageProcessor(**settings | {"size": size})


def export_vit(model, processor, folder: Path, rgb: bool = False) -> list[str]:
    """Folder of a [`transformers.ViTForImageClassification`] that loads with transformers alone. Like all exports, it
    returns a sentence for each setting that is lost, and raises [`UsageError`] if the logits would change."""
    theirs = hf_vit_model(model, rgb)
    stock = hf_vit_processor(processor, theirs.config.num_channels)
    lost = describe_losses(processor, "transformers' ViT", stock.to_dict())
    theirs.save_pretrained(folder)
    stock.save_pretrained(folder)
    return lost


def import_checkpoint(
    path: str | Path, num_attention_heads: int = VitMnistConfig.num_attention_heads
) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    """Convert a checkpoint to ours: the folder of a transformers ViT or a timm model, or a `.pth`, `.pt`, `.bin` or
    `.safetensors` file with timm's names, which contains neither the number of heads nor the normalization. What had
    to be assumed is logged. Raises [`UsageError`] if it is missing, cannot be read, is not finite, or does what ours
    cannot."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"No file or folder {str(path)!r}. Only local ones can be imported: download it first.")
    try:
        model, processor = _import_folder(path) if path.is_dir() else _import_file(path, num_attention_heads)
    except UsageError:
        raise
    except (OSError, *UNREADABLE) as error:
        raise UsageError(f"Cannot read the checkpoint in {path}: {error}") from error
    check_usable(str(path), model, processor)
    return model, processor


def _import_file(
    path: Path, num_attention_heads: int
) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    model = from_timm(read_state(path), num_attention_heads)
    logger.warning(
        "%s records neither heads nor normalization: assuming --num_attention_heads %d, and MNIST's mean and "
        "standard deviation.", path, num_attention_heads,
    )  # fmt: skip
    return model, VitMnistImageProcessor(size=model.config.image_size)


def _import_folder(path: Path) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    check_files(path)
    record = read_record(path / "config.json")
    if not isinstance(record, dict) or (record.get("model_type") != "vit" and "architecture" not in record):
        raise UsageError(f"{path} holds neither a transformers ViT nor a timm model.")
    return (_import_hf_vit if record.get("model_type") == "vit" else import_timm)(path, record)


def _import_hf_vit(folder: Path, record: dict) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
    check_num_weights(str(folder), check_dtypes(str(folder), record, location={}), _sizes(record))
    with quiet():
        theirs, info = ViTForImageClassification.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True
        )
    check_shapes(str(folder), info)
    if missing := sorted(info["missing_keys"]):
        raise UsageError(f"The checkpoint in {folder} is incomplete: {missing[0]} is missing.")
    # A classifier has neither of these, though a file can hold them.
    unused = ("vit.pooler.", "vit.embeddings.mask_token")
    if extra := sorted(name for name in info["unexpected_keys"] if not name.startswith(unused)):
        raise UsageError(f"The weights in {folder} do not match its config.json: {extra[0]} is left over.")
    config = theirs.config
    if config.num_channels not in (1, 3):
        raise UsageError(f"{folder} holds a network with {config.num_channels} channels: only 1 or 3 can be imported.")
    decoder_and_pooler = {"encoder_stride", "pooler_act", "pooler_output_size"}
    refuse("vit-mnist", changed_fields(config, besides=SHARED_FIELDS | BASE_FIELDS | decoder_and_pooler))
    values = {name: getattr(config, name) for name in SHARED_FIELDS} | {"num_channels": 1}
    for name in ("image_size", "patch_size"):
        sides = {*np.ravel(values[name]).tolist()}
        if len(sides) > 1:
            raise UsageError(f"{folder} has {name} {values[name]}: only squares can be imported.")
        values[name] = min(sides)
    state = theirs.state_dict()
    state[PATCH_WEIGHT] = fold_channels(state[PATCH_WEIGHT])
    try:
        values |= {"initializer": "trunc_normal"} | {k: v for k, v in vars(config).items() if k in EXTRA_FIELDS}
        own = VitMnistConfig(**values)
        model = VitMnistForImageClassification(own).to(theirs.dtype)
        model.load_state_dict(from_hf_vit(state, model.state_dict()))
    except (KeyError, RuntimeError, ValueError, StrictDataclassError) as error:
        raise UsageError(f"{folder} holds a ViT that cannot be imported: {' '.join(str(error).split())}") from error
    return model, _import_hf_vit_processor(folder, own.image_size)


def _sizes(record: dict) -> VitMnistConfig:
    """The sizes in the `config.json` of a transformers ViT, as far as ours has them. Raises `ValueError`, or what
    huggingface_hub raises, for impossible ones."""
    record = ViTConfig().to_dict() | record
    sizes = VitMnistConfig()
    for name in {*LIMITS, *LABELS} & record.keys():
        if record[name] is not None:
            setattr(sizes, name, max(record[name]) if isinstance(record[name], list) else record[name])
    return sizes


def _import_hf_vit_processor(folder: Path, image_size: int) -> VitMnistImageProcessor:
    from transformers.models.vit import ViTImageProcessor  # here, since it warns if torchvision is missing

    if not (folder / "preprocessor_config.json").is_file():
        logger.warning("%s has no preprocessor_config.json: assuming MNIST's mean and standard deviation.", folder)
        return VitMnistImageProcessor(size=image_size)
    record = read_record(folder / "preprocessor_config.json")
    kind = str(record.get("image_processor_type", record.get("feature_extractor_type", "ViTImageProcessor")))
    if not re.fullmatch(r"ViT(ImageProcessor(Fast|Pil)?|FeatureExtractor)", kind):
        raise UsageError(f"{folder} has a processor of type {kind!r}: only ViTImageProcessor can be imported.")
    try:
        settings = ViTImageProcessor(**record).to_dict()  # with its defaults
    except (TypeError, ValueError) as error:
        raise UsageError(f"Cannot read preprocessor_config.json in {folder}: {error}") from error
    return own_processor(folder, settings)
