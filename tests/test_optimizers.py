"""The natural gradient against closed forms, plain autograd and torch's Adam."""

import itertools
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerState

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification
from modeling_vit_mnist.errors import InputError
from modeling_vit_mnist.optimizers import FisherUpdates, NaturalGradient, sampled_gradients
from modeling_vit_mnist.training import train

from .test_training import arguments, stop_after, weights


NATURAL = ["--optim=natural_gradient", "--learning_rate=0.05", "--warmup_steps=4", "--fisher_steps=5"]


def test_a_step_is_the_solution_of_the_damped_system():
    torch.manual_seed(0)
    a, b = torch.nn.Parameter(torch.randn(2, 2)), torch.nn.Parameter(torch.randn(3))
    before = torch.cat([a.detach().flatten(), b.detach()])
    gradients = torch.randn(50, 7)
    optimizer = NaturalGradient([a, b], lr=0.1, momentum=0, damping=0.3, max_step_norm=100)
    optimizer.update_fisher(gradients)
    (a.sum() ** 2 + (b**3).sum()).backward()
    gradient = torch.cat([a.grad.flatten(), b.grad])
    optimizer.step()
    system = torch.einsum("ni,nj->ij", gradients, gradients) / 50 + 0.3 * torch.eye(7)
    after = torch.cat([a.detach().flatten(), b.detach()])
    torch.testing.assert_close(after, before - 0.1 * torch.linalg.solve(system, gradient))


def test_it_finds_the_minimum_where_the_matrix_is_the_hessian():
    """Least squares: the Fisher matrix of unit noise is the Hessian, so one step of rate 1 is enough."""
    torch.manual_seed(0)
    inputs = torch.randn(100, 4) * torch.tensor([1.0, 10.0, 100.0, 0.1])  # badly conditioned for plain descent
    target = inputs @ torch.tensor([1.0, -2.0, 3.0, -4.0])
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = NaturalGradient([weight], lr=1, momentum=0, damping=1e-6, max_step_norm=100)
    optimizer.update_fisher(inputs)
    ((inputs @ weight - target) ** 2).mean().div(2).backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1.0, -2.0, 3.0, -4.0]), rtol=1e-3, atol=1e-3)


def test_steps_are_bounded():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = NaturalGradient([weight], lr=1, damping=1e-3, max_step_norm=0.5)
    optimizer.update_fisher(torch.zeros(1, 3))
    weight.grad = torch.tensor([3.0, 0.0, 4.0]) * 1e6
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.3, 0.0, -0.4]))


def test_the_warmup_is_adams():
    torch.manual_seed(0)
    start = torch.randn(5)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    natural = NaturalGradient([ours], lr=0.03, adam_steps=10)
    adam = torch.optim.Adam([theirs], lr=0.03, betas=(0.9, 0.99))
    for _ in range(10):
        for weight, optimizer in ((ours, natural), (theirs, adam)):
            optimizer.zero_grad()
            (weight**4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_sampled_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    model = VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager")).double()
    images = torch.randn(6, 1, 28, 28, dtype=torch.double)
    rows = sampled_gradients(model, images, torch.Generator().manual_seed(3), chunk_size=4)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        probabilities = [model(chunk).logits.float().softmax(-1) for chunk in images.split(4)]
    labels = torch.cat([torch.multinomial(chunk, 1, generator=generator)[:, 0] for chunk in probabilities])
    assert rows.shape == (6, 1850)
    for image, label, row in zip(images, labels, rows, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]).logits, label[None]).backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)  # the loss is computed in float32


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Killed between two updates of the matrix, so the inverse has to come out the same from what was saved."""
    results = train(*arguments(tmp_path / "whole", *NATURAL))
    assert results["train_loss"] < 2.3
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Exception):  # noqa: B017
            train(*arguments(tmp_path / "cut", *NATURAL))
    train(*arguments(tmp_path / "cut", *NATURAL))
    assert all(
        torch.equal(value, weights(tmp_path / "cut")[name]) for name, value in weights(tmp_path / "whole").items()
    )


@pytest.mark.parametrize(("num_images", "world_size"), [(64, 1), (64, 2), (1, 2), (10, 3)])
def test_processes_share_the_images_of_the_matrix(num_images, world_size):
    """All of them together measure the images that one would, and draw other labels for them."""
    model, measured = VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager")), []

    class Images:
        def __len__(self):
            return 1000

        def __getitems__(self, indices):
            measured.append(indices.tolist())
            return {"pixel_values": torch.zeros(len(indices), 1, 28, 28)}

    def measure(world_size, rank):
        args = SimpleNamespace(
            fisher_images=num_images, world_size=world_size, process_index=rank, fisher_steps=5, seed=0, damping=0.1,
            final_damping=0.1, device=torch.device("cpu"), get_warmup_steps=lambda max_steps: 0,
        )  # fmt: skip
        optimizer = NaturalGradient(model.parameters())
        state = TrainerState(global_step=0, max_steps=10)
        with mock.patch.object(optimizer, "update_fisher") as update:
            FisherUpdates(Images()).on_step_begin(args, state, None, model=model, optimizer=optimizer)
        return update.call_args[0][0]

    measure(1, 0)
    gradients = [measure(world_size, rank) for rank in range(world_size)]
    one, *shares = measured
    assert len({len(share) for share in shares}) == 1  # as many in each, and at least one
    assert list(itertools.chain(*shares))[:num_images] == one
    for other in gradients[1:]:
        assert not torch.equal(other, gradients[0])


def test_large_networks_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"takes up to 10,000 parameters, the network has 26,250"):
        train(*arguments(tmp_path / "run", *NATURAL, "--hidden_size=48", "--num_attention_heads=4"))
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(ValueError, match="up to 10,000 parameters, got 10,001"):
        NaturalGradient([torch.nn.Parameter(torch.zeros(10_001))])


@pytest.mark.parametrize(
    ("options", "says"),
    [({"damping": 0.0}, "damping must be positive, got 0"), ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)")],
)
def test_impossible_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        NaturalGradient([torch.nn.Parameter(torch.zeros(2))], **options)


def test_the_matrix_has_to_be_measured_first():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = NaturalGradient([weight])
    weight.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="update_fisher"):
        optimizer.step()
