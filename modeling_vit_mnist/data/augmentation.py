"""Random warps of training images, a batch at a time.

The warp of an image is drawn from (seed, epoch, index) alone, so it is the same in any batch, in any process and after
a resume. A stream has no indices: there it is drawn from (seed, epoch, chunk)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..cli.arguments import arg
from ..cli.errors import UsageError
from .images import ImageDataset
from .streaming import ImageStream, iterate, shared_epoch

ELASTIC_GRID = 4
NO_DIGIT = -100  # a label: ignored by torch's cross-entropy


@dataclass
class AugmentationArguments:
    """Limits of the random warps of training images, and images made by code. All are off by default."""

    max_translate: float = arg(0.0, "Translate training images by up to N pixels.")
    max_rotation: float = arg(0.0, "Rotate them by up to N degrees, either way.")
    max_scale_jitter: float = arg(0.0, "Scale height and width, each by a factor of up to 1 + N or its inverse.")
    max_shear: float = arg(0.0, "Shear them by up to N degrees, either way.")
    elastic_std: float = arg(0.0, "Elastic distortion: std of displacements on a smooth 4x4 grid, in pixels.")
    augment_until: float = arg(1.0, "Stop augmenting after this fraction of the epochs.")
    num_photographs: int = arg(0, "Add N training images, rotated, blurred, noisy or pale, and framed again.")
    num_drawn_digits: int = arg(0, "Add N digits drawn by code in shapes that MNIST lacks, such as a crossed 7.")
    num_font_digits: int = arg(0, "Add N digits of the bundled handwriting fonts, each in another shape.")
    num_outliers: int = arg(0, "Add N drawings of no digit, each with another random class in every epoch.")

    def __post_init__(self):
        if not 0 < self.augment_until <= 1:
            raise UsageError(f"--augment_until must lie in (0, 1], got {self.augment_until:g}.")
        limits = {"max_rotation": 180, "max_shear": 60}
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise UsageError(f"--{name} must be zero or positive, got {value:g}.")
            if value > limits.get(name, math.inf):
                raise UsageError(f"--{name} must be at most {limits[name]} degrees, got {value:g}.")

    @property
    def is_on(self) -> bool:
        return any(value for name, value in vars(self).items() if name != "augment_until")

    @property
    def num_added(self) -> int:
        """Images that are added to those of the dataset."""
        return self.num_photographs + self.num_drawn_digits + self.num_font_digits + self.num_outliers


def warp_images(
    images: torch.Tensor, translation: torch.Tensor, rotation: torch.Tensor, scale: torch.Tensor, shear: torch.Tensor,
    displacement: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Shear, scale, rotate, then translate images about their center, by bilinear interpolation with black padding.
    Affine and elastic distortions of digits after Simard, Steinkraus and Platt (2003), "Best Practices for
    Convolutional Neural Networks Applied to Visual Document Analysis".

    Args:
        images (`torch.Tensor` of shape `(b, height, width)`, uint8 or float): Grayscale, black background.
        translation (`torch.Tensor` of shape `(b, 2)`): Pixels to the right and down.
        rotation (`torch.Tensor` of shape `(b,)`): Degrees, clockwise.
        scale (`torch.Tensor` of shape `(b, 2)`): Factors of width and height.
        shear (`torch.Tensor` of shape `(b,)`): Degrees by which vertical lines lean to the left at their lower end.
        displacement (`torch.Tensor` of shape `(b, 2, rows, columns)`, *optional*): Displacement in pixels, x and y,
            of the points of a coarse grid over the image; bicubic in between.

    Returns a `torch.Tensor` of shape `(b, height, width)`, of the dtype of `images`.
    """
    height, width = images.shape[1:]
    half = torch.tensor([width / 2, height / 2], device=images.device)
    sources = _invert_warps(half, translation, rotation, scale, shear)
    # Pixel centers, from -1 + 1/n to 1 - 1/n. Sums over columns and rows, x and y as two planes, are faster than
    # `affine_grid`.
    columns, rows = (torch.arange(1 - size, size, 2, device=images.device) / size for size in (width, height))
    across = sources[:, :, 0, None] * columns  # (b, 2, width)
    down = sources[:, :, 1, None] * rows + sources[:, :, 2, None]  # (b, 2, height)
    grid = across.unsqueeze(2) + down.unsqueeze(3)  # (b, 2, height, width)
    if displacement is not None:
        vertical = _bicubic_matrix(displacement.shape[2], height, images.device)
        horizontal = _bicubic_matrix(displacement.shape[3], width, images.device)
        smooth = (displacement.mT @ vertical.T).mT @ horizontal.T  # (b, 2, height, width)
        grid = grid + smooth / half.view(2, 1, 1)
    warped = F.grid_sample(images.unsqueeze(1).to(grid.dtype), grid.permute(0, 2, 3, 1), align_corners=False)[:, 0]
    return warped if images.is_floating_point() else warped.round_().to(images.dtype)


