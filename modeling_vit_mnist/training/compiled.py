"""Training passes compiled for the CPU. `benchmarks/training.py` measures how much faster they are.

[`batch_last_forward`] computes what [`VitMnistForImageClassification`] computes, with the batch as the last dimension
of every tensor. A network this narrow leaves a processor's vector units idle in a LayerNorm over 8 numbers. Along the
batch they are used, and a compiler can fuse everything between two matrix products."""

import copy
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput

from ..configuration_vit_mnist import VitMnistConfig
from ..modeling_vit_mnist import VitMnistForImageClassification, has_hooks

logger = logging.getLogger(__name__)

Weights = Mapping[str, torch.Tensor]


class CompiledVitMnistForImageClassification(VitMnistForImageClassification):
    """A classifier on the CPU whose training passes are compiled. The first training pass compiles the loss and all
    gradients as one function. `backward` returns these gradients.

    Only passes over `batch_size` labeled images are compiled. Other passes use the model's own forward. So do all
    passes after a hook is set, a module is replaced, or compilation fails. See [`compiled`] and [`plain`]."""

    _auto_class = None  # `save_pretrained` must not copy this file into checkpoints
    batch_size: int
    structure: list
    can_compile = True

    def forward(self, pixel_values, labels=None, interpolate_pos_encoding=None, **kwargs):
        modules = list(self.modules())
        if labels is not None and not interpolate_pos_encoding and self._can_compile(pixel_values, modules, kwargs):
            weights = [weight for module in modules for weight in module._parameters.values() if weight is not None]
            try:
                loss, logits = _Loss.apply(self._loss_and_gradients, pixel_values, labels, kwargs, *weights)
                return ImageClassifierOutput(loss=loss, logits=logits)
            except Exception as error:  # compilers fail in many ways
                reason = str(error).split("raised:")[-1].strip().splitlines()[0]
                logger.warning("torch.compile failed; continuing uncompiled (slower): %s", reason)
                self.can_compile = False
        return super().forward(pixel_values, labels, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)

    def _can_compile(self, pixel_values: torch.Tensor, modules: list, options: Mapping[str, Any]) -> bool:
        """Whether a labeled pass is a plain training step of the network that was made to be compiled."""
        config = self.config
        shape = (self.batch_size, config.num_channels, config.image_size, config.image_size)
        records = config.output_hidden_states or config.output_attentions or not config.return_dict
        return (
            self.can_compile and self.training and torch.is_grad_enabled() and pixel_values.shape == shape
            and not (pixel_values.requires_grad or records or options.keys() - {"num_items_in_batch"})
            and self.structure == _structure(modules) and not has_hooks(modules)
        )  # fmt: skip

    @functools.cached_property
    def _loss_and_gradients(self) -> Callable:
        names = [name for name, _ in self.named_parameters()]

        def loss_and_logits(weights, pixel_values, labels, kwargs):
            named = dict(zip(names, weights, strict=True))
            block: Any = self.vit.blocks[0]
            logits = batch_last_forward(named, self.config, block.mlp.act, pixel_values, training=True)
            return self._loss(logits, labels, **kwargs), logits

        # Forward and backward as one graph: nothing has to be stored in between.
        return torch.compile(torch.func.grad_and_value(loss_and_logits, has_aux=True), dynamic=False)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles compile anew: the compiled function belongs to this instance."""
        return {name: value for name, value in self.__dict__.items() if name != "_loss_and_gradients"}

    def save_pretrained(self, *args, **kwargs):
        """Save as a [`VitMnistForImageClassification`]."""
        return plain(self).save_pretrained(*args, **kwargs)


def _structure(modules: Iterable[torch.nn.Module]) -> list[tuple]:
    return [(type(module), *module._parameters) for module in modules]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss_and_gradients, pixel_values, labels, kwargs, *weights):
        ctx.gradients, (loss, logits) = loss_and_gradients(weights, pixel_values, labels, kwargs)
        ctx.set_materialize_grads(False)
        return loss, logits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, grad_logits):
        if grad_logits is not None:
            raise RuntimeError("A compiled training pass has no gradients of its logits: use plain(model).")
        return None, None, None, None, *torch._foreach_mul(ctx.gradients, grad_loss)


def compiled(model: VitMnistForImageClassification, batch_size: int) -> CompiledVitMnistForImageClassification:
    """The same weights in a model that compiles training passes over `batch_size` images."""
    other = copy.copy(model)
    other.__class__ = CompiledVitMnistForImageClassification
    other.batch_size, other.structure = batch_size, _structure(other.modules())
    return other


def plain(model: VitMnistForImageClassification) -> VitMnistForImageClassification:
    """The same weights in the plain class."""
    other = copy.copy(model)
    other.__class__ = VitMnistForImageClassification
    return other


def batch_last_forward(
    weights: Weights, config: VitMnistConfig, activation: Callable, pixel_values: torch.Tensor, training: bool = False
) -> torch.Tensor:
    """Logits, of shape `(batch, num_labels)`.

    Args:
        weights: All parameters of [`VitMnistForImageClassification`], by name.
        config: The network.
        activation: The function that `config.hidden_act` names.
        pixel_values: Normalized images of shape `(batch, num_channels, image_size, image_size)`.
        training: Whether to apply dropout.
    """
    batch_size, channels, side, _ = pixel_values.shape
    grid, patch = side // config.patch_size, config.patch_size
    patches = pixel_values.view(batch_size, channels, grid, patch, grid, patch).permute(1, 3, 5, 2, 4, 0)
    patches = patches.reshape(channels * patch**2, grid**2, batch_size)
    tokens = _linear(weights, "vit.patch_embed.proj", patches)  # (hidden, patches, batch)
    cls_tokens = weights["vit.cls_token"][0].T[:, :, None].expand(-1, -1, batch_size)
    hidden = torch.cat([cls_tokens, tokens], 1) + weights["vit.pos_embed"][0].T[:, :, None]
    hidden = F.dropout(hidden, config.hidden_dropout_prob, training)  # (hidden, 1 + patches, batch)

    for index in range(config.num_hidden_layers):
        block = f"vit.blocks.{index}"
        num_queries = 1 if index == config.num_hidden_layers - 1 else None  # the head reads only the CLS token
        normed = _layer_norm(weights, f"{block}.norm1", hidden, config)
        attended = _attend(weights, f"{block}.attn", normed, config, num_queries, training)
        hidden = hidden[:, :num_queries] + F.dropout(attended, config.hidden_dropout_prob, training)
        normed = _layer_norm(weights, f"{block}.norm2", hidden, config)
        expanded = _linear(weights, f"{block}.mlp.fc2", activation(_linear(weights, f"{block}.mlp.fc1", normed)))
        hidden = hidden + F.dropout(expanded, config.hidden_dropout_prob, training)
    return _linear(weights, "head", _layer_norm(weights, "vit.norm", hidden, config))[:, 0].T


def _layer_norm(weights: Weights, name: str, hidden: torch.Tensor, config: VitMnistConfig) -> torch.Tensor:
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))  # autocast would sum in half precision
    centered = hidden - hidden.mean(0)
    normed = centered * torch.rsqrt(centered.square().mean(0) + config.layer_norm_eps)
    return normed * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def _linear(weights: Weights, name: str, hidden: torch.Tensor) -> torch.Tensor:
    product = weights[f"{name}.weight"].flatten(1) @ hidden.flatten(1)
    if f"{name}.bias" in weights:
        product = product + weights[f"{name}.bias"][:, None]
    return product.view(-1, *hidden.shape[1:])  # (out, tokens, batch)


def _attend(
    weights: Mapping, name: str, hidden: torch.Tensor, config: VitMnistConfig, num_queries: int | None, training: bool
) -> torch.Tensor:
    head_dim = config.hidden_size // config.num_attention_heads
    qkv = _linear(weights, f"{name}.qkv", hidden)
    qkv = qkv.view(3, config.num_attention_heads, head_dim, *hidden.shape[1:])
    query, key, value = qkv.unbind(0)  # each (heads, head_dim, tokens, batch)
    query = query[:, :, :num_queries] * head_dim**-0.5
    # Sums of products instead of matrix products, so that a compiler writes one loop.
    scores = (query[:, :, :, None] * key[:, :, None]).sum(1)  # (heads, queries, tokens, batch)
    probabilities = F.dropout(scores.softmax(2), config.attention_probs_dropout_prob, training)
    attended = (probabilities[:, None] * value[:, :, None]).sum(3)  # (heads, head_dim, queries, batch)
    return _linear(weights, f"{name}.proj", attended.flatten(0, 1))
