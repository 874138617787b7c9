"""From any image to the `pixel_values` that the model reads. Works without torchvision. Travels with every checkpoint,
so it imports only its framing."""

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

from .framing_vit_mnist import channel_axis, frame_image, to_grayscale


def open_image(file: Any) -> PIL.Image.Image:
    """The image in a file, given by its path or opened for reading, upright as its EXIF data says, in its own mode."""
    with PIL.Image.open(file) as image:
        return PIL.ImageOps.exif_transpose(image)


class VitMnistImageProcessorKwargs(ImagesKwargs, total=False):
    """Options beyond those of transformers, as [`VitMnistImageProcessor`] describes them."""

    do_invert: bool | str | None
    do_center: bool | None
    background: int | None


class VitMnistImageProcessor(PilBackend):
    r"""Converts images to `pixel_values` of shape `(batch, 1, 28, 28)`, float32: grayscale, resize, rescale,
    normalize. MNIST's own images give the same bits as torchvision's `ToTensor` and `Normalize((0.1307,), (0.3081,))`.

    Takes one image or a list of images. An image is

    - a PIL image of any mode;
    - a path or URL;
    - a NumPy array or torch tensor of shape HW, HW1, 1HW, HW3, 3HW or HW4 (RGBA), or a batch of these: integers from
      0 to 255, or floats in [0, 1]. `(3, H, W)` is one color image: pass three grayscale ones as `(3, 1, H, W)`.

    Color becomes gray by ITU-R BT.601 luma, as in Pillow's mode "L". 16-bit images are reduced to 8 bits.

    Args:
        size (`dict`, defaults to 28x28): Height and width to resize to.
        resample (`PILImageResampling`, defaults to bilinear): Filter for resizing; antialiased when shrinking.
        image_mean, image_std (`float` or list, defaults to 0.1307 and 0.3081): Of MNIST's training pixels in [0, 1].
        do_invert (`bool` or `"auto"`, defaults to `False`): Invert the image. `"auto"` inverts an image whose border
            has a median brighter than the middle of the image's range: dark ink on light paper.
        do_center (`bool`, defaults to `False`): Frame the digit as MNIST does: scale the bounding box of the ink into
            20x20, keeping its aspect, and place its center of mass at the center of 28x28, whatever `do_resize` says.
            A blank image stays blank.
        background (`int`, defaults to 255, white): Gray level behind transparent pixels.

    Raises:
        ValueError: an array of another shape, floats outside [0, 1] or not finite, an unknown `do_invert`.
        TypeError: something that is not an image.
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
    do_invert: bool | str = False
    do_center = False
    background = 255

    def to_grayscale(self, images: Any) -> torch.Tensor:
        """Images in grayscale and resized, neither rescaled nor normalized: the input of [`rescale_and_normalize`].

        Returns:
            `torch.Tensor` of shape `(batch, height, width)`: uint8, or float32 in [0, 1] for floats.
        """
        return self(images, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values[:, 0]

    def rescale_and_normalize(
        self, images: torch.Tensor, do_rescale: bool = True, rescale_factor: float | None = None,
        do_normalize: bool = True, image_mean: Any = None, image_std: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        """Rescale and normalize images that are already grayscale and resized, on their own device.

        Args:
            images (`torch.Tensor` of shape `(batch, height, width)`): uint8, or floats in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch, 1, height, width)`: float32, or uint8 as it was without both steps.
        """
        pixels = images.unsqueeze(1)
        if do_rescale and not pixels.is_floating_point():
            factor = self.rescale_factor if rescale_factor is None else rescale_factor
            # ToTensor divides by a tensor. Multiplying, or dividing by a Python number, rounds differently.
            pixels = pixels / torch.tensor(1 / factor, device=pixels.device)
        if do_normalize:
            mean, std = (
                torch.as_tensor(own if value is None else value, dtype=torch.float32, device=pixels.device)
                for own, value in ((self.image_mean, image_mean), (self.image_std, image_std))
            )
            pixels = (pixels - mean.reshape(-1)[:1]).div_(std.reshape(-1)[:1])
        return pixels

    def fetch_images(self, images: Any) -> Any:
        """Open paths and URLs. A local image keeps its mode and transparency, which the base class would drop."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, os.PathLike) or (isinstance(images, str) and Path(images).is_file()):
            return open_image(images)
        if isinstance(images, str):
            return super().fetch_images(images)
        return images

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """A flat list of single images."""
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
        """One image in grayscale, of shape (height, width): uint8, or float32 in [0, 1] for floats."""
        return to_grayscale(image, background)

    def _validate_preprocess_kwargs(self, do_invert=None, background=None, **kwargs):
        if do_invert not in (True, False, None, "auto"):
            raise ValueError(f'do_invert must be True, False or "auto", got {do_invert!r}.')
        if background is not None and not 0 <= background <= 255:
            raise ValueError(f"background must lie between 0 and 255, got {background}.")
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess(
        self, images: list[np.ndarray], do_invert: bool | str | None, do_center: bool | None, do_resize: bool | None,
        size: SizeDict, resample: PILImageResampling | int | None, do_rescale: bool | None,
        rescale_factor: float | None, do_normalize: bool | None, image_mean: Any, image_std: Any,
        return_tensors: Any = None, **kwargs,
    ) -> BatchFeature:  # fmt: skip
        shape = (size.height, size.width)
        framed = [frame_image(image, shape, resample, do_invert, do_center, do_resize) for image in images]
        if len({image.shape for image in framed}) > 1:
            sizes = ", ".join(sorted({"x".join(map(str, image.shape)) for image in framed}))
            raise ValueError(f"Cannot batch images of different sizes ({sizes}): use do_resize=True.")
        if len({image.dtype for image in framed}) > 1:  # floats among integers: floats are already rescaled
            framed = [image if image.dtype == np.float32 else np.float32(image) / np.float32(255) for image in framed]
        stacked = np.stack(framed) if framed else np.empty((0, *shape), np.uint8)
        pixel_values = self.rescale_and_normalize(
            torch.from_numpy(stacked), bool(do_rescale), rescale_factor, bool(do_normalize), image_mean, image_std
        )
        if return_tensors is None:
            return BatchFeature({"pixel_values": list(pixel_values.numpy())})
        return BatchFeature({"pixel_values": pixel_values.numpy()}, tensor_type=return_tensors)


__all__ = ["VitMnistImageProcessor"]
