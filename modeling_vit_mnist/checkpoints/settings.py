"""Settings of a network and a processor on their way to another format and back: none is lost silently."""

import logging
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from ..cli.errors import UsageError
from ..image_processing_vit_mnist import VitMnistImageProcessor

logger = logging.getLogger(__name__)

# Fields of every transformers config: what a forward pass returns, how a loss is computed, what was saved.
BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)}
# Settings that do not change a trained network's logits: the initialization of new weights, and what to reject.
WITHOUT_LOGITS = {"initializer", "initializer_range", "digit_score_threshold"}
# Settings about the image before it is rescaled. No other format has them.
FRAMING = ("do_frame", "do_invert", "do_center", "do_deskew", "background")
# Settings that a user can replace by preparing images before. Their loss is named.
NAMED = (*FRAMING, "do_resize", "input_data_format")
# Settings of our processor. A saved one lacks `input_data_format` unless it is set.
SETTINGS = {*VitMnistImageProcessor().to_dict(), "input_data_format"}
# Entries of a saved processor that are not settings, or do nothing by themselves.
UNUSED = {
    "auto_map", "crop_size", "data_format", "do_convert_rgb", "feature_extractor_type", "image_processor_type",
    "image_seq_length", "pad_size", "processor_class", "return_tensors",
}  # fmt: skip


def refuse(target: str, settings: dict[str, Any]) -> None:
    """Raise [`UsageError`] if `target` would lose one of the settings."""
    for name, value in settings.items():
        raise UsageError(f"Cannot convert {name}={value!r}: {target} has no such setting.")


def changed_fields(config: PreTrainedConfig, besides: Collection[str]) -> dict[str, Any]:
    """Fields of a config that differ from its class's defaults, but for those in `besides`."""
    default = type(config)()
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in besides}
    return {name: value for name, value in values.items() if value != getattr(default, name)}


def describe_losses(processor: VitMnistImageProcessor, target: str, carried: Collection[str]) -> list[str]:
    """One sentence for each setting of a processor that differs from the default and that `target` lacks. Raises
    [`UsageError`] if it is not about framing, which the user can do before."""
    default = VitMnistImageProcessor()
    lost = {
        name: value for name, value in processor.to_dict().items()
        if name not in UNUSED and name not in carried and (value or None) != (getattr(default, name, None) or None)
    }  # fmt: skip
    refuse(target, {name: value for name, value in lost.items() if name not in NAMED})
    return [
        f"{name}={value!r} has no counterpart in {target}. Prepare images with VitMnistImageProcessor."
        for name, value in lost.items()
    ]


def normalization(processor: VitMnistImageProcessor) -> tuple[float, float]:
    """Mean and standard deviation that do to pixels in [0, 1] what the processor does to the same pixels as uint8."""
    factor = processor.rescale_factor if processor.do_rescale else 1
    mean, std = (float(np.ravel(value)[0]) for value in (processor.image_mean, processor.image_std))
    mean, std = (mean, std) if processor.do_normalize else (0.0, 1.0)
    return mean / (255 * factor), std / (255 * factor)


def own_processor(folder: Path, settings: dict[str, Any]) -> VitMnistImageProcessor:
    """Our processor with the settings of another. Raises [`UsageError`] for one that ours lacks."""
    refuse("vit-mnist", {k: value for k, value in settings.items() if value and k not in {*SETTINGS, *UNUSED}})
    own = {name: value for name, value in settings.items() if name in SETTINGS - UNUSED}
    try:
        return VitMnistImageProcessor(**own)
    except ValueError as error:
        raise UsageError(f"Cannot use the processor in {folder}: {error}") from error


def fold_channels(weight: torch.Tensor) -> torch.Tensor:
    """Patch projection for one channel, of shape `(width, 1, height, width)`, that does to a gray image what `weight`
    does to the same image in all of its channels."""
    if weight.shape[1] > 1:
        logger.warning("Adding up %d channels: the imported network takes gray images only.", weight.shape[1])
    return weight.sum(1, keepdim=True)
