"""The network that fine-tuning starts from: classes by name, weights in float32."""

import copy

import pytest
import torch

from modeling_vit_mnist import VitMnistForImageClassification
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.training.arguments import ModelArguments
from modeling_vit_mnist.training.initialization import build_model

from .conftest import TINY

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def logits(model, images):
    with torch.inference_mode():
        return model.eval()(images).logits


@pytest.mark.parametrize(
    "names",
    [DIGITS, DIGITS[::-1], ["7", "1"], ["cat", *DIGITS, "dog"], [*DIGITS[1:], "ten"]],
    ids=["the same", "reversed", "two of them", "two more", "one replaced"],
)
def test_classes_keep_their_weights_by_name(names, images, caplog):
    model = build_model(ModelArguments(model_name_or_path=str(TINY)), names)
    expected = logits(load_checkpoint(TINY)[0].double(), images.double())  # float32 rounds by the kernel
    found = logits(copy.deepcopy(model).double(), images.double())
    known = [index for index, name in enumerate(names) if name in DIGITS]
    assert torch.allclose(found[:, known], expected[:, [int(names[index]) for index in known]], atol=1e-9)
    assert found.shape == (5, len(names)) and model.config.num_labels == model.num_labels == len(names)
    assert list(model.config.id2label.values()) == names == list(model.config.label2id)
    new = [name for name in names if name not in DIGITS]
    assert bool(caplog.records) == bool(new) and all(name in caplog.text for name in new)


def test_no_class_keeps_the_weights_of_another_one(images, caplog):
    torch.manual_seed(0)
    model = build_model(ModelArguments(model_name_or_path=str(TINY)), [f"garment {digit}" for digit in DIGITS])
    tiny, _ = load_checkpoint(TINY)
    assert not torch.isclose(model.head.weight, tiny.head.weight).any()
    assert torch.equal(model.vit.pos_embed, tiny.vit.pos_embed)
    assert "garment 0" in caplog.text and "it knows 0, 1" in caplog.text


def test_a_checkpoint_in_half_precision_is_fine_tuned_in_float32(tmp_path):
    model, processor = load_checkpoint(TINY)
    VitMnistForImageClassification.save_pretrained(model.bfloat16(), tmp_path)
    processor.save_pretrained(tmp_path)
    for names in (DIGITS, ["7", "1"]):
        built = build_model(ModelArguments(model_name_or_path=str(tmp_path)), names)
        assert {weight.dtype for weight in built.parameters()} == {torch.float32}
