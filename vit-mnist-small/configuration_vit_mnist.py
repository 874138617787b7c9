"""Configuration of the tiny Vision Transformer. Travels with every checkpoint; imports nothing of this package."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The Auto classes read this from a saved `config.json`. Saving a classifier would record only the classes being saved,
# and leave `AutoModel` and `AutoImageProcessor` without an entry.
AUTO_MAP = {
    "AutoConfig": "configuration_vit_mnist.VitMnistConfig",
    "AutoModel": "modeling_vit_mnist.VitMnistModel",
    "AutoModelForImageClassification": "modeling_vit_mnist.VitMnistForImageClassification",
    "AutoImageProcessor": "image_processing_vit_mnist.VitMnistImageProcessor",
}

LABELS = ("id2label", "label2id")
OPTIONAL = ("intermediate_size", "digit_score_threshold")  # `None` is a value of theirs
# What is refused before any memory is taken. Vision Transformers that are in use are smaller.
MAX_SIDE = 1024
MAX_PATCHES = 2**14
MAX_PARAMETERS = 2**31
LIMITS = {
    "hidden_size": 2**14, "num_hidden_layers": 1000, "num_attention_heads": 2**14, "intermediate_size": 2**17,
    "image_size": MAX_SIDE, "patch_size": MAX_SIDE, "num_channels": 1000, "num_labels": 100_000,
}  # fmt: skip
# Names in other libraries that similarity alone does not find, or takes for another setting.
SYNONYMS = {
    "num_layers": "num_hidden_layers", "n_layers": "num_hidden_layers", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "nb_classes": "num_labels", "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}  # fmt: skip


def refuse_misspelled(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ValueError` for a name that is not a known one but close to one. Any other name passes, as in
    transformers: its other versions, and other programs, have settings of their own."""
    for message in find_misspelled(names, known):
        raise ValueError(message)


def find_misspelled(names: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    known = list(known)
    for name in names:
        # 0.86 separates misspellings, such as `do_centre`, from other settings, such as `do_grayscale`.
        meant = SYNONYMS.get(name) or next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.86)), None)
        if name not in known and meant in known:
            yield f"Unknown setting {name!r}: did you mean {meant!r}?"


def _in_order(id2label: dict) -> dict[int, str]:
    """Names of classes in the order of their ids, which are text in JSON."""
    names = {str(index): str(name) for index, name in id2label.items()}
    ordered = {index: names.get(str(index)) for index in range(len(id2label))}
    if not ordered or None in ordered.values() or len(set(ordered.values())) < len(ordered):
        raise ValueError(f"id2label must map the classes 0 to n - 1 to different names, got {id2label}.")
    return ordered


