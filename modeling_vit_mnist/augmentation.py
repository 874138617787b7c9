"""
Random warps of training images, a whole batch at a time.

What an image goes through in an epoch is drawn from (seed, epoch, index) alone, so it is the same in any batch, in any
process and after a resume; in a stream, which has no indices, from its place among the images of the epoch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch.nn import functional as F

from .data import Digits
from .errors import InputError
from .streaming import StreamedDigits, iterate


WARP_GRID = 4


@dataclass
class AugmentationArguments:
    """How far training images are warped, at most; all off by default, as the smallest network underfits anyway."""

    max_shift: float = field(default=0.0, metadata={"help": "Shift training images by up to so many pixels."})
    max_rotation: float = field(default=0.0, metadata={"help": "Rotate them by up to so many degrees, either way."})
    max_scale: float = field(
        default=0.0, metadata={"help": "Enlarge or shrink height and width, each by a factor of up to 1 + this."}
    )
    max_shear: float = field(default=0.0, metadata={"help": "Slant them by up to so many degrees, either way."})
    warp: float = field(
        default=0.0,
        metadata={"help": "Bend them: standard deviation in pixels of displacements on a smooth 4x4 grid."},
    )

    augment_until: float = field(
        default=1.0, metadata={"help": "Leave images as they are after this fraction of the epochs."}
    )

    def __post_init__(self):
        if not 0 < self.augment_until <= 1:
            raise InputError(f"--augment_until must lie in (0, 1], got {self.augment_until:g}.")
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise InputError(f"--{name} must be zero or positive, got {value:g}.")
        for name in ("max_rotation", "max_shear"):
            limit = {"max_rotation": 180, "max_shear": 60}[name]
            if getattr(self, name) > limit:
                raise InputError(f"--{name} must be at most {limit} degrees, got {getattr(self, name):g}.")

    @property
    def is_on(self) -> bool:
        return any(value for name, value in vars(self).items() if name != "augment_until")


def warp_images(
    images: torch.Tensor,
    shift: torch.Tensor,
    rotation: torch.Tensor,
    scale: torch.Tensor,
    shear: torch.Tensor,
    displacement: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Shear, scale, rotate, then shift images about their centre, by bilinear interpolation; black comes in from outside.
    Affine and elastic distortions of digits after Simard, Steinkraus and Platt (2003), "Best Practices for
    Convolutional Neural Networks Applied to Visual Document Analysis".

    Args:
        images (`torch.Tensor` of shape `(b, height, width)`, uint8 or float): Grey, black background.
        shift (`torch.Tensor` of shape `(b, 2)`): Pixels to the right and down.
        rotation (`torch.Tensor` of shape `(b,)`): Degrees, clockwise as the image is seen.
        scale (`torch.Tensor` of shape `(b, 2)`): Factors of width and height; 1 leaves the size as it is.
        shear (`torch.Tensor` of shape `(b,)`): Degrees that vertical lines lean to the left at their lower end.
        displacement (`torch.Tensor` of shape `(b, 2, rows, columns)`, *optional*): Pixels, x and y, by which points
            of a coarse grid over the image are displaced; in between bicubic.

    Returns:
        `torch.Tensor` of shape `(b, height, width)`, of the dtype of `images`.
    """
    return sample_images(images, invert_warps(images.shape[1:], shift, rotation, scale, shear), displacement)


def invert_warps(
    shape: tuple[int, int], shift: torch.Tensor, rotation: torch.Tensor, scale: torch.Tensor, shear: torch.Tensor
) -> torch.Tensor:
    """
    Where the pixels of warped images of `shape`, height and width, come from.

    Returns:
        `torch.Tensor` of shape `(b, 2, 3)`: The matrix that makes of x, y and 1 the x and y of the source, all in
        half images from the centre, as `grid_sample` has them; other arguments as in [`warp_images`].
    """
    height, width = shape
    half = torch.tensor([width / 2, height / 2], device=shift.device)
    turn = torch.deg2rad(rotation)
    cos, sin, lean = turn.cos(), turn.sin(), torch.deg2rad(shear).tan()
    unturn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    unscale = torch.diag_embed(1 / scale)
    one, zero = torch.ones_like(lean), torch.zeros_like(lean)
    unshear = torch.stack([torch.stack([one, lean], 1), torch.stack([zero, one], 1)], 1)
    inverse = unshear @ unscale @ unturn  # (b, 2, 2), in pixels
    origin = -(inverse @ shift.unsqueeze(2))  # (b, 2, 1)
    return torch.cat([inverse * half, origin], 2) / half.unsqueeze(1)


