"""What transformers tests of its own models, tested of ours: the model, the classifier, and their processor."""

import copy
import inspect
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    PreTrainedModel,
)

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, VitMnistImageProcessor, VitMnistModel

BOTH = pytest.mark.parametrize("kind", [VitMnistModel, VitMnistForImageClassification])
# Every size differs from the defaults and from each other, so that a confusion of two shows.
SIZES = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 20}
LAYERS, TOKENS = 3, 1 + 16


def make(kind: type[PreTrainedModel], attn: str = "eager", **fields) -> PreTrainedModel:
    torch.manual_seed(0)
    model = kind(VitMnistConfig(attn_implementation=attn, **SIZES | fields))
    with torch.no_grad():  # biases start as zeros and LayerNorms as ones, which would hide errors
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def result(output) -> torch.Tensor:
    """The main output of a model: the logits, or the tokens."""
    return output.logits if "logits" in output else output.last_hidden_state


def assert_same(model: nn.Module, other: nn.Module, pixel_values: torch.Tensor) -> None:
    """The same weights and, bit for bit, the same result."""
    state = other.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    with torch.no_grad():
        assert torch.equal(result(other(pixel_values)), result(model(pixel_values)))


def gradients(model: nn.Module, pixel_values: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Gradients of a weighted sum of the output, in which every number has its own weight."""
    model.zero_grad()
    output = result(model(pixel_values))
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


# Saving and loading


@BOTH
def test_a_saved_model_loads_unchanged(kind, tmp_path, pixel_values):
    model = make(kind)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == model.state_dict().keys() and file.metadata() == {"format": "pt"}
    loaded, info = kind.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(info.values()), info
    assert not loaded.training
    assert_same(model, loaded, pixel_values)


@BOTH
def test_shards_are_loaded(kind, tmp_path, pixel_values):
    model = make(kind)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2 and not (tmp_path / "model.safetensors").exists()
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert_same(model, kind.from_pretrained(tmp_path, attn_implementation="eager"), pixel_values)


@BOTH
def test_device_map_auto(kind, tmp_path, pixel_values):
    model = make(kind)
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, device_map="auto", attn_implementation="eager")
    found = result(loaded(pixel_values.to(loaded.device)))
    # An accelerator's convolutions may round to TF32.
    tolerance = 0 if loaded.device.type == "cpu" else 1e-2
    torch.testing.assert_close(found.cpu(), result(model(pixel_values)), rtol=0, atol=tolerance)


@BOTH
@pytest.mark.parametrize(("memory", "devices"), [(200, {"disk"}), (6_000, {"cpu", "disk"}), (9_000, {"cpu", "disk"})])
def test_device_map_auto_offloads_to_disk(kind, memory, devices, tmp_path, pixel_values):
    model = make(kind)
    model.save_pretrained(tmp_path / "model")
    loaded = kind.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": memory}, offload_folder=tmp_path / "offload",
        attn_implementation="eager",
    )  # fmt: skip
    assert set(loaded.hf_device_map.values()) == devices
    assert any(parameter.is_meta for parameter in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(result(loaded(pixel_values)), result(model(pixel_values)))


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16"])
def test_dtype(kind, tmp_path, dtype):
    model = make(kind)
    model.save_pretrained(tmp_path / "single")
    half = kind.from_pretrained(tmp_path / "single", dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert half.dtype == half.config.dtype == wanted
    for name, value in half.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(wanted)), name
    half.save_pretrained(tmp_path / "half")
    assert kind.from_pretrained(tmp_path / "half", dtype="auto").dtype == wanted
    assert kind.from_pretrained(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


def test_an_encoder_loads_a_classifier(tmp_path, pixel_values):
    classifier = make(VitMnistForImageClassification)
    classifier.save_pretrained(tmp_path)
    encoder, info = VitMnistModel.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and set(info["unexpected_keys"]) == {"head.weight", "head.bias"}
    assert_same(classifier.vit, encoder, pixel_values)


def test_a_classifier_loads_an_encoder_with_a_new_head(tmp_path, pixel_values):
    encoder = make(VitMnistModel)
    encoder.save_pretrained(tmp_path)
    classifier, info = VitMnistForImageClassification.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"head.weight", "head.bias"} and not info["unexpected_keys"]
    assert_same(encoder, classifier.vit, pixel_values)
    assert 0 < classifier.head.weight.abs().max() <= (6 / (12 + 10)) ** 0.5 and not classifier.head.bias.any()


LETTERS = {0: "a", 1: "b", 2: "c"}


def test_other_classes_need_ignore_mismatched_sizes(tmp_path, pixel_values):
    model = make(VitMnistForImageClassification)
    model.save_pretrained(tmp_path / "digits")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        VitMnistForImageClassification.from_pretrained(tmp_path / "digits", id2label=LETTERS)
    letters, info = VitMnistForImageClassification.from_pretrained(
        tmp_path / "digits", id2label=LETTERS, label2id={"a": 0, "b": 1, "c": 2}, ignore_mismatched_sizes=True,
        attn_implementation="eager", output_loading_info=True,
    )  # fmt: skip
    assert {key[0] for key in info["mismatched_keys"]} == {"head.weight", "head.bias"}
    assert_same(model.vit, letters.vit, pixel_values)
    assert 0 < letters.head.weight.std() < 1
    letters.save_pretrained(tmp_path / "letters")
    again = VitMnistForImageClassification.from_pretrained(tmp_path / "letters", attn_implementation="eager")
    assert (again.config.num_labels, again.config.id2label) == (3, LETTERS)
    assert again.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert_same(letters, again, pixel_values)


@BOTH
def test_every_weight_is_initialized(kind, monkeypatch):
    """Loading an empty checkpoint creates every weight on the meta device. All of them must then be filled."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # with NaN
    torch.use_deterministic_algorithms(True)
    try:
        empty = kind.from_pretrained(None, config=VitMnistConfig(**SIZES), state_dict={})
    finally:
        torch.use_deterministic_algorithms(False)
    for name, usual in kind(VitMnistConfig(**SIZES)).state_dict().items():
        value = empty.state_dict()[name]
        if usual.unique().numel() == 1:  # zeros and ones
            assert torch.equal(value, usual), name
        else:
            assert 0.5 < value.std() / usual.std() < 2, name


@BOTH
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_saved_as_an_uncompiled_one(kind, tmp_path, pixel_values, in_place):
    model = make(kind)
    if in_place:
        model.compile(backend="eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager")
    compiled(pixel_values)
    compiled.save_pretrained(tmp_path)
    assert_same(make(kind), kind.from_pretrained(tmp_path, attn_implementation="eager"), pixel_values)


@BOTH
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(kind, duplicate, pixel_values):
    model = make(kind)
    twin = duplicate(model)
    assert_same(model, twin, pixel_values)
    before = result(model(pixel_values))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.config.num_hidden_layers = 7
    assert torch.equal(result(model(pixel_values)), before) and model.config.num_hidden_layers == LAYERS


# Outputs


@BOTH
def test_tuple_and_dict_are_equal(kind, pixel_values):
    model = make(kind)
    options = {"output_hidden_states": True, "output_attentions": True}
    if kind is VitMnistForImageClassification:
        options["labels"] = torch.arange(5)
    output = model(pixel_values, **options)
    names = ["last_hidden_state", "pooler_output"] if kind is VitMnistModel else ["loss", "logits"]
    assert list(output) == [*names, "hidden_states", "attentions"]
    as_tuple = model(pixel_values, return_dict=False, **options)
    assert type(as_tuple) is tuple
    torch.testing.assert_close(as_tuple, output.to_tuple(), rtol=0, atol=0)
    model.config.return_dict = False
    torch.testing.assert_close(model(pixel_values, **options), as_tuple, rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize("through", ["argument", "config"])
def test_hidden_states_and_attentions(kind, through, pixel_values):
    model = make(kind)
    options = {"output_hidden_states": True, "output_attentions": True}
    if through == "config":
        for name in options:
            setattr(model.config, name, True)
        output = model(pixel_values)
    else:
        output = model(pixel_values, **options)
    assert [tuple(state.shape) for state in output.hidden_states] == [(5, TOKENS, 12)] * (1 + LAYERS)
    assert [tuple(attention.shape) for attention in output.attentions] == [(5, 4, TOKENS, TOKENS)] * LAYERS
    encoder = model.base_model
    last = encoder.norm(output.hidden_states[-1])
    expected = last if kind is VitMnistModel else model.head(last[:, 0])
    torch.testing.assert_close(result(output), expected, rtol=0, atol=1e-6)
    for block, before, after in zip(encoder.blocks, output.hidden_states, output.hidden_states[1:], strict=False):
        torch.testing.assert_close(block(before), after, rtol=0, atol=1e-6)


@BOTH
def test_recorded_tensors_keep_their_gradients(kind, pixel_values):
    output = make(kind)(pixel_values, output_hidden_states=True, output_attentions=True)
    recorded = [*output.hidden_states, *output.attentions]
    for tensor in recorded:
        tensor.retain_grad()
    result(output)[:, 0].sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in recorded)


@BOTH
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("dropout", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout_acts_only_in_training(kind, attn, dropout, pixel_values):
    model = make(kind, attn, **{dropout: 0.5})
    assert torch.equal(result(model(pixel_values)), result(model(pixel_values)))
    model.train()
    assert not torch.equal(result(model(pixel_values)), result(model(pixel_values)))


@BOTH
def test_a_batch_gives_the_results_of_its_images(kind, pixel_values):
    model = make(kind)
    with torch.no_grad():
        one_by_one = torch.cat([result(model(image[None])) for image in pixel_values])
        torch.testing.assert_close(result(model(pixel_values)), one_by_one, rtol=0, atol=1e-5)


# Training


@BOTH
@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"attn": "sdpa"}])
def test_gradients_reach_every_parameter(kind, options, pixel_values):
    reached = gradients(make(kind, **options).train(), pixel_values)
    assert [name for name, gradient in reached.items() if gradient is None or not gradient.any()] == []


