"""Configuration of the tiny Vision Transformer. Travels with every checkpoint; imports nothing of this package."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

# The Auto classes read this from a saved `config.json`. Saving a classifier would record only the classes being saved,
# and leave `AutoModel` and `AutoImageProcessor` without an entry.
AUTO_MAP = {
    "AutoConfig": "configuration_vit_mnist.VitMnistConfig",
    "AutoModel": "modeling_vit_mnist.VitMnistModel",
    "AutoModelForImageClassification": "modeling_vit_mnist.VitMnistForImageClassification",
    "AutoImageProcessor": "image_processing_vit_mnist.VitMnistImageProcessor",
}


@strict
class VitMnistConfig(PreTrainedConfig):
    r"""Configuration of a [`VitMnistModel`]. The defaults are the 1,850-parameter network for MNIST.

    Fields have the names of transformers' `ViTConfig`. timm's names (`embed_dim`, `depth`, `num_heads`, `img_size`,
    `in_chans`, `drop_rate`, `attn_drop_rate`, `num_classes`, `mlp_ratio`) are accepted, too.

    Args:
        hidden_size (`int`, defaults to 8): Width of every token.
        num_hidden_layers, num_attention_heads (`int`, default to 2): Transformer blocks, and heads in each; the number
            of heads must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of the MLP's hidden layer. Defaults to twice `hidden_size`.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP, a key of transformers' `ACT2FN`.
        hidden_dropout_prob, attention_probs_dropout_prob (`float`, default to 0): Dropout on embeddings and residual
            branches, and on attention probabilities, in [0, 1).
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        image_size, patch_size (`int`, default to 28 and 7): Height and width of the input and of a patch, in pixels;
            `patch_size` must divide `image_size`.
        num_channels (`int`, defaults to 1): Channels of the input.
        qkv_bias (`bool`, defaults to `True`): Whether queries, keys and values have a bias.
        initializer (`str`, defaults to `"xavier_uniform"`): Initialization of weight matrices. `"xavier_uniform"`
            (Glorot and Bengio, 2010) keeps activations at unit scale at any width. `"trunc_normal"` uses
            `initializer_range`; timm and transformers use it with 0.02, which is too small for width 8.
        initializer_range (`float`, defaults to 0.5): Standard deviation of position embeddings and CLS token, and of
            the weight matrices under `"trunc_normal"`. For comparison, whitened patches have unit variance.
        num_labels (`int`, *optional*): Number of classes; 10, labelled "0" to "9", unless `id2label` says otherwise.

    Raises:
        ValueError, or huggingface_hub's `StrictDataclassError`: a value is of the wrong type or out of range. The
            message names the field and the value seen.

    Example:
        >>> VitMnistConfig(embed_dim=16, depth=4).intermediate_size
        32
    """

    model_type = "vit_mnist"
    attribute_map = {
        "embed_dim": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "img_size": "image_size",
        "in_chans": "num_channels",
        "drop_rate": "hidden_dropout_prob",
        "attn_drop_rate": "attention_probs_dropout_prob",
        "num_classes": "num_labels",
    }

    hidden_size: int = 8
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float = 1e-6
    image_size: int = 28
    patch_size: int = 7
    num_channels: int = 1
    qkv_bias: bool = True
    initializer: Literal["xavier_uniform", "trunc_normal"] = "xavier_uniform"
    initializer_range: float | int = 0.5

    def __post_init__(self, **kwargs):
        for alias, name in self.attribute_map.items():
            if alias in kwargs and name != "num_labels":
                setattr(self, name, kwargs.pop(alias))
        if "num_classes" in kwargs:
            kwargs["num_labels"] = kwargs.pop("num_classes")
        if self.id2label is None and kwargs.get("num_labels", 10) == 10:
            self.id2label = {digit: str(digit) for digit in range(10)}
            self.label2id = {str(digit): digit for digit in range(10)}

        mlp_ratio = kwargs.pop("mlp_ratio", None)
        if self.intermediate_size is None:
            self.intermediate_size = int(self.hidden_size * (2 if mlp_ratio is None else mlp_ratio))
        super().__post_init__(**kwargs)
        # The code is saved beside the weights, so the references are local. A Hub config names its repository.
        self.auto_map = dict(AUTO_MAP)

    @property
    def mlp_ratio(self) -> float:
        """Width of the MLP's hidden layer over `hidden_size` (timm's name)."""
        return self.intermediate_size / self.hidden_size

    @property
    def num_patches(self) -> int:
        """Number of patches in an image of `image_size`, without the CLS token."""
        return (self.image_size // self.patch_size) ** 2

    def validate_sizes(self):
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size")
        for name in (*sizes, "patch_size", "num_channels", "num_labels"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got {self.num_attention_heads} heads for a width of "
                f"{self.hidden_size}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size must divide image_size, got patches of {self.patch_size} for images of {self.image_size}."
            )

    def validate_ranges(self):
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}.")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {value}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}.")


__all__ = ["VitMnistConfig"]