def sample_images(
    images: torch.Tensor, sources: torch.Tensor, displacement: torch.Tensor | None = None
) -> torch.Tensor:
    """[`warp_images`] by what [`invert_warps`] returns, which can be had for all images of an epoch at once."""
    height, width = images.shape[1:]
    half = torch.tensor([width / 2, height / 2], device=images.device)
    # Pixel centres, from -1 + 1/n to 1 - 1/n. Columns and rows are warped apart and added, x and y each a plane of
    # its own, which is faster than `affine_grid`.
    columns, rows = (torch.arange(1 - size, size, 2, device=images.device) / size for size in (width, height))
    across = sources[:, :, 0, None] * columns  # (b, 2, width)
    down = sources[:, :, 1, None] * rows + sources[:, :, 2, None]  # (b, 2, height)
    grid = across.unsqueeze(2) + down.unsqueeze(3)  # (b, 2, height, width)
    if displacement is not None:
        vertical, horizontal = (
            _bicubic_matrix(displacement.shape[axis], size, images.device) for axis, size in ((2, height), (3, width))
        )
        smooth = (displacement.mT @ vertical.T).mT @ horizontal.T  # (b, 2, height, width)
        grid = grid + smooth / half.view(2, 1, 1)
    warped = F.grid_sample(images.unsqueeze(1).to(grid.dtype), grid.permute(0, 2, 3, 1), align_corners=False)[:, 0]
    return warped if images.is_floating_point() else warped.round_().to(images.dtype)


def _bicubic_matrix(points: int, size: int, device: torch.device) -> torch.Tensor:
    """Bicubic interpolation of `points` values to `size`, as a matrix, which is faster than `interpolate` itself."""
    identity = torch.eye(points, device=device).view(1, 1, points, points)
    return F.interpolate(identity, size=(size, points), mode="bicubic", align_corners=True)[0, 0]


def draw_warps(args: AugmentationArguments, num_images: int, key: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """What [`warp_images`] is to do with each of `num_images` images, drawn from `key` alone."""
    generator = np.random.default_rng(key)
    draws = torch.from_numpy(generator.uniform(-1, 1, (num_images, 6)).astype(np.float32))
    warps = {
        "shift": args.max_shift * draws[:, :2],
        "rotation": args.max_rotation * draws[:, 2],
        "scale": (1 + args.max_scale) ** draws[:, 3:5],
        "shear": args.max_shear * draws[:, 5],
    }
    if args.warp:
        displacement = generator.standard_normal((num_images, 2, WARP_GRID, WARP_GRID), dtype=np.float32)
        warps["displacement"] = args.warp * torch.from_numpy(displacement)
    return warps


class AugmentedDigits(torch.utils.data.Dataset):
    """
    [`Digits`] whose images are warped anew in every epoch.

    Args:
        digits ([`Digits`]): The split to train on.
        args ([`AugmentationArguments`]): How far, and for how long.
        seed: With the epoch and the index of an image, decides its warp.
        num_epochs: Of the whole run.
    """

    def __init__(self, digits: Digits, args: AugmentationArguments, seed: int, num_epochs: float):
        self.digits, self.args, self.seed, self.num_epochs = digits, args, seed, num_epochs
        self.epoch = None
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the warps of an epoch; accelerate's data loaders call this at its start."""
        if epoch != self.epoch:
            is_over = epoch >= self.args.augment_until * self.num_epochs
            self.warps = None if is_over else self._draw(epoch)
            self.epoch = epoch

    def _draw(self, epoch: int) -> list[torch.Tensor]:
        """The arguments of [`sample_images`] after the images, for all of them."""
        warps = draw_warps(self.args, len(self.digits), (self.seed, epoch))
        displacement = [warps.pop("displacement")] if "displacement" in warps else []
        return [invert_warps(self.digits.images.shape[1:], **warps), *displacement]

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """One batch: `pixel_values` (b, 1, height, width), float32, and `labels` (b,), int64."""
        if self.warps is None:
            return self.digits.__getitems__(indices)
        indices = torch.as_tensor(indices)
        batch = self.digits.select(indices)
        images = sample_images(batch.images, *(warps.index_select(0, indices) for warps in self.warps))
        return {"pixel_values": self.digits.processor.to_pixel_values(images), "labels": batch.labels}


class AugmentedStream(torch.utils.data.IterableDataset):
    """[`StreamedDigits`] whose images are warped, drawn from (seed, epoch, number of the chunk); else as above."""

    def __init__(self, digits: StreamedDigits, args: AugmentationArguments, seed: int, num_epochs: float):
        self.digits, self.args, self.seed, self.num_epochs = digits, args, seed, num_epochs
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.digits.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.digits)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return iterate(self.digits.chunks() if self.is_over else self._warped_chunks())

    @property
    def is_over(self) -> bool:
        return self.epoch >= self.args.augment_until * self.num_epochs

    def _warped_chunks(self) -> Iterator[Digits]:
        for number, chunk in enumerate(self.digits.chunks()):
            warps = draw_warps(self.args, len(chunk), (self.seed, self.epoch, number))
            yield replace(chunk, images=warp_images(chunk.images, **warps))
