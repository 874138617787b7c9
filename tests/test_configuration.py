"""The configuration: defaults, timm's names, names of classes, and an error message for each impossible value."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification

REFUSED = (ValueError, StrictDataclassError)


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
        ("num_labels", 0, "num_labels must be an integer of at least 1, got 0"),
        ("num_labels", True, "num_labels must be an integer of at least 1, got True"),
        ("num_classes", 3.0, "num_labels must be an integer of at least 1, got 3.0"),
        ("hidden_dropout_prob", 1.0, r"hidden_dropout_prob must lie in \[0, 1\), got 1.0"),
        ("attention_probs_dropout_prob", -0.1, r"must lie in \[0, 1\), got -0.1"),
        ("layer_norm_eps", 0.0, "layer_norm_eps must be a positive number, got 0.0"),
        ("initializer_range", float("nan"), "initializer_range must be a positive number, got nan"),
        ("digit_score_threshold", float("nan"), "digit_score_threshold must be a finite number, got nan"),
        ("digit_score_threshold", float("-inf"), "digit_score_threshold must be a finite number, got -inf"),
        ("digit_score_threshold", "3", "digit_score_threshold.*str"),
        ("hidden_act", "gleu", "hidden_act must be one of .*got 'gleu'"),
        ("initializer", "ones", "initializer.*ones"),
        ("hidden_size", "8", "hidden_size.*expected int, got str"),
        ("image_size", 28.0, "image_size.*expected int, got float"),
        ("embed_dim", True, "hidden_size.*expected int, got bool"),
        ("mlp_ratio", 1.3, r"got 8 \* 1.3 and 10"),
        ("mlp_ratio", float("nan"), "mlp_ratio must be a positive number, got nan"),
        ("mlp_ratio", "2", "mlp_ratio must be a positive number, got '2'"),
        ("mlp_ratio", [2], r"mlp_ratio must be a positive number, got \[2\]"),
        ("depth", [2], "num_hidden_layers.*expected int, got list"),
        ("id2label", ["a", "b"], "id2label.*list"),
        ("id2label", "ab", "id2label.*str"),
        ("label2id", ["a", "b"], "label2id.*list"),
        ("label2id", 3, "label2id.*int"),
        ("hiden_size", 16, "Unknown setting 'hiden_size': did you mean 'hidden_size'?"),
        ("num_layers", 4, "Unknown setting 'num_layers': did you mean 'num_hidden_layers'?"),
        ("n_head", 4, "Unknown setting 'n_head': did you mean 'num_attention_heads'?"),
        ("n_heads", 4, "Unknown setting 'n_heads': did you mean 'num_heads'?"),
        ("hidden_dropout", 0.1, "Unknown setting 'hidden_dropout': did you mean 'hidden_dropout_prob'?"),
        ("id2label", {0: "a", 2: "b"}, "classes 0 to n - 1 to different names, got {0: 'a', 2: 'b'}"),
        ("id2label", {0: "a", 1: "a"}, "to different names, got {0: 'a', 1: 'a'}"),
        ("id2label", {"zero": "a"}, "to different names, got {'zero': 'a'}"),
        ("id2label", {}, "to different names, got {}"),
        ("label2id", {"a": 0, "b": 0}, "label2id={'a': 0, 'b': 0} contradicts id2label={0: 'b'}|different names"),
    ],
)
def test_impossible_values_are_refused(field, value, message):
    with pytest.raises(REFUSED, match=message):
        VitMnistConfig(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 16, "embed_dim": 8}, "hidden_size=16 contradicts embed_dim=8"),
        ({"hidden_size": 8, "embed_dim": 16}, "hidden_size=8 contradicts embed_dim=16"),  # 8 is the default
        ({"num_hidden_layers": 2, "depth": 3}, "num_hidden_layers=2 contradicts depth=3"),
        ({"num_attention_heads": 2, "num_heads": 4}, "num_attention_heads=2 contradicts num_heads=4"),
        ({"image_size": 28, "img_size": 35}, "image_size=28 contradicts img_size=35"),
        ({"num_channels": 1, "in_chans": 3}, "num_channels=1 contradicts in_chans=3"),
        ({"hidden_dropout_prob": 0.1, "drop_rate": 0.2}, "hidden_dropout_prob=0.1 contradicts drop_rate=0.2"),
        ({"attention_probs_dropout_prob": 0.0, "attn_drop_rate": 0.2}, "contradicts attn_drop_rate=0.2"),
        ({"num_labels": 4, "num_classes": 3}, "num_labels=4 contradicts num_classes=3"),
        ({"intermediate_size": 8, "mlp_ratio": 4}, r"got 8 \* 4 and 8"),
        ({"id2label": {0: "a", 1: "b"}, "num_labels": 3}, "num_labels=3 contradicts the 2 names"),
        ({"label2id": {"a": 0, "b": 1}, "num_classes": 3}, "num_labels=3 contradicts the 2 names"),
        ({"id2label": {0: "a"}, "label2id": {"b": 0}}, "label2id={'b': 0} contradicts id2label={0: 'a'}"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, message, tmp_path):
    with pytest.raises(REFUSED, match=message):
        VitMnistConfig(**fields)
    VitMnistConfig().save_pretrained(tmp_path)
    with pytest.raises(REFUSED, match=message):
        AutoConfig.from_pretrained(tmp_path, **fields)


def test_settings_given_twice_with_one_value_are_accepted():
    config = VitMnistConfig(
        hidden_size=16, embed_dim=16, intermediate_size=64, mlp_ratio=4, num_labels=2, num_classes=2,
        id2label={0: "a", 1: "b"},
    )  # fmt: skip
    assert (config.hidden_size, config.intermediate_size, config.id2label) == (16, 64, {0: "a", 1: "b"})


@pytest.mark.parametrize(
    "names",
    [
        {"id2label": {0: "cat", 1: "dog", 2: "eel"}},
        {"id2label": {"2": "eel", "0": "cat", "1": "dog"}},
        {"label2id": {"eel": 2, "cat": 0, "dog": 1}},
        {"label2id": {"cat": "0", "dog": "1", "eel": "2"}, "num_labels": 3},
        {"id2label": {"0": "cat", "1": "dog", "2": "eel"}, "label2id": {"cat": "0", "dog": "1", "eel": "2"}},
    ],
)
def test_names_of_classes_are_completed_and_ordered(names, tmp_path):
    VitMnistConfig(**names).save_pretrained(tmp_path / "new")
    VitMnistConfig().save_pretrained(tmp_path / "digits")
    for config in (
        VitMnistConfig(**names),
        AutoConfig.from_pretrained(tmp_path / "new"),
        AutoConfig.from_pretrained(tmp_path / "digits", **names),  # as fine-tuning scripts do
    ):
        assert list(config.id2label.items()) == [(0, "cat"), (1, "dog"), (2, "eel")]
        assert config.label2id == {"cat": 0, "dog": 1, "eel": 2} and config.num_labels == 3


@pytest.mark.parametrize("fields", [("id2label",), ("label2id",), ("id2label", "label2id")])
def test_names_of_classes_may_be_numbers(fields, tmp_path):
    names = {field: {index: index for index in range(3)} for field in fields}
    VitMnistConfig().save_pretrained(tmp_path)
    for config in (VitMnistConfig(**names), AutoConfig.from_pretrained(tmp_path, **names)):
        assert (config.id2label, config.label2id) == ({0: "0", 1: "1", 2: "2"}, {"0": 0, "1": 1, "2": 2})
    config.label2id = {0: 0, 1: 1, 2: 2}
    config.save_pretrained(tmp_path)


@pytest.mark.parametrize("num_labels", [1, 2, 3, 10])
def test_names_that_no_one_gave_are_saved(num_labels, tmp_path):
    """transformers' own default, two classes named LABEL_0 and LABEL_1, is not the default here."""
    config = VitMnistConfig(num_labels=num_labels)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).id2label == config.id2label and config.num_labels == num_labels
    model = VitMnistForImageClassification(config)
    model.save_pretrained(tmp_path)
    assert VitMnistForImageClassification.from_pretrained(tmp_path).head.out_features == num_labels