@strict
class VitMnistConfig(PreTrainedConfig):
    r"""Configuration of a [`VitMnistModel`]. The defaults are the 1,850-parameter network for MNIST.

    Fields have the names of transformers' `ViTConfig`. timm's names (`embed_dim`, `depth`, `num_heads`, `img_size`,
    `in_chans`, `drop_rate`, `attn_drop_rate`, `num_classes`, `mlp_ratio`) are accepted, too. Two names of one setting
    must have the same value.

    Args:
        hidden_size (`int`, defaults to 8): Width of every token.
        num_hidden_layers, num_attention_heads (`int`, default to 2): Transformer blocks, and heads in each; the number
            of heads must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of the MLP's hidden layer, `hidden_size * mlp_ratio`. Defaults to
            twice `hidden_size`.
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
        num_labels (`int`, *optional*): Number of classes; 10, labelled "0" to "9", unless the names say otherwise.
        id2label, label2id (`dict`, *optional*): Names of the classes 0 to n - 1, and the inverse. One gives the other.
        digit_score_threshold (`float`, *optional*): An image whose [`digit_score`] is lower is probably of no class.
            Training sets it from the validation split.

    Raises:
        ValueError, or huggingface_hub's `StrictDataclassError`: a value is of the wrong type, out of range or
            contradicts another, or the name of a setting is misspelled. The message names the field and the value
            seen. Types are checked whenever a field is set; the rest when a config is made or saved, and when a model
            is made of it.

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
    # transformers does not check the types of its own fields.
    id2label: dict | None = None
    label2id: dict | None = None
    digit_score_threshold: float | int | None = None

    def __new__(cls, *args, **kwargs):
        # `__post_init__` cannot tell a value that was passed from a default.
        for alias, name in cls.attribute_map.items():
            value, other = kwargs.get(name), kwargs.get(alias)
            if value is not None and other is not None and value != other:
                raise ValueError(f"{name}={value} contradicts {alias}={other}: pass one of them.")
        return super().__new__(cls)

    def __post_init__(self, **kwargs):
        if "model_type" not in kwargs:
            refuse_misspelled(kwargs, self._settings())
        for message in find_misspelled(kwargs, self._settings()):  # a saved config may have settings of other programs
            logger.warning_once(f"{message} It is ignored.")
        num_labels, mlp_ratio = kwargs.pop("num_labels", None), kwargs.pop("mlp_ratio", None)
        for alias, name in self.attribute_map.items():
            value = kwargs.pop(alias, None)
            if name == "num_labels":
                num_labels = num_labels if value is None else value
            elif value is not None:
                setattr(self, name, value)

        label2id = self.label2id
        if self.id2label is None and label2id is not None:
            self.id2label = {str(index): name for name, index in label2id.items()}
        if self.id2label is None:
            self.num_labels = 10 if num_labels is None else num_labels
            if self.num_labels == 10:
                self.id2label = {digit: str(digit) for digit in range(10)}
        if num_labels not in (None, self.num_labels):
            raise ValueError(f"num_labels={num_labels} contradicts the {self.num_labels} names of the classes.")

        if mlp_ratio is not None and not (isinstance(mlp_ratio, (int, float)) and 0 < mlp_ratio < float("inf")):
            raise ValueError(f"mlp_ratio must be a positive number, got {mlp_ratio!r}.")
        if self.intermediate_size is None:
            self.intermediate_size = round(self.hidden_size * (2 if mlp_ratio is None else mlp_ratio))
        if mlp_ratio is not None and not abs(self.hidden_size * mlp_ratio - self.intermediate_size) < 1e-6:
            raise ValueError(
                f"hidden_size * mlp_ratio must be the integer intermediate_size, got {self.hidden_size} * {mlp_ratio} "
                f"and {self.intermediate_size}."
            )
        super().__post_init__(**kwargs)
        self.label2id = self.label2id if label2id is None else label2id
        # The code is saved beside the weights, so the references are local. A Hub config names its repository.
        self.auto_map = dict(AUTO_MAP)

    def __setattr__(self, key, value):
        if key in self.attribute_map:  # the field's own name has validators
            return setattr(self, self.attribute_map[key], value)
        if key == "num_labels" and (type(value) is not int or value < 1):
            raise ValueError(f"num_labels must be an integer of at least 1, got {value!r}.")
        name, size = ("num_labels", len(value)) if key in LABELS and isinstance(value, dict) else (key, value)
        if type(size) is int and size > LIMITS.get(name, size):
            raise ValueError(f"{name} must be at most {LIMITS[name]}, got {size}.")
        if key == "id2label" and value is not None:
            value = _in_order(value)
            super().__setattr__("label2id", {name: index for index, name in value.items()})
        elif key == "label2id" and value is not None:  # ids may be text, and names numbers
            value = {str(name): int(index) if str(index).isdigit() else index for name, index in value.items()}
        super().__setattr__(key, value)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """A config from a dictionary. `kwargs` replace the values of the same settings in it, whatever their names."""
        refuse_misspelled(kwargs, cls._settings())
        changes = {name: kwargs.pop(name) for name in cls._settings() if name in kwargs}
        changes = {name: value for name, value in changes.items() if value is not None or name in OPTIONAL}
        same = {**cls.attribute_map, "mlp_ratio": "intermediate_size"} | dict.fromkeys(LABELS, "num_labels")
        changed = {same.get(name, name) for name in changes}
        num_labels = changes.get("num_labels", changes.get("num_classes"))
        num_saved = len(config_dict.get("id2label") or ())
        if not changes.keys() & set(LABELS) and num_labels == num_saved:
            changed.discard("num_labels")  # as many classes as before keep their names
        kept = {name: value for name, value in config_dict.items() if same.get(name, name) not in changed}
        result = super().from_dict(kept | changes, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        if num_saved not in (0, config.num_labels) and "digit_score_threshold" not in changes:
            config.digit_score_threshold = None  # it was that of other classes
        return result

    @classmethod
    def _settings(cls) -> list[str]:
        """All names of the settings of this model, without those of every model."""
        return [*VitMnistConfig.__annotations__, *cls.attribute_map, "mlp_ratio", "num_labels"]

    def to_diff_dict(self):
        # transformers leaves out the names LABEL_0 and LABEL_1, its default. Ours is ten digits.
        record = self.to_dict()
        return super().to_diff_dict() | {name: record[name] for name in LABELS}

    @property
    def mlp_ratio(self) -> float:
        """Width of the MLP's hidden layer over `hidden_size` (timm's name)."""
        return self.intermediate_size / self.hidden_size

    @property
    def num_patches(self) -> int:
        """Number of patches in an image of `image_size`, without the CLS token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_weights(self) -> int:
        """Number of parameters, without the few biases and LayerNorms: known before there is a model."""
        width, rows = self.hidden_size, self.num_channels * self.patch_size**2 + self.num_patches + self.num_labels
        return width * (rows + self.num_hidden_layers * (4 * width + 2 * self.intermediate_size))

    def validate_sizes(self):
        for name in LIMITS:
            if (value := getattr(self, name)) < 1:
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

        if self.num_patches > MAX_PATCHES:
            raise ValueError(f"An image must have at most {MAX_PATCHES} patches, got {self.num_patches}.")
        if self.num_weights > MAX_PARAMETERS:
            raise ValueError(f"A network must have at most {MAX_PARAMETERS} parameters, got {self.num_weights}.")

    def validate_ranges(self):
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}.")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {value}.")
        threshold = self.digit_score_threshold
        if threshold is not None and not abs(threshold) < float("inf"):
            raise ValueError(f"digit_score_threshold must be a finite number, got {threshold}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}.")

    def validate_labels(self):
        if self.label2id != {name: index for index, name in (self.id2label or {}).items()}:
            raise ValueError(f"label2id={self.label2id} contradicts id2label={self.id2label}.")


__all__ = ["VitMnistConfig"]
