"""A tiny Vision Transformer, in the order of the figure in its paper: patches, tokens, attention, block, model, head
(Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929).

It computes what transformers' `ViTForImageClassification` and timm's `VisionTransformer` compute from the same
weights, and its parameters have timm's names. Travels with every checkpoint, so it imports only its own config."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, load_state_dict
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_vit_mnist import VitMnistConfig


class VitMnistPatchEmbeddings(nn.Module):
    """Cut the image into square patches and project each one linearly to a token."""

    def __init__(self, config: VitMnistConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.proj = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values must have shape (batch, {self.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}. The image processor makes gray images of one channel."
            )
        height, width = pixel_values.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"Image height and width must be multiples of the patch size {self.patch_size}, got {height}x{width}."
            )
        return self.proj(pixel_values).flatten(2).transpose(1, 2)  # (batch, patches, hidden)


def eager_attention_forward(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, scaling: float, dropout: float = 0.0, **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Scaled dot-product attention. The only implementation that also returns its probabilities."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (batch, heads, tokens, tokens)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    probabilities = nn.functional.dropout(probabilities.to(query.dtype), p=dropout, training=module.training)
    attended = torch.matmul(probabilities, value).transpose(1, 2).contiguous()  # (batch, tokens, heads, head_dim)
    return attended, probabilities


class VitMnistAttention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    def __init__(self, config: VitMnistConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Every token attends to all tokens. With `num_queries`, only the first tokens are computed."""
        batch_size, num_tokens, hidden_size = hidden_states.shape
        qkv = self.qkv(hidden_states)  # (batch, tokens, 3 * hidden)
        qkv = qkv.view(batch_size, num_tokens, 3, self.config.num_attention_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, tokens, head_dim)
        query = query[:, :, :num_queries]

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if batch_size == 0:  # transformers' sdpa cannot reshape an empty batch
            attention = eager_attention_forward
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        attended, probabilities = attention(
            self, query, key, value, None, scaling=self.scaling, dropout=dropout, **kwargs
        )
        attended = attended.reshape(batch_size, query.shape[2], hidden_size)
        return self.proj(attended), probabilities


class VitMnistMLP(nn.Module):
    def __init__(self, config: VitMnistConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden_states)))


class VitMnistBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: VitMnistConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = VitMnistAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VitMnistMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        attended, _ = self.attn(self.norm1(hidden_states), num_queries=num_queries, **kwargs)
        hidden_states = hidden_states[:, :num_queries] + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.norm2(hidden_states)))  # (batch, tokens, hidden)


def has_hooks(modules: Iterable[nn.Module]) -> bool:
    """Whether a hook reads what passes through one of the modules. Those that transformers sets to record outputs do
    not count, as it never removes them."""
    kinds = ((m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks) for m in modules)
    hooks = (hook for module_hooks in kinds for hooks_of_kind in module_hooks for hook in hooks_of_kind.values())
    return any(getattr(hook, "__module__", None) != capture_outputs.__module__ for hook in hooks)


class VitMnistPreTrainedModel(PreTrainedModel):
    """What the model and the classifier share: supported features and the initialization of weights."""

    config: VitMnistConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["VitMnistPatchEmbeddings", "VitMnistBlock"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": VitMnistBlock, "attentions": VitMnistAttention}

    def __init__(self, config: VitMnistConfig):
        # Fields may have been changed since the config was made.
        for validate in (config.validate_sizes, config.validate_ranges, config.validate_labels):
            validate()
        super().__init__(config)

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs):
        # transformers would cast integers without the scale that a quantizer has divided by, and load NaN.
        is_quantized = getattr(model.config, "quantization_config", None) is not None
        names = {name.removeprefix("vit.") for name in model.state_dict()}
        for file in () if is_quantized else checkpoint_files or ():
            for name, weight in load_state_dict(file).items():
                is_float = weight.is_floating_point() and weight.element_size() > 1
                if name.removeprefix("vit.") in names and not (is_float and weight.isfinite().all()):
                    kind = f"not finite floats of 16 bits or more ({weight.dtype})"
                    raise ValueError(f"{name} holds weights that are {kind}, in {file}.")
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        # transformers' `init` functions skip what `from_pretrained` has loaded.
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if self.config.initializer == "xavier_uniform":
                # A patch projection is a linear map of the flattened patch, so its fans are those of that map.
                bound = math.sqrt(6 / (module.weight[0].numel() + module.weight.shape[0]))
                init.uniform_(module.weight, -bound, bound)
            else:
                init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, VitMnistModel):
            for parameter in (module.cls_token, module.pos_embed):
                init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