def test_more_than_ten_names_keep_their_order_in_json_of_other_programs(tmp_path):
    letters = {index: f"class {index}" for index in range(26)}
    VitMnistConfig(id2label=letters).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    record["id2label"] = dict(sorted(record["id2label"].items()))  # 0, 1, 10, 11 ...
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert list(AutoConfig.from_pretrained(tmp_path).id2label.items()) == list(letters.items())


def test_loading_replaces_what_was_saved(tmp_path):
    VitMnistConfig(id2label={0: "a", 1: "b"}, hidden_size=16).save_pretrained(tmp_path)
    load = VitMnistConfig.from_pretrained
    assert load(tmp_path, num_labels=2).id2label == {0: "a", 1: "b"}
    assert load(tmp_path, num_labels=10).id2label == {digit: str(digit) for digit in range(10)}
    assert load(tmp_path, embed_dim=24).hidden_size == 24
    assert load(tmp_path, mlp_ratio=4).intermediate_size == 64
    assert load(tmp_path, num_labels=None, depth=None).to_dict() == load(tmp_path).to_dict()
    assert load(tmp_path, hidden_size=8, intermediate_size=None).intermediate_size == 16
    with pytest.raises(REFUSED, match="did you mean 'hidden_size'"):
        load(tmp_path, hiden_size=24)
    with pytest.raises(REFUSED, match="layer_norm_eps must be a positive number, got nan"):
        load(tmp_path, layer_norm_eps=float("nan"))


