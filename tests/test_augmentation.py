"""Random warps: their geometry against scipy, and their dependence on seed, epoch and index alone."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.data.augmentation import AugmentationArguments, AugmentedDataset, draw_warps, warp_images
from modeling_vit_mnist.data.images import ImageDataset
from modeling_vit_mnist.training.initialization import build_model
from modeling_vit_mnist.training.train import train
from modeling_vit_mnist.training.trainer import count_epochs, make_trainer

from .conftest import Stop, arguments, stop_after, weights

ALL = AugmentationArguments(max_translate=2, max_rotation=15, max_scale_jitter=0.2, max_shear=10, elastic_std=1)


def warp(images, translation=(0.0, 0.0), rotation=0.0, scale=(1.0, 1.0), shear=0.0, **kwargs):
    """One warp for all images."""
    n = len(images)
    return warp_images(
        images,
        torch.tensor([translation]).expand(n, 2),
        torch.full((n,), rotation),
        torch.tensor([scale]).expand(n, 2),
        torch.full((n,), shear),
        **kwargs,
    )


@pytest.fixture
def images(sample):
    return sample["train"].images[:20]


def test_without_limits_images_are_unchanged(images):
    assert torch.equal(warp(images), images)
    assert torch.equal(warp(images, displacement=torch.zeros(20, 2, 4, 4)), images)


def test_whole_pixels_and_quarter_turns_are_exact(images):
    moved = warp(images, translation=(3.0, -2.0))
    assert torch.equal(moved[:, :-2, 3:], images[:, 2:, :-3])
    assert not moved[:, -2:].any() and not moved[:, :, :3].any()
    assert torch.equal(warp(images, rotation=90.0), torch.rot90(images, -1, (1, 2)))


def test_all_warps_together_equal_scipys(images):
    translation, rotation, scale, shear = (1.3, -0.7), 20.0, (1.25, 0.8), 12.0
    cos, sin = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    lean = np.tan(np.radians(shear))
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.diag(scale) @ np.array([[1, -lean], [0, 1]])  # on (x, y)
    inverse = np.linalg.inv(forward)[::-1, ::-1]  # on (row, column)
    center = np.array([13.5, 13.5])
    offset = center - inverse @ (center + np.array(translation)[::-1])
    got = warp(images.double(), translation, rotation, scale, shear)
    for image, warped in zip(images.double().numpy(), got, strict=True):
        padded = np.pad(image, 2)  # grid_sample fades to black across the border, scipy cuts off there
        expected = scipy.ndimage.affine_transform(padded, inverse, offset + 2 - inverse @ [2, 2], order=1)[2:-2, 2:-2]
        np.testing.assert_allclose(warped, expected, atol=0.02)


def test_warps_equal_affine_grid_and_interpolate(images):
    """Along with `affine_grid` and bicubic `interpolate`, on frames higher than wide."""
    images = images[:, :, 4:24].float()
    draw = torch.Generator().manual_seed(0)
    translation, scale = torch.randn(20, 2, generator=draw), 1 + 0.2 * torch.rand(20, 2, generator=draw)
    rotation, shear = 20 * torch.randn(20, generator=draw), 10 * torch.randn(20, generator=draw)
    displacement = torch.randn(20, 2, 4, 4, generator=draw)
    got = warp_images(images, translation, rotation, scale, shear, displacement)

    cos, sin = torch.deg2rad(rotation).cos(), torch.deg2rad(rotation).sin()
    rows = [[cos, -sin], [sin, cos]]
    turn = torch.stack([torch.stack(row, 1) for row in rows], 1)
    slant = torch.eye(2).repeat(20, 1, 1)
    slant[:, 0, 1] = -torch.deg2rad(shear).tan()
    half = torch.tensor([10.0, 14.0])
    inverse = torch.linalg.inv(turn @ torch.diag_embed(scale) @ slant)
    theta = torch.cat(
        [inverse * half / half.view(2, 1), -(inverse @ translation.unsqueeze(2)) / half.view(2, 1)], dim=2
    )
    grid = torch.nn.functional.affine_grid(theta, [20, 1, 28, 20], align_corners=False)
    smooth = torch.nn.functional.interpolate(displacement, (28, 20), mode="bicubic", align_corners=True)
    grid = grid + smooth.permute(0, 2, 3, 1) / half
    expected = torch.nn.functional.grid_sample(images.unsqueeze(1), grid, align_corners=False)[:, 0]
    torch.testing.assert_close(got, expected, rtol=0, atol=0.01)  # of 255 levels


def test_the_same_displacement_everywhere_is_a_translation(images):
    displacement = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(20, 2, 4, 4)
    assert torch.equal(warp(images, displacement=displacement), warp(images, translation=(-2.0, 0.0)))


def test_a_warp_depends_on_seed_epoch_and_index_alone(sample):
    digits = sample["train"]
    one, two = (AugmentedDataset(digits, ALL, seed=0, num_epochs=10) for _ in range(2))
    one.set_epoch(3)
    two.set_epoch(1)
    two.set_epoch(3)
    together = one.__getitems__([5, 6, 7])["pixel_values"]
    assert torch.equal(together[1], two[6]["pixel_values"])
    two.set_epoch(4)
    assert not torch.equal(together[1], two[6]["pixel_values"])
    other = AugmentedDataset(digits, ALL, seed=1, num_epochs=10)
    other.set_epoch(3)
    assert not torch.equal(together[1], other[6]["pixel_values"])


def test_each_image_is_warped_by_its_own_draw(sample):
    digits = AugmentedDataset(sample["train"], ALL, seed=3, num_epochs=10)
    digits.set_epoch(4)
    every = warp_images(sample["train"].images, **draw_warps(ALL, len(digits), (3, 4)))
    expected = sample["train"].processor.rescale_and_normalize(every[[7, 2, 300]])
    torch.testing.assert_close(digits.__getitems__([7, 2, 300])["pixel_values"], expected, rtol=0, atol=1e-6)


def test_warps_stay_within_their_limits():
    warps = draw_warps(ALL, 3000, (0, 0))
    assert warps["translation"].abs().max() == pytest.approx(2, rel=1e-2)
    assert warps["rotation"].abs().max() == pytest.approx(15, rel=1e-2)
    assert (warps["scale"].min(), warps["scale"].max()) == (
        pytest.approx(1 / 1.2, rel=1e-2),
        pytest.approx(1.2, rel=1e-2),
    )
    assert warps["shear"].abs().max() == pytest.approx(10, rel=1e-2)
    assert warps["displacement"].std() == pytest.approx(1, rel=1e-2)


def test_the_last_epochs_are_not_augmented(sample):
    args = AugmentationArguments(max_translate=2, augment_until=0.75)
    digits = AugmentedDataset(sample["train"], args, seed=0, num_epochs=4)
    for epoch in (2, 3):
        digits.set_epoch(epoch)
        same = torch.equal(digits[0]["pixel_values"], sample["train"][0]["pixel_values"])
        assert same == (epoch == 3)


def test_epochs_of_a_run_by_steps_are_counted(tmp_path):
    *_, args = arguments(tmp_path, "--max_steps=30")
    assert count_epochs(args, 1001) == pytest.approx(30 / 11)
    *_, args = arguments(tmp_path, "--max_steps=30", "--dataloader_drop_last", "--gradient_accumulation_steps=3")
    assert count_epochs(args, 1001) == pytest.approx(30 / 4)  # steps of 3, 3, 3 and 1 of the 10 whole batches
    *_, args = arguments(tmp_path, "--num_train_epochs=7")
    assert count_epochs(args, 1001) == 7


def test_a_killed_augmented_run_ends_bit_for_bit_the_same(tmp_path, monkeypatch):
    """So each epoch has warps of its own, and a resumed run the same ones."""
    flags = ["--max_translate=2", "--max_rotation=10", "--elastic_std=1"]
    epochs = []
    set_epoch = AugmentedDataset.set_epoch
    monkeypatch.setattr(
        AugmentedDataset, "set_epoch", lambda self, epoch: (epochs.append(epoch), set_epoch(self, epoch))[1]
    )
    train(*arguments(tmp_path / "whole", *flags))
    assert sorted(set(epochs)) == [0, 1, 2, 3]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stop):
            train(*arguments(tmp_path / "cut", *flags))
    train(*arguments(tmp_path / "cut", *flags))
    assert all(
        torch.equal(value, weights(tmp_path / "cut")[name]) for name, value in weights(tmp_path / "whole").items()
    )


PERSISTENT = ["--dataloader_num_workers=2", "--dataloader_persistent_workers=True", "--dataloader_prefetch_factor=4"]


@pytest.mark.parametrize("more", [[], ["--streaming"]], ids=str)
def test_persistent_workers_train_the_same_weights(more, tmp_path, monkeypatch):
    """They keep their copy of the dataset from their first epoch on, which is the second one of the resumed run."""
    flags = [
        "--max_translate=2", "--elastic_std=1", "--augment_until=0.75", "--eval_strategy=steps", "--eval_steps=6",
        "--save_strategy=steps", "--save_steps=6", "--load_best_model_at_end=False", *more,
    ]  # fmt: skip
    train(*arguments(tmp_path / "alone", *flags))
    train(*arguments(tmp_path / "workers", *flags, *PERSISTENT))
    with monkeypatch.context() as patch:
        stop_after(1.5, patch)
        with pytest.raises(Stop):
            train(*arguments(tmp_path / "resumed", *flags, *PERSISTENT))
    train(*arguments(tmp_path / "resumed", *flags, *PERSISTENT))
    for name, value in weights(tmp_path / "alone").items():
        assert torch.equal(value, weights(tmp_path / "workers")[name])
        assert torch.equal(value, weights(tmp_path / "resumed")[name])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_epoch_reaches_a_running_worker(method, sample):
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    digits = AugmentedDataset(sample["train"].take(8), ALL, seed=0, num_epochs=2)
    loader = torch.utils.data.DataLoader(
        digits, 4, collate_fn=ImageDataset.collate, num_workers=1, persistent_workers=True,
        multiprocessing_context=method,
    )  # fmt: skip
    for epoch in (0, 1, 2):  # the last one is not augmented
        digits.set_epoch(epoch)
        for batch, first in zip(loader, (0, 4), strict=True):
            expected = digits.__getitems__(range(first, first + 4))["pixel_values"]
            torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=0)
    assert digits.is_over


def test_validation_is_never_augmented(tmp_path, sample):
    model_args, _, augmentation, args = arguments(tmp_path, "--max_translate=2")
    model = build_model(model_args, sample["train"].names)
    trainer = make_trainer(model, sample, augmentation, args)
    assert isinstance(trainer.train_dataset, AugmentedDataset) and trainer.eval_dataset is sample["validation"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_translate": -1.0}, "--max_translate must be zero or positive, got -1"),
        ({"max_shear": 80.0}, "at most 60 degrees"),
    ],
)
def test_impossible_limits_are_named(options, says):
    with pytest.raises(UsageError, match=says):
        AugmentationArguments(**options)