@BOTH
def test_eager_and_sdpa_give_the_same_gradients(kind, pixel_values):
    eager, sdpa = (gradients(make(kind, attn=attn), pixel_values) for attn in ("eager", "sdpa"))
    torch.testing.assert_close(sdpa, eager, rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_keeps_gradients(kind, use_reentrant, pixel_values):
    """With dropout, which has to be drawn again, and with frozen embeddings, as when adapters are trained."""
    found = []
    for checkpointing in (False, True):
        model = make(kind, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("blocks" in name)
        if checkpointing:
            # newer, older name
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
            assert all(block.gradient_checkpointing for block in model.base_model.blocks)
        torch.manual_seed(1)
        found.append(gradients(model, pixel_values))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert (gradient is None) == ("blocks" not in name)
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0, msg=name)


def squared_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (logits.squeeze(1) - labels).square().mean()


SEVERAL = torch.eye(5)[:, :3]  # none or one of three classes per image


@pytest.mark.parametrize(
    ("problem_type", "named", "num_labels", "labels", "loss"),
    [
        ("single_label_classification", True, 10, torch.arange(5), nn.functional.cross_entropy),
        ("single_label_classification", False, 10, torch.arange(5), nn.functional.cross_entropy),
        ("multi_label_classification", True, 3, SEVERAL, nn.functional.binary_cross_entropy_with_logits),
        ("multi_label_classification", False, 3, SEVERAL, nn.functional.binary_cross_entropy_with_logits),
        ("regression", True, 3, SEVERAL, nn.functional.mse_loss),
        ("regression", True, 1, torch.linspace(0, 9, 5), squared_error),
        ("regression", False, 1, torch.linspace(0, 9, 5), squared_error),
    ],
)
def test_problem_types(problem_type, named, num_labels, labels, loss, pixel_values):
    """Named in the config, or inferred from the labels as in transformers."""
    fields = {"problem_type": problem_type} if named else {}
    model = make(VitMnistForImageClassification, num_labels=num_labels, **fields)
    output = model(pixel_values, labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    assert model.config.problem_type == problem_type


# Names that other code relies on


@BOTH
def test_names_that_transformers_relies_on(kind, pixel_values):
    model = make(kind)
    assert list(inspect.signature(kind.forward).parameters)[1] == kind.main_input_name
    assert kind.config_class is VitMnistConfig
    assert isinstance(model.base_model, VitMnistModel)
    assert {type(module).__name__ for module in model.modules()} >= set(kind._no_split_modules)
    assert not model.can_generate()
    patch_embed = model.get_input_embeddings()
    assert patch_embed(pixel_values).shape == (5, TOKENS - 1, 12)


@BOTH
def test_auto_classes_create_a_model_from_a_config(kind):
    auto = AutoModel if kind is VitMnistModel else AutoModelForImageClassification
    torch.manual_seed(0)
    model = auto.from_config(VitMnistConfig(**SIZES), attn_implementation="eager", dtype=torch.bfloat16)
    assert type(model) is kind and model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"
    torch.manual_seed(0)
    same = auto.from_config(VitMnistConfig(**SIZES), dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_config_round_trips(tmp_path):
    config = VitMnistConfig(**SIZES, id2label=LETTERS, initializer="trunc_normal")
    config.save_pretrained(tmp_path)
    for other in (
        VitMnistConfig.from_dict(config.to_dict()),
        VitMnistConfig.from_dict(json.loads(config.to_json_string())),
        VitMnistConfig(**config.to_diff_dict()),
        VitMnistConfig.from_pretrained(tmp_path),
        AutoConfig.for_model(**config.to_dict()),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
    ):
        a, b = other.to_dict(), config.to_dict()
        assert {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)} == {}
        assert other.id2label == LETTERS and other.num_labels == 3
    changed, unused = VitMnistConfig.from_pretrained(tmp_path, depth=5, color="red", return_unused_kwargs=True)
    assert changed.num_hidden_layers == 5 and unused == {"color": "red"}


def test_timms_names_can_be_set():
    config = VitMnistConfig()
    config.embed_dim = 16
    assert config.hidden_size == 16 and "embed_dim" not in config.to_dict()


# The processor


def test_processor_round_trips(tmp_path):
    processor = VitMnistImageProcessor(do_invert="auto", do_center=True, size=35, image_mean=[0.2], background=0)
    processor.save_pretrained(tmp_path)
    VitMnistConfig().save_pretrained(tmp_path)
    image = torch.arange(40 * 40, dtype=torch.int32).reshape(40, 40).remainder(256).to(torch.uint8)
    expected = processor(image, return_tensors="pt")
    assert list(expected) == processor.model_input_names == ["pixel_values"]
    for other in (
        VitMnistImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
        VitMnistImageProcessor.from_dict(processor.to_dict()),
        VitMnistImageProcessor(**json.loads(processor.to_json_string())),
        copy.deepcopy(processor),
        pickle.loads(pickle.dumps(processor)),
    ):
        assert type(other) is VitMnistImageProcessor and other.to_dict() == processor.to_dict()
        assert torch.equal(other.preprocess(image, return_tensors="pt").pixel_values, expected.pixel_values)
    assert AutoImageProcessor.from_pretrained(tmp_path, do_center=False).do_center is False