def test_the_threshold_is_that_of_the_classes_it_was_set_for(tmp_path):
    VitMnistConfig(digit_score_threshold=1.5).save_pretrained(tmp_path)
    load = VitMnistConfig.from_pretrained
    renamed = {number: f"digit {number}" for number in range(10)}
    for change, threshold in (
        ({}, 1.5), ({"hidden_size": 16}, 1.5), ({"id2label": renamed}, 1.5), ({"digit_score_threshold": None}, None),
        ({"num_labels": 2}, None), ({"label2id": {"a": 0, "b": 1}}, None),
        ({"num_labels": 2, "digit_score_threshold": 0.5}, 0.5),
    ):  # fmt: skip
        assert load(tmp_path, **change).digit_score_threshold == threshold, change


def test_a_misspelled_setting_in_a_file_is_named(tmp_path, caplog):
    VitMnistConfig(num_attention_heads=4).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("num_attention_heads", "num_attention_head"))
    assert AutoConfig.from_pretrained(tmp_path).num_attention_heads == 2
    assert "'num_attention_head': did you mean 'num_attention_heads'? It is ignored." in caplog.text


def test_settings_of_other_programs_are_loaded(tmp_path):
    config = VitMnistConfig(color="red", pos_drop_rate=0.1, num_kv_heads=2)  # neither is a misspelled setting
    config.layer_norm_epsilon = 1.0  # transformers' own tests set it for any model
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert (loaded.color, loaded.layer_norm_epsilon, loaded.layer_norm_eps) == ("red", 1.0, 1e-6)


@pytest.mark.parametrize(("alias", "value"), [("embed_dim", "16"), ("depth", 2.0), ("drop_rate", None)])
def test_types_are_checked_under_any_name_when_a_field_is_set(alias, value):
    with pytest.raises(StrictDataclassError, match=VitMnistConfig.attribute_map[alias]):
        setattr(VitMnistConfig(), alias, value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, "num_hidden_layers must be at least 1, got 0"),
        ("num_heads", 3, "3 heads for a width of 8"),
        ("hidden_dropout_prob", 2.0, "must lie in"),
        ("layer_norm_eps", float("nan"), "must be a positive number, got nan"),
        ("hidden_act", "gleu", "got 'gleu'"),
        ("label2id", {"x": 0}, "label2id={'x': 0} contradicts"),
    ],
)
def test_an_impossible_value_set_later_reaches_neither_a_model_nor_a_file(field, value, message, tmp_path):
    config = VitMnistConfig()
    setattr(config, field, value)
    with pytest.raises(REFUSED, match=message):
        VitMnistForImageClassification(config)
    with pytest.raises(REFUSED, match=message):
        config.save_pretrained(tmp_path)


def test_new_names_replace_the_old_ones_in_both_directions():
    config = VitMnistConfig()
    config.id2label = {"1": "b", "0": "a"}
    assert (config.id2label, config.label2id, config.num_labels) == ({0: "a", 1: "b"}, {"a": 0, "b": 1}, 2)
    config.num_classes = 3
    assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


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
