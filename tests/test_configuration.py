"""The configuration: defaults, timm's names, and an error message for each impossible value."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_vit_mnist import VitMnistConfig


def test_default_is_the_original_network():
    config = VitMnistConfig()
    assert (config.image_size, config.patch_size, config.num_channels, config.num_labels) == (28, 7, 1, 10)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (8, 2, 2)
    assert (config.intermediate_size, config.mlp_ratio, config.qkv_bias) == (16, 2, True)
    assert (config.layer_norm_eps, config.hidden_act) == (1e-6, "gelu")
    assert config.id2label == {digit: str(digit) for digit in range(10)}
    assert config.label2id == {str(digit): digit for digit in range(10)}


def test_timm_names_are_accepted():
    config = VitMnistConfig(
        embed_dim=12, depth=3, num_heads=4, img_size=32, in_chans=3, patch_size=8, drop_rate=0.1, attn_drop_rate=0.2,
        num_classes=26, mlp_ratio=4,
    )  # fmt: skip
    same = VitMnistConfig(
        hidden_size=12, num_hidden_layers=3, num_attention_heads=4, image_size=32, num_channels=3, patch_size=8,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2, num_labels=26, intermediate_size=48,
    )  # fmt: skip
    assert config.to_dict() == same.to_dict()
    assert (config.embed_dim, config.depth, config.num_classes) == (12, 3, 26)


def test_mlp_is_twice_the_width_by_default():
    assert VitMnistConfig(hidden_size=32, num_attention_heads=4).intermediate_size == 64
    assert VitMnistConfig(embed_dim=32).intermediate_size == 64


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 9, "2 heads for a width of 9"),
        ("num_attention_heads", 3, "3 heads for a width of 8"),
        ("patch_size", 5, "patches of 5 for images of 28"),
        ("hidden_size", 0, "hidden_size must be at least 1, got 0"),
        ("num_hidden_layers", -1, "num_hidden_layers must be at least 1, got -1"),
        ("num_channels", 0, "num_channels must be at least 1, got 0"),
        ("num_labels", 0, "num_labels must be at least 1, got 0"),
        ("hidden_dropout_prob", 1.0, r"hidden_dropout_prob must lie in \[0, 1\), got 1.0"),
        ("attention_probs_dropout_prob", -0.1, r"must lie in \[0, 1\), got -0.1"),
        ("layer_norm_eps", 0.0, "layer_norm_eps must be a positive number, got 0.0"),
        ("initializer_range", float("nan"), "initializer_range must be a positive number, got nan"),
        ("hidden_act", "gleu", "hidden_act must be one of .*got 'gleu'"),
        ("initializer", "ones", "initializer.*ones"),
        ("hidden_size", "8", "hidden_size.*expected int, got str"),
        ("image_size", 28.0, "image_size.*expected int, got float"),
    ],
)
def test_impossible_values_are_refused(field, value, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        VitMnistConfig(**{field: value})


def test_saved_config_is_the_same_and_names_all_four_auto_classes(tmp_path):
    VitMnistConfig(hidden_size=16, num_labels=26).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, VitMnistConfig)
    assert (config.hidden_size, config.intermediate_size, config.num_labels) == (16, 32, 26)
    assert config.auto_map.keys() == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForImageClassification",
        "AutoImageProcessor",
    }
