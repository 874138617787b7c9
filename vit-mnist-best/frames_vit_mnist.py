"""
The arithmetic of the image processor, for which Pillow, NumPy and torch suffice: from an image to a grey frame, and
from frames to `pixel_values`. Travels with every checkpoint, so it imports nothing else of ours.
"""

from os import PathLike

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch


# MNIST's digits were scaled into 20x20 of the 28x28 pixels.
MNIST_BOX = 20 / 28


def open_image(path: str | PathLike) -> PIL.Image.Image:
    """The image of a local file, upright, in its own mode."""
    with PIL.Image.open(path) as image:
        return PIL.ImageOps.exif_transpose(image)


def channel_axis(array: np.ndarray) -> int | None:
    """Axis of the colour channels of a 3-dimensional array, `None` where it is a batch of grey images."""
    if array.shape[0] in (1, 3):
        return 0
    return 2 if array.shape[2] in (1, 3, 4) else None


def to_grey(image: PIL.Image.Image | np.ndarray, background: int) -> np.ndarray:
    """
    One image as grey of shape (height, width): uint8, or float32 in [0, 1] where floats came in.

    Args:
        image: A PIL image of any mode, or an array of shape HW, HW1, 1HW, HW3, 3HW or HW4.
        background (`int`): Grey level, 0 to 255, that transparent pixels are laid over.

    Raises:
        ValueError: an array of another shape, or values out of range.
    """
    return (_grey_from_pil if isinstance(image, PIL.Image.Image) else _grey_from_array)(image, background)


def _grey_from_pil(image: PIL.Image.Image, background: int) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _eight_bits(np.asarray(image), sixteen=True)
    if image.mode in ("I", "F"):
        return _grey_from_array(np.asarray(image), background)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        paper = PIL.Image.new("RGBA", image.size, (background,) * 3 + (255,))
        image = PIL.Image.alpha_composite(paper, image.convert("RGBA"))
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"))


def _grey_from_array(array: np.ndarray, background: int) -> np.ndarray:
    axis = channel_axis(array) if array.ndim == 3 else None
    if array.ndim not in (2, 3) or (array.ndim == 3 and axis is None) or 0 in array.shape:
        raise ValueError(f"An image must have shape HW, HW1, 1HW, HW3, 3HW or HW4, got {array.shape}.")
    if axis is not None:
        array = np.moveaxis(array, axis, -1)
    if not np.issubdtype(array.dtype, np.floating):
        array = _eight_bits(array)
        if array.ndim == 3 and array.shape[-1] == 1:
            array = array[..., 0]
        return array if array.ndim == 2 else _grey_from_pil(PIL.Image.fromarray(array), background)

    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise ValueError(f"Float images must lie in [0, 1], got values from {low:g} to {high:g}.")
    array = array.astype(np.float32)
    if array.ndim == 2:
        return array
    if array.shape[-1] == 4:
        alpha = array[..., 3:]
        array = array[..., :3] * alpha + np.float32(background / 255) * (1 - alpha)
    if array.shape[-1] == 1:
        return array[..., 0]
    return np.clip(array @ np.array([0.299, 0.587, 0.114], np.float32), 0, 1)


def _eight_bits(array: np.ndarray, sixteen: bool = False) -> np.ndarray:
    """Integers as uint8: 0 to 255 as they are (unless known to be 16-bit), up to 65535 reduced from 16 bits."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ValueError(f"Integer images must lie in 0 to 255 (or 65535 for 16 bits), got {low} to {high}.")
    return np.round(array / 257).astype(np.uint8) if sixteen or high > 255 else array.astype(np.uint8)


def frame_image(
    image: np.ndarray,
    shape: tuple[int, int],
    resample: int | None,
    do_invert: bool | str | None,
    do_center: bool | None,
    do_resize: bool | None = True,
) -> np.ndarray:
    """
    Invert, then center or resize one grey image.

    Args:
        image (`np.ndarray` of shape `(height, width)`): uint8, or float32 in [0, 1].
        shape (`tuple[int, int]`): Height and width to give it.
        resample, do_invert, do_center, do_resize: As in [`VitMnistImageProcessor`].

    Returns:
        `np.ndarray` of shape `shape`, or as it was with neither `do_center` nor `do_resize`; of the same dtype.
    """
    if do_invert is True or (do_invert == "auto" and _is_dark_on_light(image)):
        image = (255 if image.dtype == np.uint8 else np.float32(1)) - image
    if do_center:
        return _center_as_mnist(image, shape, resample)
    return _resize(image, shape, resample) if do_resize and image.shape != shape else image


def rescale(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """Integers times `factor`, float32; floats stay as they are."""
    if pixels.is_floating_point():
        return pixels
    # Divided, not multiplied by the factor, and by a tensor, not a Python number, as ToTensor does.
    return pixels / torch.tensor(1 / factor, device=pixels.device)


def normalize(pixels: torch.Tensor, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> torch.Tensor:
    """Pixels less `mean`, over `std`: the first of each, as tensors, as Normalize does."""
    mean, std = (
        torch.as_tensor(value, dtype=torch.float32, device=pixels.device).reshape(-1)[:1] for value in (mean, std)
    )
    return (pixels - mean).div_(std)


def _border(frame: np.ndarray) -> np.ndarray:
    return np.concatenate([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]])


def _is_dark_on_light(frame: np.ndarray) -> bool:
    low, high = float(frame.min()), float(frame.max())
    return low < high and float(np.median(_border(frame))) > (low + high) / 2


def _resize(frame: np.ndarray, shape: tuple[int, int], resample: int | None) -> np.ndarray:
    resized = np.asarray(PIL.Image.fromarray(frame).resize(shape[::-1], resample))
    return resized if resized.dtype == np.uint8 else np.clip(resized, 0, 1)


def _center_as_mnist(frame: np.ndarray, shape: tuple[int, int], resample: int | None) -> np.ndarray:
    # The border shows the paper and its noise: zero in a clean drawing, where every grey pixel is ink.
    paper, bright = np.percentile(_border(frame), [50, 95]).astype(np.float32)
    ink = np.where(frame > paper + 3 * (bright - paper), frame - paper, 0).astype(frame.dtype)
    canvas = np.zeros(shape, frame.dtype)
    rows, columns = np.nonzero(ink)
    if rows.size == 0:
        return canvas
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = min(shape) * MNIST_BOX / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    ink = _resize(ink, (height, width), resample)
    if not ink.any():  # a hairline can vanish when it is shrunk
        return canvas

    mass = ink.astype(np.float64)
    center = (np.arange(height) @ mass.sum(1) / mass.sum(), np.arange(width) @ mass.sum(0) / mass.sum())
    top, left = (
        int(np.clip(round(side / 2 - middle), 0, side - extent))
        for side, middle, extent in zip(shape, center, (height, width), strict=True)
    )
    canvas[top : top + height, left : left + width] = ink
    return canvas
