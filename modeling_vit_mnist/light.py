"""
A checkpoint on the CPU without transformers' model and processor classes, whose imports take longer than all the rest
of predicting an image. Stands in for what `hub.load_checkpoint` returns, as far as `inference` needs it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from .configuration_vit_mnist import VitMnistConfig
from .frames_vit_mnist import frame_image, normalize, open_image, rescale, to_grey
from .functional import classify, weight_shapes


SHAPE = (28, 28)
# The processor of every checkpoint that was trained here.
SETTINGS = {
    "background": 255,
    "do_center": False,
    "do_invert": False,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.1307],
    "image_std": [0.3081],
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": SHAPE[0], "width": SHAPE[1]},
}


class LightModel(torch.nn.Module):
    """Computes by [`classify`] what [`VitMnistForImageClassification`] computes."""

    device = torch.device("cpu")

    def __init__(self, config: VitMnistConfig, weights: dict[str, torch.Tensor]):
        super().__init__()
        self.config = config
        self.weights = weights

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        """`logits` of shape `(batch, num_labels)` from `pixel_values` of shape `(batch, 1, 28, 28)`."""
        return SimpleNamespace(logits=classify(self.weights, self.config, F.gelu, pixel_values))


class LightProcessor:
    """Makes of image files what [`VitMnistImageProcessor`] with [`SETTINGS`] makes of them."""

    do_center = SETTINGS["do_center"]
    do_invert = SETTINGS["do_invert"]

    def to_frames(self, files: Sequence[Path]) -> torch.Tensor:
        """As [`VitMnistImageProcessor.to_frames`], of image files only."""
        greys = [to_grey(open_image(file), SETTINGS["background"]) for file in files]
        frames = [frame_image(grey, SHAPE, SETTINGS["resample"], self.do_invert, self.do_center) for grey in greys]
        return torch.from_numpy(np.stack(frames))

    def to_pixel_values(self, frames: torch.Tensor) -> torch.Tensor:
        """As [`VitMnistImageProcessor.to_pixel_values`]."""
        pixels = rescale(frames.unsqueeze(1), SETTINGS["rescale_factor"])
        return normalize(pixels, SETTINGS["image_mean"], SETTINGS["image_std"])


def load_light_checkpoint(folder: str) -> tuple[LightModel, LightProcessor] | None:
    """
    The classifier and the processor in a folder that holds just what this package saves.

    Returns:
        `None` where anything else was found: [`hub.load_checkpoint`] loads it, or says what is wrong with it.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        settings = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
        weights = load_file(folder / "model.safetensors")
        del settings["auto_map"], settings["image_processor_type"]
        if settings != SETTINGS or config["model_type"] != VitMnistConfig.model_type or config["hidden_act"] != "gelu":
            return None
        config = VitMnistConfig.from_dict(config)
    except Exception:  # whatever it is, `hub.load_checkpoint` meets it, too
        return None
    found = {name: (tuple(weight.shape), weight.dtype) for name, weight in weights.items()}
    expected = {name: (shape, torch.float32) for name, shape in weight_shapes(config).items()}
    size = (config.num_channels, config.image_size, config.image_size)
    if found != expected or config.dtype != torch.float32 or size != (1, *SHAPE):
        return None
    return LightModel(config, weights), LightProcessor()
