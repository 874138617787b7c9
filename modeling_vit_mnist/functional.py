"""
The classifier as a function of its weights, with the batch as the last dimension of every tensor.

It computes what [`VitMnistForImageClassification`] computes, and needs torch alone. A network this narrow leaves a
processor's vector units idle when LayerNorm runs over 8 numbers and attention multiplies matrices 4 wide; here every
operation runs along the batch, and a compiler can fuse all that lies between two matrix products.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F


if TYPE_CHECKING:
    from .configuration_vit_mnist import VitMnistConfig


def classify(
    weights: Mapping[str, torch.Tensor],
    config: "VitMnistConfig",
    activation: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    training: bool = False,
) -> torch.Tensor:
    """
    Logits of a batch of images.

    Args:
        weights: All parameters, by their names in the checkpoint.
        config ([`VitMnistConfig`]): Anything with its fields.
        activation: What `config.hidden_act` names.
        pixel_values (`torch.Tensor` of shape `(batch, num_channels, image_size, image_size)`): Normalised images.
        training (`bool`): Whether dropout is on.

    Returns:
        `torch.Tensor` of shape `(batch, num_labels)`.
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
        # Of the last block, the CLS token is all that is read.
        num_queries = 1 if index == config.num_hidden_layers - 1 else None
        normed = _layer_norm(weights, f"{block}.norm1", hidden, config)
        attended = _attend(weights, f"{block}.attn", normed, config, num_queries, training)
        hidden = hidden[:, :num_queries] + F.dropout(attended, config.hidden_dropout_prob, training)
        normed = _layer_norm(weights, f"{block}.norm2", hidden, config)
        expanded = _linear(weights, f"{block}.mlp.fc2", activation(_linear(weights, f"{block}.mlp.fc1", normed)))
        hidden = hidden + F.dropout(expanded, config.hidden_dropout_prob, training)
    return _linear(weights, "head", _layer_norm(weights, "vit.norm", hidden, config))[:, 0].T


def weight_shapes(config: "VitMnistConfig") -> dict[str, tuple[int, ...]]:
    """The weights that [`classify`] reads: all parameters of the classifier, by their names in the checkpoint."""
    width, inner = config.hidden_size, config.intermediate_size
    patch = (config.num_channels, config.patch_size, config.patch_size)
    linears = {"vit.patch_embed.proj": (width, *patch), "head": (config.num_labels, width)}
    norms = ["vit.norm"]
    for block in (f"vit.blocks.{index}" for index in range(config.num_hidden_layers)):
        linears |= {f"{block}.attn.qkv": (3 * width, width), f"{block}.attn.proj": (width, width)}
        linears |= {f"{block}.mlp.fc1": (inner, width), f"{block}.mlp.fc2": (width, inner)}
        norms += [f"{block}.norm1", f"{block}.norm2"]
    weights = {f"{name}.weight": shape for name, shape in linears.items()}
    biases = {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    if not config.qkv_bias:
        biases = {name: shape for name, shape in biases.items() if not name.endswith("qkv.bias")}
    norms = {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}
    tokens = {"vit.cls_token": (1, 1, width), "vit.pos_embed": (1, 1 + config.num_patches, width)}
    return weights | biases | norms | tokens


def _layer_norm(weights: Mapping, name: str, hidden: torch.Tensor, config: "VitMnistConfig") -> torch.Tensor:
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))  # autocast leaves sums in half precision
    centred = hidden - hidden.mean(0)
    normed = centred * torch.rsqrt(centred.square().mean(0) + config.layer_norm_eps)
    return normed * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def _linear(weights: Mapping, name: str, hidden: torch.Tensor) -> torch.Tensor:
    product = weights[f"{name}.weight"].flatten(1) @ hidden.flatten(1)
    if f"{name}.bias" in weights:
        product = product + weights[f"{name}.bias"][:, None]
    return product.view(-1, *hidden.shape[1:])  # (out, tokens, batch)


def _attend(
    weights: Mapping,
    name: str,
    hidden: torch.Tensor,
    config: "VitMnistConfig",
    num_queries: int | None,
    training: bool,
) -> torch.Tensor:
    head_dim = config.hidden_size // config.num_attention_heads
    qkv = _linear(weights, f"{name}.qkv", hidden)
    qkv = qkv.view(3, config.num_attention_heads, head_dim, *hidden.shape[1:])
    query, key, value = qkv.unbind(0)  # each (heads, head_dim, tokens, batch)
    query = query[:, :, :num_queries] * head_dim**-0.5
    # Sums of products, not matrix products: a compiler then writes one loop of it all.
    scores = (query[:, :, :, None] * key[:, :, None]).sum(1)  # (heads, queries, tokens, batch)
    probabilities = F.dropout(scores.softmax(2), config.attention_probs_dropout_prob, training)
    attended = (probabilities[:, None] * value[:, :, None]).sum(3)  # (heads, head_dim, queries, batch)
    return _linear(weights, f"{name}.proj", attended.flatten(0, 1))
