"""Training passes compiled for the CPU, more than twice as fast as the model's own."""

import functools
import logging

import torch
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import ImageClassifierOutput

from .functional import classify
from .modeling_vit_mnist import VitMnistForImageClassification


logger = logging.getLogger(__name__)


def compile_training(model: VitMnistForImageClassification, batch_size: int) -> None:
    """
    Have `model.forward` compute training passes over `batch_size` labelled images by [`classify`], compiled at the
    first of them into one function of the loss and all gradients of the weights, which `backward` then only hands out.
    Every other pass, and every pass where compiling fails, which is said once, stays as it was.

    Args:
        model: A classifier on the CPU; its `forward` and `zero_grad` are replaced on this instance alone.
        batch_size (`int`): Images per pass. An epoch's last, shorter batch is not worth a compilation of its own.
    """
    names, weights = zip(*model.named_parameters(), strict=True)
    activation = model.vit.blocks[0].mlp.act

    def compute_loss(weights, pixel_values, labels, kwargs):
        named = dict(zip(names, weights, strict=True))
        logits = classify(named, model.config, activation, pixel_values, training=True)
        return model.compute_loss(logits, labels, **kwargs), logits

    # Forward and backward in one graph: what goes from one to the other need not leave it.
    differentiate = torch.compile(torch.func.grad_and_value(compute_loss, has_aux=True), dynamic=False)

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, pixel_values, labels, kwargs, *weights):
            ctx.gradients, (loss, logits) = differentiate(weights, pixel_values, labels, kwargs)
            ctx.mark_non_differentiable(logits)
            return loss, logits

        @staticmethod
        @once_differentiable
        def backward(ctx, grad_loss, _):
            return None, None, None, *torch._foreach_mul(ctx.gradients, grad_loss)

    plain, fails = model.forward, False

    @functools.wraps(plain)
    def forward(pixel_values, labels=None, **kwargs):
        nonlocal fails
        trains = model.training and torch.is_grad_enabled() and labels is not None and len(pixel_values) == batch_size
        if fails or not trains or kwargs.get("interpolate_pos_encoding"):
            return plain(pixel_values, labels=labels, **kwargs)
        try:
            loss, logits = Loss.apply(pixel_values, labels, kwargs, *weights)
        except Exception as error:  # of the compiler that torch finds, or does not find, on this machine
            logger.warning("The training pass cannot be compiled, which costs speed: %s", str(error).splitlines()[0])
            fails = True
            return plain(pixel_values, labels=labels, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def zero_grad(set_to_none=True):
        """`Module.zero_grad` walks over all modules in search of the weights: 3 % of a step."""
        if not set_to_none:
            return type(model).zero_grad(model, set_to_none=False)
        for weight in weights:
            weight.grad = None

    model.forward, model.zero_grad = forward, zero_grad
