"""The compiled training pass against the plain model."""

import copy
import functools
import json
import os
import pickle
import shutil

import pytest
import torch

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.training import compiled as module
from modeling_vit_mnist.training.arguments import IMAGES_WORTH_COMPILING, VitMnistTrainingArguments
from modeling_vit_mnist.training.compiled import batch_last_forward, compiled, plain

BATCH = 6


def make(**fields) -> VitMnistForImageClassification:
    torch.manual_seed(0)
    return VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager", **fields)).train()


def make_batch(model: VitMnistForImageClassification, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    config = model.config
    shape = size, config.num_channels, config.image_size, config.image_size
    return torch.randn(shape, generator=generator), torch.randint(config.num_labels, (size,), generator=generator)


def classify(model: VitMnistForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    weights, activation = dict(model.named_parameters()), model.vit.blocks[0].mlp.act
    return batch_last_forward(weights, model.config, activation, pixel_values, model.training)


def gradients(model: VitMnistForImageClassification, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.fixture
def graphs_only(monkeypatch):
    """`torch.compile` without its code generator, which takes seconds: what is traced, run operation by operation."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.fixture
def passes(monkeypatch):
    """Calls of [`batch_last_forward`], which is not compiled here."""
    calls = []
    monkeypatch.setattr(
        module, "batch_last_forward", lambda *args, **kwargs: calls.append(1) or batch_last_forward(*args, **kwargs)
    )
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return calls


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qkv_bias": False, "hidden_act": "relu"},
        {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40},
        {"num_hidden_layers": 1, "num_channels": 3, "image_size": 12, "patch_size": 4, "num_labels": 7},
    ],
)
def test_logits_and_gradients_are_the_models_own(fields):
    model = make(**fields).double()
    pixel_values, labels = make_batch(model)
    pixel_values = pixel_values.double()
    logits = classify(model, pixel_values)
    expected = model(pixel_values, labels=labels)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-9, atol=1e-9)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected.loss), rtol=1e-8, atol=1e-8)


def test_dropout_is_where_the_model_has_it(monkeypatch):
    model = make(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1)
    pixel_values, _ = make_batch(model)
    seen = []

    def dropout(x, p=0.5, training=True, inplace=False):
        seen.append((x.numel(), p, training))
        return x

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    model(pixel_values)
    by_model = list(seen)
    seen.clear()
    classify(model, pixel_values)
    assert seen == by_model and len(seen) == 7  # positions, and in each block attention and two branches


def test_half_precision_is_as_near_as_the_models_own():
    model = make()
    pixel_values, _ = make_batch(model, 64)
    exact = model(pixel_values).logits
    with torch.autocast("cpu", torch.bfloat16):
        by_model, innermost = model(pixel_values).logits.float(), classify(model, pixel_values).float()
    assert (innermost - exact).abs().mean() < 1.5 * (by_model - exact).abs().mean()


def test_only_training_passes_of_the_batch_size_are_compiled(passes):
    other, model = make(), compiled(make(), BATCH)

    def is_compiled(size=BATCH, **kwargs):
        pixel_values, labels = make_batch(model, size)
        passes.clear()
        output = model(pixel_values, labels=labels, **kwargs)
        torch.testing.assert_close(output.logits, other(pixel_values).logits)
        torch.testing.assert_close(output.loss, other(pixel_values, labels=labels).loss)
        return bool(passes)

    assert is_compiled()
    assert not is_compiled(size=BATCH - 1)
    assert not is_compiled(interpolate_pos_encoding=True)
    passes.clear()
    model(make_batch(model)[0]).logits.sum().backward()  # for a loss of one's own
    assert not passes
    with torch.no_grad():
        assert not is_compiled()
    model.eval()
    assert not is_compiled()


def test_num_items_in_batch_scales_the_loss(passes):
    model = make()
    pixel_values, labels = make_batch(model)
    expected = model(pixel_values, labels=labels).loss / 2
    loss = compiled(model, BATCH)(pixel_values, labels=labels, num_items_in_batch=2 * BATCH).loss
    torch.testing.assert_close(loss, expected)


def test_gradients_follow_the_loss_and_add_up(passes):
    model, other = compiled(make(), BATCH), make()
    pixel_values, labels = make_batch(model)
    for scale in (1.0, 0.25):
        for each in (model, other):
            (scale * each(pixel_values, labels=labels).loss).backward()
    expected = [param.grad for param in other.parameters()]
    torch.testing.assert_close([param.grad for param in model.parameters()], expected)
    model.zero_grad(set_to_none=False)
    assert all(param.grad.count_nonzero() == 0 for param in model.parameters())
    model.zero_grad()
    assert all(param.grad is None for param in model.parameters())


def test_the_compiled_and_the_plain_model_share_their_weights():
    model = make()
    other = compiled(model, BATCH)
    assert type(model) is type(plain(other)) is VitMnistForImageClassification
    for each in (other, plain(other)):
        assert [id(param) for param in each.parameters()] == [id(param) for param in model.parameters()]


def test_copies_and_pickles_compute_with_their_own_weights(graphs_only):
    model = compiled(make(num_hidden_layers=1), BATCH)
    pixel_values, labels = make_batch(model)
    before = model(pixel_values, labels=labels).loss  # compiled before it is copied
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            for param in other.parameters():
                param.mul_(1.5)
        loss = other(pixel_values, labels=labels).loss
        assert "_loss_and_gradients" in vars(other)  # the copy has compiled a pass of its own
        torch.testing.assert_close(loss, plain(other)(pixel_values, labels=labels).loss)
        torch.testing.assert_close(model(pixel_values, labels=labels).loss, before)
        assert abs(loss - before) > 0.01


def test_hooks_see_what_they_see_in_the_plain_model(passes):
    model, other = compiled(make(), BATCH), make()
    pixel_values, labels = make_batch(model)
    model(pixel_values, labels=labels)
    assert passes.pop()
    seen = []
    hooks = [
        each.vit.blocks[1].mlp.register_forward_hook(lambda *args: seen.append(args[-1])) for each in (model, other)
    ]
    for each in (model, other):
        each(pixel_values, labels=labels)
    assert not passes and len(seen) == 2 and seen[0].shape == (BATCH, 17, 8)
    torch.testing.assert_close(*seen)
    hooks[0].remove()
    model(pixel_values, labels=labels)
    assert passes


def test_a_replaced_weight_is_used(passes):
    model = compiled(make(), BATCH)
    pixel_values, labels = make_batch(model)
    before = gradients(model, model(pixel_values, labels=labels).loss)
    model.head.weight = torch.nn.Parameter(-3 * model.head.weight.detach())
    result = gradients(model, model(pixel_values, labels=labels).loss)
    torch.testing.assert_close(result, gradients(model, plain(model)(pixel_values, labels=labels).loss))
    assert len(passes) == 2 and (result["head.bias"] - before["head.bias"]).abs().max() > 0.01


def test_a_replaced_head_is_computed_by_the_plain_pass(passes):
    model = compiled(make(), BATCH)
    pixel_values, labels = make_batch(model)
    model.head = torch.nn.Sequential(model.head, torch.nn.Tanh())
    output = model(pixel_values, labels=labels)
    assert not passes
    torch.testing.assert_close(output.logits, plain(model)(pixel_values).logits)
    assert output.logits.abs().max() < 1


@pytest.mark.parametrize(
    "asked", [{"output_hidden_states": True}, {"output_attentions": True}, {"return_dict": False}], ids=str
)
def test_other_outputs_are_computed_by_the_plain_pass(passes, asked):
    model = compiled(make(), BATCH)
    pixel_values, labels = make_batch(model)
    result, expected = (each(pixel_values, labels=labels, **asked) for each in (model, plain(model)))
    assert type(result) is type(expected)
    torch.testing.assert_close(result[:], expected[:])  # the loss, the logits, and what was asked for


def test_gradients_of_images_are_computed_by_the_plain_pass(passes):
    model = compiled(make(), BATCH)
    pixel_values, labels = make_batch(model)
    pixel_values.requires_grad_()
    results = [
        torch.autograd.grad(each(pixel_values, labels=labels).loss, pixel_values, allow_unused=True)[0]
        for each in (model, plain(model))
    ]
    torch.testing.assert_close(*results)


def test_gradients_through_the_logits_are_not_lost(passes):
    model = compiled(make(), BATCH)
    pixel_values, labels = make_batch(model)
    output = model(pixel_values, labels=labels)
    with pytest.raises(RuntimeError, match="logits"):
        (output.loss + output.logits.square().mean()).backward()


def test_a_head_of_another_class_is_computed_by_the_plain_pass(passes):
    class Doubled(torch.nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    model = compiled(make(), BATCH)
    pixel_values, labels = make_batch(model)
    model.head = Doubled(8, 10)  # its weights have the same names
    torch.testing.assert_close(model(pixel_values, labels=labels).logits, plain(model)(pixel_values).logits)


def test_a_compiled_model_is_saved_as_the_plain_class(tmp_path):
    model = compiled(make(), BATCH)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["VitMnistForImageClassification"]
    assert not (tmp_path / "compiled.py").exists()
    loaded = VitMnistForImageClassification.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_without_a_compiler_the_plain_pass_trains(monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    model = compiled(make(), BATCH)
    pixel_values, labels = make_batch(model)
    for _ in range(2):
        torch.testing.assert_close(model(pixel_values, labels=labels).loss, make()(pixel_values, labels=labels).loss)
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile failed; continuing uncompiled (slower): No working C++ compiler found"
    ]


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler, $CXX or g++, to compile with"
)
def test_compiled_code_computes_the_same():
    model = make(num_hidden_layers=1)
    pixel_values, labels = make_batch(model)
    expected = gradients(model, model(pixel_values, labels=labels).loss)
    model = compiled(model, BATCH)
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    result = gradients(model, model(pixel_values, labels=labels).loss)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "images", "expected"),
    [
        ({}, IMAGES_WORTH_COMPILING, True),
        ({}, IMAGES_WORTH_COMPILING - 1, False),
        ({"compile_training": "yes"}, 1, True),
        ({"compile_training": "no"}, 10**7, False),
        ({"gradient_checkpointing": True}, 10**7, False),
        ({"torch_compile": True}, 10**7, False),
        ({"label_smoothing_factor": 0.1}, 10**7, False),
    ],
)
def test_compiling_is_for_long_runs(flags, images, expected, tmp_path):
    args = VitMnistTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **flags)
    assert args.should_compile(images) is expected


@pytest.mark.parametrize(
    "flags",
    [
        {"gradient_checkpointing": True},
        {"torch_compile": True},
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5},
    ],
    ids=str,
)
def test_compiling_that_would_not_happen_is_refused(flags, tmp_path):
    with pytest.raises(UsageError, match=f"--compile_training yes cannot be combined with --{next(iter(flags))}"):
        VitMnistTrainingArguments(output_dir=str(tmp_path), use_cpu=True, compile_training="yes", **flags)


def test_compiling_on_another_device_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(VitMnistTrainingArguments, "device", torch.device("cuda"))
    with pytest.raises(UsageError, match="cannot be combined with the device cuda"):
        VitMnistTrainingArguments(output_dir=str(tmp_path), use_cpu=True, compile_training="yes")
