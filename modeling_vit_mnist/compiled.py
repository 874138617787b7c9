"""Training passes compiled for the CPU, about twice as fast as the model's own."""

import functools
import logging

import torch
from transformers.modeling_outputs import ImageClassifierOutput

from .functional import classify
from .modeling_vit_mnist import VitMnistForImageClassification


logger = logging.getLogger(__name__)


def compile_training(model: VitMnistForImageClassification, batch_size: int) -> None:
    """
    Have `model.forward` compute training passes over `batch_size` images by [`classify`], compiled with their loss at
    the first of them. Every other pass, and every pass where compiling fails, which is said once, stays as it was.

    Args:
        model: A classifier on the CPU; its `forward` is replaced on this instance alone.
        batch_size (`int`): Images per pass. An epoch's last, shorter batch is not worth a compilation of its own.
    """
    weights, activation = dict(model.named_parameters()), model.vit.blocks[0].mlp.act

    def compute(pixel_values, labels, **kwargs):
        logits = classify(weights, model.config, activation, pixel_values, training=True)
        return logits, None if labels is None else model.compute_loss(logits, labels, **kwargs)

    plain, compiled = model.forward, torch.compile(compute, dynamic=False)

    @functools.wraps(plain)
    def forward(pixel_values, labels=None, **kwargs):
        nonlocal compiled
        trains = model.training and torch.is_grad_enabled() and len(pixel_values) == batch_size
        if compiled is None or not trains or kwargs.get("interpolate_pos_encoding"):
            return plain(pixel_values, labels=labels, **kwargs)
        try:
            logits, loss = compiled(pixel_values, labels, **kwargs)
        except Exception as error:  # of the compiler that torch finds, or does not find, on this machine
            logger.warning("The training pass cannot be compiled, which costs speed: %s", str(error).splitlines()[0])
            compiled = None
            return plain(pixel_values, labels=labels, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)

    model.forward = forward
