"""
From any image to the `pixel_values` the model reads, as transformers' image processors do it. Travels with every
checkpoint, so it imports only its own arithmetic; Pillow and NumPy do the work, torchvision is not needed.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .frames_vit_mnist import channel_axis, frame_image, normalize, open_image, rescale, to_grey


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

    def to_frames(self, images: Any) -> torch.Tensor:
        """
        Images made grey and of the right size, neither rescaled nor normalised: what [`to_pixel_values`] goes on from.

        Returns:
            `torch.Tensor` of shape `(batch, height, width)`: uint8, or float32 in [0, 1] where floats came in.
        """
        return self(images, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values[:, 0]

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
        if do_rescale:
            pixels = rescale(pixels, self.rescale_factor if rescale_factor is None else rescale_factor)
        if do_normalize:
            mean = self.image_mean if image_mean is None else image_mean
            pixels = normalize(pixels, mean, self.image_std if image_std is None else image_std)
        return pixels

    def fetch_images(self, images: Any) -> Any:
        """Open paths and URLs. Unlike the base class's, a local image keeps its mode, and with it its transparency."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, os.PathLike) or (isinstance(images, str) and Path(images).is_file()):
            return open_image(images)
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
        is_batch = images.ndim == 4 or (images.ndim == 3 and channel_axis(images) is None)
        return list(images) if is_batch else [images]

    def process_image(self, image: Any, background: int | None = None, **kwargs) -> np.ndarray:
        """One image as grey of shape (height, width): uint8, or float32 in [0, 1] where floats came in."""
        return to_grey(image, background)

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
        frames = [frame_image(image, shape, resample, do_invert, do_center, do_resize) for image in images]
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


__all__ = ["VitMnistImageProcessor"]