def _invert_warps(half: torch.Tensor, translation, rotation, scale, shear) -> torch.Tensor:
    """Affine maps from pixels of warped images to pixels of the images, of shape `(b, 2, 3)`, in `grid_sample`'s
    coordinates: half images from the center."""
    turn = torch.deg2rad(rotation)
    cos, sin, lean = turn.cos(), turn.sin(), torch.deg2rad(shear).tan()
    unturn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    unscale = torch.diag_embed(1 / scale)
    one, zero = torch.ones_like(lean), torch.zeros_like(lean)
    unshear = torch.stack([torch.stack([one, lean], 1), torch.stack([zero, one], 1)], 1)
    inverse = unshear @ unscale @ unturn  # (b, 2, 2), in pixels
    origin = -(inverse @ translation.unsqueeze(2))  # (b, 2, 1)
    return torch.cat([inverse * half, origin], 2) / half.unsqueeze(1)


def _bicubic_matrix(points: int, size: int, device: torch.device) -> torch.Tensor:
    """Bicubic interpolation of `points` values to `size` as a matrix, which is faster than `interpolate`."""
    identity = torch.eye(points, device=device).view(1, 1, points, points)
    return F.interpolate(identity, size=(size, points), mode="bicubic", align_corners=True)[0, 0]


def draw_warps(args: AugmentationArguments, num_images: int, key: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Arguments of [`warp_images`] for `num_images` images, drawn from `key` alone."""
    generator = np.random.default_rng(key)
    draws = torch.from_numpy(generator.uniform(-1, 1, (num_images, 6)).astype(np.float32))
    warps = {
        "translation": args.max_translate * draws[:, :2],
        "rotation": args.max_rotation * draws[:, 2],
        "scale": (1 + args.max_scale_jitter) ** draws[:, 3:5],
        "shear": args.max_shear * draws[:, 5],
    }
    if args.elastic_std:
        displacement = generator.standard_normal((num_images, 2, ELASTIC_GRID, ELASTIC_GRID), dtype=np.float32)
        warps["displacement"] = args.elastic_std * torch.from_numpy(displacement)
    return warps


class _Augmented:
    """A dataset whose images are warped differently in every epoch of a run of `num_epochs`."""

    def __init__(self, dataset: Any, args: AugmentationArguments, seed: int, num_epochs: float):
        self.dataset, self.args, self.seed, self.num_epochs = dataset, args, seed, num_epochs
        self._epoch = shared_epoch()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the warps, before the data loader is iterated over."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def is_over(self) -> bool:
        return self.epoch >= self.args.augment_until * self.num_epochs


class AugmentedDataset(_Augmented, torch.utils.data.Dataset):
    dataset: ImageDataset
    _drawn: tuple[int, tuple[dict[str, torch.Tensor], torch.Tensor | None]] = (-1, ({}, None))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """One batch: `pixel_values` (b, 1, height, width), float32, and `labels` (b,), int64."""
        chosen = torch.as_tensor(indices)
        batch = self.dataset.select(chosen)
        images, labels = batch.images, batch.labels
        warps, random_labels = self._draws()
        if warps:
            images = warp_images(images, **{name: draws.index_select(0, chosen) for name, draws in warps.items()})
        if random_labels is not None:
            labels = torch.where(labels == NO_DIGIT, random_labels.index_select(0, chosen), labels)
        return {"pixel_values": self.dataset.processor.rescale_and_normalize(images), "labels": labels}

    def _draws(self) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """The warps of all images in this epoch, and labels for those of no digit. Each worker process draws them,
        when it first needs them."""
        epoch = self.epoch
        if epoch != self._drawn[0]:
            warps = {} if self.is_over else draw_warps(self.args, len(self), (self.seed, epoch))
            labels = None
            if self.args.num_outliers:
                drawn = np.random.default_rng((self.seed, epoch, 1)).integers(len(self.dataset.names), size=len(self))
                labels = torch.from_numpy(drawn)
            self._drawn = epoch, (warps, labels)
        return self._drawn[1]


class AugmentedStream(_Augmented, torch.utils.data.IterableDataset):
    dataset: ImageStream

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iterate(self.dataset.chunks() if self.is_over else self._warped_chunks())

    def _warped_chunks(self) -> Iterator[ImageDataset]:
        for number, chunk in enumerate(self.dataset.chunks()):
            warps = draw_warps(self.args, len(chunk), (self.seed, self.epoch, number))
            yield replace(chunk, images=warp_images(chunk.images, **warps))
