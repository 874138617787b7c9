"""The training pass with the batch innermost, against the model that reads as the paper does."""

import functools
import os
import shutil

import pytest
import torch

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification, compiled, functional
from modeling_vit_mnist.training import IMAGES_WORTH_COMPILING, VitMnistTrainingArguments


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
    return functional.classify(weights, model.config, activation, pixel_values, model.training)


def gradients(model: VitMnistForImageClassification, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


@pytest.fixture
def graphs_only(monkeypatch):
    """`torch.compile` without its code generator, which takes seconds: what is traced, run operation by operation."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


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


def test_only_training_passes_of_the_batch_size_are_compiled(graphs_only, monkeypatch):
    plain, model = make(), make()
    calls = []
    monkeypatch.setattr(compiled, "classify", lambda *a, **k: calls.append(1) or functional.classify(*a, **k))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiled.compile_training(model, BATCH)

    def is_compiled(size=BATCH, **kwargs):
        pixel_values, labels = make_batch(model, size)
        calls.clear()
        output = model(pixel_values, labels=labels, **kwargs)
        torch.testing.assert_close(output.logits, plain(pixel_values).logits)
        torch.testing.assert_close(output.loss, plain(pixel_values, labels=labels).loss)
        return bool(calls)

    assert is_compiled()
    assert not is_compiled(size=BATCH - 1)
    assert not is_compiled(interpolate_pos_encoding=True)
    calls.clear()
    model(make_batch(model)[0]).logits.sum().backward()  # for a loss of one's own
    assert not calls
    with torch.no_grad():
        assert not is_compiled()
    model.eval()
    assert not is_compiled()


def test_num_items_in_batch_scales_the_loss(graphs_only):
    model = make()
    pixel_values, labels = make_batch(model)
    expected = model(pixel_values, labels=labels).loss / 2
    compiled.compile_training(model, BATCH)
    torch.testing.assert_close(model(pixel_values, labels=labels, num_items_in_batch=2 * BATCH).loss, expected)


def test_gradients_follow_the_loss_and_add_up(graphs_only):
    model, plain = make(), make()
    pixel_values, labels = make_batch(model)
    compiled.compile_training(model, BATCH)
    for scale in (1.0, 0.25):
        for each in (model, plain):
            (scale * each(pixel_values, labels=labels).loss).backward()
    expected = [param.grad for param in plain.parameters()]
    torch.testing.assert_close([param.grad for param in model.parameters()], expected)
    model.zero_grad(set_to_none=False)
    assert all(param.grad.count_nonzero() == 0 for param in model.parameters())
    model.zero_grad()
    assert all(param.grad is None for param in model.parameters())


def test_without_a_compiler_the_pass_stays_as_it_was(monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    model = make()
    compiled.compile_training(model, BATCH)
    pixel_values, labels = make_batch(model)
    for _ in range(2):
        torch.testing.assert_close(model(pixel_values, labels=labels).loss, make()(pixel_values, labels=labels).loss)
    assert [record.getMessage() for record in caplog.records] == [
        "The training pass cannot be compiled, which costs speed: No working C++ compiler found"
    ]


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler, $CXX or g++, to compile with"
)
def test_compiled_code_computes_the_same():
    model = make(num_hidden_layers=1)
    pixel_values, labels = make_batch(model)
    expected = gradients(model, model(pixel_values, labels=labels).loss)
    compiled.compile_training(model, BATCH)
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
        ({"compile_training": "yes", "gradient_checkpointing": True}, 10**7, False),
        ({"compile_training": "yes", "torch_compile": True}, 10**7, False),
    ],
)
def test_compiling_is_for_long_runs(flags, images, expected, tmp_path):
    args = VitMnistTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **flags)
    assert args.should_compile(images) is expected
