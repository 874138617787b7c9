"""The natural gradient against closed forms, plain autograd and torch's Adam."""

import itertools
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerState

from modeling_vit_mnist import VitMnistConfig, VitMnistForImageClassification
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.training.callbacks import FisherUpdateCallback
from modeling_vit_mnist.training.natural_gradient import NaturalGradient, per_sample_gradients
from modeling_vit_mnist.training.train import train

from .conftest import arguments, weights

NATURAL = [
    "--optim=natural_gradient",
    "--learning_rate=0.05",
    "--warmup_steps=4",
    "--fisher_update_interval=5",
    "--fisher_batch_size=100",
]


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


def test_one_step_finds_the_minimum_of_least_squares():
    """The Fisher matrix of unit noise is the Hessian, so a step of rate 1 is Newton's."""
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


@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.7), "eps": 0.1}])
def test_the_warmup_is_adams(options):
    torch.manual_seed(0)
    start = torch.randn(5)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    natural = NaturalGradient([ours], lr=0.03, adam_steps=10, **options)
    adam = torch.optim.Adam([theirs], lr=0.03, **({"betas": (0.9, 0.99)} | options))
    for _ in range(10):
        for weight, optimizer in ((ours, natural), (theirs, adam)):
            optimizer.zero_grad()
            (weight**4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_per_sample_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    model = VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager")).double()
    images = torch.randn(6, 1, 28, 28, dtype=torch.double)
    rows = per_sample_gradients(model, images, torch.Generator().manual_seed(3), chunk_size=4)
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


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    """Resumed between two updates of the matrix, so its inverse has to be the same from the saved matrix."""
    flags = [*NATURAL, "--load_best_model_at_end=False"]  # the best epoch can be one before the checkpoint
    results = train(*arguments(tmp_path / "whole", *flags, "--keep_checkpoints"))
    checkpoint = tmp_path / "whole" / "checkpoint-12"
    train(*arguments(tmp_path / "resumed", *flags, f"--resume_from_checkpoint={checkpoint}"))
    resumed, middle = weights(tmp_path / "resumed"), weights(checkpoint)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, resumed[name]) and not torch.equal(value, middle[name])
    assert results["train_loss"] < 2.3


@pytest.mark.parametrize(("num_images", "world_size"), [(64, 1), (64, 2), (1, 2), (10, 3)])
def test_processes_share_the_images_of_the_matrix(num_images, world_size):
    """Together they measure the images that one process measures, with the labels that it draws."""
    model, measured = VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager")), []

    class Images:
        def __len__(self):
            return 1000

        def __getitems__(self, indices):
            measured.append(indices.tolist())
            return {"pixel_values": torch.tensor(indices / 1000).float()[:, None, None, None].expand(-1, 1, 28, 28)}

    def measure(world_size, rank):
        args = SimpleNamespace(
            fisher_batch_size=num_images, world_size=world_size, process_index=rank, fisher_update_interval=5, seed=0,
            damping=0.1, final_damping=0.1, device=torch.device("cpu"), get_warmup_steps=lambda max_steps: 0,
        )  # fmt: skip
        optimizer = NaturalGradient(model.parameters())
        state = TrainerState(global_step=0, max_steps=10)
        with mock.patch.object(optimizer, "update_fisher") as update:
            FisherUpdateCallback(Images()).on_step_begin(args, state, None, model=model, optimizer=optimizer)
        return update.call_args[0][0]

    whole = measure(1, 0)
    gradients = [measure(world_size, rank) for rank in range(world_size)]
    one, *shares = measured
    assert list(itertools.chain(*shares)) == one and len(one) == num_images
    torch.testing.assert_close(torch.cat(gradients), whole, rtol=1e-4, atol=1e-5)


def test_large_networks_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"supports up to 10,000 parameters, the network has 41,770"):
        train(*arguments(tmp_path / "run", *NATURAL, "--hidden_size=48", "--num_attention_heads=4"))
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(ValueError, match="up to 10,000 parameters, got 10,001"):
        NaturalGradient([torch.nn.Parameter(torch.zeros(10_001))])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"damping": 0.0}, "damping must be positive and finite, got 0"),
        ({"lr": float("inf")}, "lr must be positive and finite, got inf"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must lie in \[0, 1\)"),
    ],
)
def test_impossible_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        NaturalGradient([torch.nn.Parameter(torch.zeros(2))], **options)


def test_a_step_before_the_first_update_is_refused():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = NaturalGradient([weight])
    weight.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="update_fisher"):
        optimizer.step()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_a_diverged_matrix_is_refused(value):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = NaturalGradient([weight])
    optimizer.update_fisher(torch.zeros(1, 3))
    optimizer.state[weight]["fisher"] = torch.full((3, 3), value)
    weight.grad = torch.ones(3)
    with pytest.raises(FloatingPointError, match="the Fisher matrix is not finite and positive definite"):
        optimizer.step()
    assert not weight.any()


def test_gradients_of_diverged_predictions_are_refused():
    model = VitMnistForImageClassification(VitMnistConfig(attn_implementation="eager"))
    torch.nn.init.constant_(model.head.bias, torch.inf)
    with pytest.raises(FloatingPointError, match="predictions are not finite"):
        per_sample_gradients(model, torch.zeros(2, 1, 28, 28), torch.Generator())
