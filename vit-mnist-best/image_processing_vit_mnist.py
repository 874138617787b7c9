"""
From any image to the `pixel_values` the model reads: the only place that knows how. Travels with every checkpoint, so
it imports nothing else of ours; Pillow and NumPy do the work, torchvision is not needed.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs


# MNIST's digits were scaled into 20x20 of the 28x28 pixels.
MNIST_BOX = 20 / 28


class VitMnistImageProcessorKwargs(ImagesKwargs, total=False):
    """
    do_invert (`bool` or `"auto"`): Turn dark ink on light paper into MNIST's light ink on dark paper; `"auto"` does it
        for the images that need it.
    do_center (`bool`): Frame the digit as MNIST's were.
    background (`int`): Grey level, 0 to 255, that transparent pixels are laid over.
    """

    do_invert: bool | str | None
    do_center: bool | None
    background: int | None


class VitMnistImageProcessor(PilBackend):
    r"""
    Turns images into `pixel_values` of shape `(batch, 1, 28, 28)`, float32: grey, resize, rescale, normalise. MNIST's
    own images come out bit for bit as torchvision's `ToTensor` and `Normalize((0.1307,), (0.3081,))` make them.

    Takes one image or a list of images, each of them

    - a PIL image of any mode, transparent pixels laid over `background`;
    - a path or URL;
    - a NumPy array or torch tensor of shape HW, HW1, 1HW, HW3, 3HW or HW4 (RGBA), or a batch of these: integers from
      0 to 255, or floats in [0, 1]. `(3, H, W)` is one colour image: pass three grey ones as `(3, 1, H, W)`.

    Colour becomes grey by ITU-R BT.601 luma, as in Pillow's mode "L". 16-bit images are reduced to 8 bits.

    Args:
        size (`dict`, defaults to 28x28): Height and width to resize to.
        resample (`PILImageResampling`, defaults to bilinear): Filter for resizing; antialiased when shrinking.
        image_mean, image_std (`float` or list, defaults to 0.1307 and 0.3081): Of MNIST's training pixels in [0, 1].
        do_invert (`bool` or `"auto"`, defaults to `False`): Invert the image. `"auto"` inverts where the border's
            median is brighter than the middle of the image's range: dark ink on light paper.
        do_center (`bool`, defaults to `False`): Frame the digit as MNIST does: the ink's bounding box is scaled into
            20x20 keeping its aspect, then placed with its centre of mass in the centre of 28x28. A blank image
            stays blank.
        background (`int`, defaults to 255, white): Grey level that transparent pixels are laid over.

    Raises:
        ValueError: an array of another shape, floats outside [0, 1] or not finite, an unknown `do_invert`.
        TypeError: something that is no image.
    """

    valid_kwargs = VitMnistImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_resize = True
    size = {"height": 28, "width": 28}
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = [0.1307]
    image_std = [0.3081]
    do_invert = False
    do_center = False
    background = 255

    def to_pixel_values(
        self,
        frames: torch.Tensor,
        do_rescale: bool = True,
        rescale_factor: float | None = None,
        do_normalize: bool = True,
        image_mean: float | tuple[float, ...] | None = None,
        image_std: float | tuple[float, ...] | None = None,
    ) -> torch.Tensor:
        """
        Rescale and normalise frames that are already grey and of the right size, on whatever device they are.

        Args:
            frames (`torch.Tensor` of shape `(batch, height, width)`): uint8, or floats in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch, 1, height, width)`: float32, unless uint8 frames are to stay as they are.
        """
        pixels = frames.unsqueeze(1)
        if do_rescale and not pixels.is_floating_point():
            # Divided, not multiplied by the factor, and by tensors, not Python numbers, as ToTensor and Normalize do.
            factor = self.rescale_factor if rescale_factor is None else rescale_factor
            pixels = pixels / torch.tensor(1 / factor, device=frames.device)
        if do_normalize:
            mean, std = (
                torch.as_tensor(value, dtype=torch.float32, device=frames.device).reshape(-1)[:1]
                for value in (
                    self.image_mean if image_mean is None else image_mean,
                    self.image_std if image_std is None else image_std,
                )
            )
            pixels = (pixels - mean) / std
        return pixels

    def fetch_images(self, images: Any) -> Any:
        """Open paths and URLs. Unlike the base class's, a local image keeps its mode, and with it its transparency."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, os.PathLike) or (isinstance(images, str) and Path(images).is_file()):
            with PIL.Image.open(images) as image:
                return PIL.ImageOps.exif_transpose(image)
        if isinstance(images, str):
            return super().fetch_images(images)
        return images

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """Flatten whatever was passed to a list of single images."""
        images = self.fetch_images(images)
        if isinstance(images, (list, tuple)):
            return [single for image in images for single in self._prepare_images_structure(image)]
        if isinstance(images, PIL.Image.Image):
            return [images]
        if isinstance(images, torch.Tensor):
            images = images.detach().cpu()
            images = images.float().numpy() if images.is_floating_point() else images.numpy()
        if not isinstance(images, np.ndarray):
            raise TypeError(
                f"An image must be a PIL image, a path, a NumPy array or a torch tensor, got {type(images)}."
            )
        is_batch = images.ndim == 4 or (images.ndim == 3 and _channel_axis(images) is None)
        return list(images) if is_batch else [images]

    def process_image(self, image: Any, background: int | None = None, **kwargs) -> np.ndarray:
        """One image as grey of shape (height, width): uint8, or float32 in [0, 1] where floats came in."""
        if isinstance(image, PIL.Image.Image):
            return _grey_from_pil(image, background)
        return _grey_from_array(image, background)

    def _validate_preprocess_kwargs(self, do_invert=None, background=None, **kwargs):
        if do_invert not in (True, False, None, "auto"):
            raise ValueError(f'do_invert must be True, False or "auto", got {do_invert!r}.')
        if background is not None and not 0 <= background <= 255:
            raise ValueError(f"background must lie between 0 and 255, got {background}.")
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_invert: bool | str | None,
        do_center: bool | None,
        do_resize: bool | None,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_rescale: bool | None,
        rescale_factor: float | None,
        do_normalize: bool | None,
        image_mean: float | tuple[float, ...] | None,
        image_std: float | tuple[float, ...] | None,
        return_tensors: Any = None,
        **kwargs,
    ) -> BatchFeature:
        shape = (size.height, size.width)
        frames = []
        for frame in images:
            if do_invert is True or (do_invert == "auto" and _is_dark_on_light(frame)):
                frame = (255 if frame.dtype == np.uint8 else np.float32(1)) - frame
            if do_center:
                frame = _center_as_mnist(frame, shape, resample)
            elif do_resize and frame.shape != shape:
                frame = _resize(frame, shape, resample)
            frames.append(frame)

        if len({frame.shape for frame in frames}) > 1:
            sizes = ", ".join(sorted({"x".join(map(str, frame.shape)) for frame in frames}))
            raise ValueError(f"Images of different sizes ({sizes}) make no batch: use do_resize=True.")
        if len({frame.dtype for frame in frames}) > 1:  # floats among integers: floats are already rescaled
            frames = [frame if frame.dtype == np.float32 else np.float32(frame) / np.float32(255) for frame in frames]
        stacked = np.stack(frames) if frames else np.empty((0, *shape), np.uint8)
        pixel_values = self.to_pixel_values(
            torch.from_numpy(stacked), bool(do_rescale), rescale_factor, bool(do_normalize), image_mean, image_std
        )
        if return_tensors is None:
            return BatchFeature({"pixel_values": list(pixel_values.numpy())})
        return BatchFeature({"pixel_values": pixel_values.numpy()}, tensor_type=return_tensors)


def _channel_axis(array: np.ndarray) -> int | None:
    """Axis of the colour channels of a 3-dimensional array, `None` where it is a batch of grey images."""
    if array.shape[0] in (1, 3):
        return 0
    return 2 if array.shape[2] in (1, 3, 4) else None


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
    axis = _channel_axis(array) if array.ndim == 3 else None
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


def _border(frame: np.ndarray) -> np.ndarray:
    return np.concatenate([frame[0], frame[-1], frame[1:-1, 0], frame[1:-1, -1]])


def _is_dark_on_light(frame: np.ndarray) -> bool:
    low, high = float(frame.min()), float(frame.max())
    return low < high and float(np.median(_border(frame))) > (low + high) / 2


def _resize(frame: np.ndarray, shape: tuple[int, int], resample: PILImageResampling | int | None) -> np.ndarray:
    resized = np.asarray(PIL.Image.fromarray(frame).resize(shape[::-1], resample))
    return resized if resized.dtype == np.uint8 else np.clip(resized, 0, 1)


def _center_as_mnist(
    frame: np.ndarray, shape: tuple[int, int], resample: PILImageResampling | int | None
) -> np.ndarray:
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


__all__ = ["VitMnistImageProcessor"]