class VitMnistModel(VitMnistPreTrainedModel):
    """The encoder: patches and a CLS token through the blocks, without a classification head."""

    def __init__(self, config: VitMnistConfig):
        super().__init__(config)
        self.patch_embed = VitMnistPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, config.hidden_size))
        self.pos_drop = nn.Dropout(config.hidden_dropout_prob)
        self.blocks = nn.ModuleList([VitMnistBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embed

    def interpolate_pos_encoding(self, height: int, width: int) -> torch.Tensor:
        """Position embeddings for another image size, of shape (1, 1 + patches, hidden_size): bicubic interpolation of
        the learned grid, as in DINO (https://arxiv.org/abs/2104.14294) and transformers' ViT."""
        size = (height // self.config.patch_size, width // self.config.patch_size)
        side = self.config.image_size // self.config.patch_size
        if size == (side, side):
            return self.pos_embed
        cls_position, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, hidden, side, side)
        grid = nn.functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
        return torch.cat([cls_position, grid.flatten(2).transpose(1, 2)], dim=1)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool | None = None, cls_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:  # fmt: skip
        r"""Encode images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, image_size, image_size)`): Normalized images,
                as the image processor makes them: floats, cast to the dtype of the weights.
            interpolate_pos_encoding (`bool`, *optional*): Accept other image sizes (multiples of the patch size).
            cls_only (`bool`): Only the CLS token is needed. The last block then skips the other tokens, unless a hook
                reads what it computes or outputs are recorded.

        Returns:
            `last_hidden_state` of shape `(batch, 1 + patches, hidden_size)`, after the final LayerNorm (with only the
            CLS token if the others were skipped); `pooler_output` of shape `(batch, hidden_size)`, its CLS token; on
            request `hidden_states`, one `(batch, 1 + patches, hidden_size)` for the first block's input and for each
            block's output, and `attentions`, one `(batch, heads, 1 + patches, 1 + patches)` per block. Attentions need
            `model.set_attn_implementation("eager")`: without it they are empty, and transformers logs a warning.

        Raises:
            ValueError: wrong number of dimensions or channels, another image size, integers instead of floats, or
                `bool_masked_pos` and `head_mask`, options of transformers' ViT that this model does not have.
        """
        for name in ("bool_masked_pos", "head_mask"):
            if kwargs.get(name) is not None:
                raise ValueError(f"This model has no {name}.")
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be normalized floats, as the image processor makes them, got {pixel_values.dtype}."
            )
        tokens = self.patch_embed(pixel_values.to(self.pos_embed.dtype))  # (batch, patches, hidden)
        height, width = pixel_values.shape[2:]
        if interpolate_pos_encoding:
            positions = self.interpolate_pos_encoding(height, width)
        elif (height, width) == (self.config.image_size, self.config.image_size):
            positions = self.pos_embed
        else:
            raise ValueError(
                f"The model takes images of {self.config.image_size}x{self.config.image_size}, got {height}x{width}. "
                "Resize them with the image processor, or pass interpolate_pos_encoding=True."
            )
        cls_tokens = self.cls_token.expand(tokens.shape[0], -1, -1)
        hidden_states = torch.cat([cls_tokens, tokens], dim=1) + positions  # (batch, 1 + patches, hidden)
        hidden_states = self.pos_drop(hidden_states)

        *blocks, last = self.blocks
        for block in blocks:
            hidden_states = block(hidden_states, **kwargs)
        # Skipping the other tokens of the last block saves a third of the work at depth 2.
        flags = ("output_hidden_states", "output_attentions")
        records = any(kwargs.get(name) or getattr(self.config, name) for name in flags)
        num_queries = 1 if cls_only and not (records or has_hooks([self, self.norm, *last.modules()])) else None
        hidden_states = self.norm(last(hidden_states, num_queries=num_queries, **kwargs))
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


class VitMnistForImageClassification(VitMnistPreTrainedModel):
    """The encoder with a linear classifier on its CLS token."""

    def __init__(self, config: VitMnistConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = VitMnistModel(config)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None, **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:  # fmt: skip
        r"""Classify images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch, num_channels, image_size, image_size)`): Normalized images.
            labels (`torch.Tensor` of shape `(batch,)`, int64, *optional*): Classes in `[0, num_labels)`; with them
                the output has `loss`, the cross-entropy, averaged over the batch or over `num_items_in_batch`. As in
                transformers, floats of shape `(batch, num_labels)` are the labels of the other `problem_type`s.
            interpolate_pos_encoding (`bool`, *optional*): Accept other image sizes (multiples of the patch size).

        Returns:
            `logits` of shape `(batch, num_labels)`; on request `loss`, `hidden_states` and `attentions` (see
            [`VitMnistModel.forward`]).

        Example:
            >>> model = VitMnistForImageClassification(VitMnistConfig())
            >>> model(torch.zeros(64, 1, 28, 28)).logits.shape
            torch.Size([64, 10])
        """
        # `config.return_dict` is about the output of this method, not of the encoder.
        options = {"interpolate_pos_encoding": interpolate_pos_encoding, "cls_only": True, "return_dict": True}
        outputs = self.vit(pixel_values, **options, **kwargs)
        logits = self.head(outputs.pooler_output)  # (batch, num_labels)
        loss = None if labels is None else self._loss(logits, labels, **kwargs)
        recorded = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        return ImageClassifierOutput(loss=loss, logits=logits, **recorded)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor, **kwargs) -> torch.Tensor:
        """Cross-entropy of logits `(batch, num_labels)`, or the loss of another problem type, in float32 or better."""
        # A log-softmax in half precision would lose accuracy.
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if self.config.problem_type == "regression" and labels.numel() != logits.numel():  # they would be broadcast
            raise ValueError(f"Regression needs labels of shape {tuple(logits.shape)}, got {tuple(labels.shape)}.")
        return self.loss_function(labels, logits, self.config, **kwargs)


def digit_score(logits: torch.Tensor) -> torch.Tensor:
    """How much an image looks like one of the classes, in nats: 0 for equal probabilities, without an upper limit. It
    is the Kullback-Leibler divergence of the uniform distribution from the predicted one.

    Args:
        logits (`torch.Tensor` of shape `(n, num_labels)`).

    Returns:
        float32, of shape `(n,)`.

    Example:
        >>> digit_score(torch.tensor([[0.0, 0.0], [0.0, 20.0]]))
        tensor([0.0000, 9.3069])
    """
    return -logits.float().log_softmax(-1).mean(-1) - math.log(logits.shape[-1])


__all__ = ["VitMnistForImageClassification", "VitMnistModel", "VitMnistPreTrainedModel", "digit_score"]
