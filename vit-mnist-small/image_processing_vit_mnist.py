"""From any image to the `pixel_values` that the model reads. Works without torchvision. Travels with every checkpoint,
so it imports only files that do so, too."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .configuration_vit_mnist import MAX_SIDE, refuse_misspelled
from .deskewing_vit_mnist import deskew
from .framing_vit_mnist import PLAUSIBLE, Framing, frame_digit
from .grayscale_vit_mnist import (
    MAX_IMAGE_PIXELS,
    channel_axis,
    check_pixels,
    invert_and_resize,
    open_image,
    split_colors,
    to_grayscale,
)

logger = logging.getLogger(__name__)

FLOAT32 = np.finfo(np.float32)
COARSE_SIDE = 768  # pixels of the longer side, which tell in which color a digit is seen
# What a saved processor holds besides options.
METADATA = ("auto_map", "feature_extractor_type", "image_processor_type", "processor_class")
NOT_SAVED = ("max_pixels", "report_framings")


def _number(name: str, value: Any, positive: bool = False) -> float:
    """A setting of one channel, which may be repeated for more. Raises `ValueError` if it is no finite number."""
    numbers = set(value if isinstance(value, tuple) else np.ravel(value).tolist())
    number = numbers.pop() if len(numbers) == 1 else None
    high = float(FLOAT32.max)  # NumPy's numbers cannot be compared with integers of any size
    low = float(FLOAT32.tiny) if positive else -high
    if not isinstance(number, (int, float)) or not low <= number <= high:
        kind = "positive, finite number" if positive else "finite number"
        raise ValueError(f"{name} must be a {kind}, the same for all channels, got {value}.")
    return number


def warn_of_framings(found: list[Framing]) -> None:
    """Log which images of a call hold no digit, by reason, or several. A model predicts some digit of any image."""
    notes: dict[str, list[int]] = {}
    for number, framing in enumerate(found, 1):
        if framing.problem:
            notes.setdefault(f"no digit: {framing.problem}. Ignore what is predicted", []).append(number)
        elif framing.has_others:
            notes.setdefault("more than one digit: the clearest is read", []).append(number)
    for note, numbers in notes.items():
        which = f"Image {numbers[0]} of {len(found)} holds"
        if len(numbers) > 1:
            some = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
            which = f"Images {some} ({len(numbers)} of {len(found)}) hold"
        logger.warning("%s %s.", which, note)


class VitMnistImageProcessorKwargs(ImagesKwargs, total=False):
    """Options beyond those of transformers, as [`VitMnistImageProcessor`] describes them."""

    do_frame: bool | None
    do_invert: bool | str | None
    do_center: bool | None
    do_deskew: bool | None
    background: int | None
    max_pixels: int | None


class VitMnistImageProcessor(PilBackend):
    r"""Converts images to `pixel_values` of shape `(batch, 1, 28, 28)`, float32: grayscale, resize, rescale,
    normalize. MNIST's own images give the same bits as torchvision's `ToTensor` and `Normalize((0.1307,), (0.3081,))`.

    Takes one image or a list of images. An image is

    - a PIL image of any mode;
    - a path, a URL, base64 text, a data URL, an encoded file as bytes or opened for reading;
    - a NumPy array or torch tensor of shape HW, HW1, 1HW, HW2 (gray and alpha), HW3, 3HW or HW4 (RGBA), or a batch of
      these: integers from 0 to 255 (to 65535 as uint16), or floats in [0, 1]. `(3, H, W)` is one color image: pass
      three grayscale ones as `(3, 1, H, W)`. With `input_data_format`, every array has channels, where that says.

    An image is first turned upright as its EXIF data says. Color becomes gray by ITU-R BT.601 luma, as in Pillow's
    mode "L". If `do_frame` finds no plausible digit in it, but in red, green or blue alone, as with ink as bright as
    its paper, that color becomes gray. 16-bit images are reduced to 8 bits.

    Args:
        size (`dict`, defaults to 28x28): Height and width to resize to.
        resample (`PILImageResampling`, defaults to bilinear): Filter for resizing; antialiased when shrinking.
        image_mean, image_std (`float` or list, defaults to 0.1307 and 0.3081): Of MNIST's training pixels in [0, 1].
        do_frame (`bool`, defaults to `False`): Find the digit in a drawing, a scan or a photograph, dark on light or
            light on dark, and frame it as MNIST does (see [`frame_digit`]). An image of MNIST is unchanged, and one
            without a digit becomes black. A warning names images without a digit or with several. `do_invert` and
            `do_center` are used instead if one of them is set.
        do_invert (`bool` or `"auto"`, defaults to `False`): Invert the image. `"auto"` inverts an image whose border
            has a median brighter than the middle of the image's range: dark ink on light paper.
        do_center (`bool`, defaults to `False`): Frame the digit as MNIST does: scale the bounding box of the ink into
            20x20, keeping its aspect, and place its center of mass at the center of 28x28, whatever `do_resize` says.
            A blank image stays blank.
        do_deskew (`bool`, defaults to `False`): Bring the digit upright and to one size (see [`deskew`]), after it is
            framed, centered or resized, which must make a square. Expects light ink on black.
        background (`int`, defaults to 255, white): Gray level behind transparent pixels; its opposite, where nothing
            can be seen on it.
        max_pixels (`int`, defaults to 2**26): Larger images are refused before they are decoded. It is not saved, and
            a saved processor cannot set it: whoever made the file may have made the images, too.

    Of transformers' other options, `input_data_format`, `device` and `return_tensors` are obeyed. Refused are
    `do_center_crop`, `do_pad`, a `data_format` other than "channels_first", and a size that is not a height and a
    width. `do_convert_rgb` and `disable_grouping` cannot change the result.

    Raises:
        ValueError: an array of another shape, values out of range or not finite; an unknown value of an option, when
            the processor is made, loaded or called; an unknown option, when it is made or loaded.
        OSError: a file or URL that cannot be read.
        TypeError: something that is not an image; an unknown option, when the processor is called.
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
    do_frame = False
    do_invert: bool | str = False
    do_center = False
    do_deskew = False
    background = 255
    max_pixels = MAX_IMAGE_PIXELS
    report_framings: Callable[[list[Framing]], None] = staticmethod(warn_of_framings)

    def __init__(self, **kwargs):
        known = (*self.valid_kwargs.__annotations__, *METADATA)
        refuse_misspelled(kwargs, known)
        for name, value in kwargs.items():
            if name not in known and value is not None and value is not False and not name.startswith("_"):
                raise ValueError(f"Unknown option {name}={value!r}: this processor cannot obey it. Remove it.")
        super().__init__(**kwargs)
        self._validate_preprocess_kwargs(**{name: getattr(self, name) for name in self._valid_kwargs_names})

    @classmethod
    def from_dict(cls, image_processor_dict, **kwargs):
        refuse_misspelled(kwargs, cls.valid_kwargs.__annotations__)
        # `__init__` refuses unknown steps. The other unknown names that pipelines pass on are meant for the model.
        steps = {name: value for name, value in kwargs.items() if name.startswith("do_")}
        if "max_pixels" in image_processor_dict:
            raise ValueError("A saved processor cannot set max_pixels: pass it where the processor is loaded.")
        return super().from_dict(image_processor_dict | steps, **kwargs)

    def to_grayscale(self, images: Any) -> torch.Tensor:
        """Images in grayscale and resized, neither rescaled nor normalized: the input of [`rescale_and_normalize`].

        Returns:
            `torch.Tensor` of shape `(batch, height, width)`: uint8, or float32 in [0, 1] for floats.
        """
        return self(images, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values[:, 0]

    def rescale_and_normalize(
        self, images: torch.Tensor, do_rescale: bool | None = None, rescale_factor: float | None = None,
        do_normalize: bool | None = None, image_mean: Any = None, image_std: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        """Rescale and normalize images that are already grayscale and resized, on their own device.

        Args:
            images (`torch.Tensor` of shape `(batch, height, width)`): uint8, or floats in [0, 1].

        Returns:
            `torch.Tensor` of shape `(batch, 1, height, width)`: float32, or uint8 as it was without both steps.
        """
        pixels = images.unsqueeze(1)
        if self.do_rescale if do_rescale is None else do_rescale:
            factor = self.rescale_factor if rescale_factor is None else rescale_factor
            _number("rescale_factor", factor, positive=True)
            if not pixels.is_floating_point():
                # ToTensor divides by a tensor. Multiplying, or dividing by a Python number, rounds differently.
                pixels = pixels / torch.tensor(1 / factor, device=pixels.device)
            elif 255 * factor != 1:  # floats are rescaled by 1 / 255 already
                pixels = pixels * (255 * factor)
        if self.do_normalize if do_normalize is None else do_normalize:
            mean = _number("image_mean", self.image_mean if image_mean is None else image_mean)
            std = _number("image_std", self.image_std if image_std is None else image_std, positive=True)
            mean, std = torch.tensor([[mean], [std]], dtype=torch.float32, device=pixels.device)
            pixels = (pixels - mean).div_(std)
        return pixels

    def to_dict(self):
        return {name: value for name, value in super().to_dict().items() if name not in NOT_SAVED}

    def fetch_images(self, images: Any, max_pixels: int | None = None) -> Any:
        """Open images. They keep their mode and transparency, which the base class would drop."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image, max_pixels) for image in images]
        is_source = isinstance(images, (str, os.PathLike, bytes, PIL.Image.Image)) or hasattr(images, "read")
        return open_image(images, self.max_pixels if max_pixels is None else max_pixels) if is_source else images

    def _prepare_image_like_inputs(
        self, images: Any, background: int | None = None, input_data_format: str | None = None,
        max_pixels: int | None = None, **kwargs,
    ) -> list[np.ndarray]:  # fmt: skip
        singles = self._flatten(self.fetch_images(images, max_pixels), input_data_format)
        return [self.process_image(image, background, input_data_format, max_pixels, **kwargs) for image in singles]

    def _flatten(self, images: Any, data_format: str | None) -> list[Any]:
        """A list of single images: PIL images and arrays."""
        if isinstance(images, (list, tuple)):
            return [single for image in images for single in self._flatten(image, data_format)]
        if isinstance(images, PIL.Image.Image):
            return [images]
        if isinstance(images, torch.Tensor):
            images = images.detach().cpu()
            images = images.float().numpy() if images.is_floating_point() else images.numpy()
        if not isinstance(images, np.ndarray):
            raise TypeError(
                "An image must be a PIL image, a NumPy array, a torch tensor, a path, a URL, bytes or an opened file, "
                f"got {type(images)}."
            )
        is_batch = images.ndim == 4 or (images.ndim == 3 and channel_axis(images, data_format) is None)
        return list(images) if is_batch else [images]

    def process_image(
        self, image: Any, background: int | None = None, input_data_format: str | None = None,
        max_pixels: int | None = None, **kwargs,
    ) -> np.ndarray:  # fmt: skip
        """One image in grayscale, of shape (height, width): uint8, or float32 in [0, 1] for floats. Options of the
        call, such as `do_frame`, are among `kwargs`."""
        background = self.background if background is None else background
        shape = image.size if isinstance(image, PIL.Image.Image) else image.shape
        check_pixels(shape, "The array", self.max_pixels if max_pixels is None else max_pixels)
        arguments = image, background, input_data_format or self.input_data_format
        steps = ("do_frame", "do_invert", "do_center")
        do_frame, do_invert, do_center = (kwargs.get(step, getattr(self, step)) for step in steps)
        if not do_frame or do_invert or do_center:
            return to_grayscale(*arguments)
        luma, *colors = split_colors(*arguments)
        step = max(1, max(luma.shape) // COARSE_SIDE)

        def plausibility(gray: np.ndarray) -> float:
            return self.frame(np.ascontiguousarray(gray[::step, ::step])).plausibility

        is_gray = all(np.array_equal(color[::step, ::step], luma[::step, ::step]) for color in colors)
        if is_gray or plausibility(luma) >= PLAUSIBLE:
            return luma
        found = [plausibility(color) for color in colors]
        return np.ascontiguousarray(colors[np.argmax(found)]) if max(found) >= PLAUSIBLE else luma

    @staticmethod
    def frame(image: np.ndarray, side: int = 28) -> Framing:
        """What [`frame_digit`] finds in one grayscale image of shape `(height, width)`: uint8, or float32 in [0, 1],
        which stays float32 only if it is framed already."""
        gray = image if image.dtype == np.uint8 else np.round(255 * image).astype(np.uint8)
        framing = frame_digit(gray, side)
        return replace(framing, image=image) if framing.is_framed and image.shape == (side, side) else framing

    def _standardize_kwargs(self, **kwargs):
        try:
            kwargs = super()._standardize_kwargs(**kwargs)
        except (LookupError, AttributeError) as error:
            raise TypeError(f"A size or another option is of the wrong type: {error}.") from error
        for name in ("image_mean", "image_std"):  # of one channel, however often it was repeated
            if len(numbers := set(np.ravel(kwargs[name]).tolist()) - {None}) == 1:
                kwargs[name] = tuple(numbers)
        return kwargs

    def _validate_preprocess_kwargs(self, *, size, resample, background, data_format, input_data_format, **kwargs):
        for name, value in kwargs.items():
            choices = (True, False, None, "auto") if name == "do_invert" else (True, False, None)
            if name.startswith("do_") and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
        for name in ("do_center_crop", "do_pad"):
            if kwargs[name]:
                raise ValueError(f"{name} is not supported: this processor only resizes images, or centers the ink.")
        if data_format not in (None, ChannelDimension.FIRST):
            raise ValueError(f"data_format must be 'channels_first', which the model reads, got {data_format!r}.")
        if input_data_format is not None:
            ChannelDimension(input_data_format)  # raises ValueError
        if background is not None and (not isinstance(background, int) or not 0 <= background <= 255):
            raise ValueError(f"background must be an integer from 0 to 255, got {background!r}.")
        if kwargs["max_pixels"] is not None and kwargs["max_pixels"] < 1:
            raise ValueError(f"max_pixels must be at least 1, got {kwargs['max_pixels']!r}.")
        if kwargs["do_resize"] or kwargs["do_center"] or kwargs["do_frame"]:
            sides = dict(size or {})
            if sides.keys() != {"height", "width"} or not all(type(s) is int and s > 0 for s in sides.values()):
                raise ValueError(f"size must be a height and a width, both at least 1, got {sides}.")
            if max(sides.values()) > MAX_SIDE:
                raise ValueError(f"size must be at most {MAX_SIDE}x{MAX_SIDE}, got {sides}.")
            for name in ("do_frame", "do_deskew"):
                if kwargs[name] and sides["height"] != sides["width"]:
                    raise ValueError(f"{name}=True makes squares, so size must be one, got {sides}.")
            if resample not in list(PILImageResampling):
                raise ValueError(f"resample must be one of {[*map(int, PILImageResampling)]}, got {resample!r}.")
        if kwargs["do_rescale"]:
            _number("rescale_factor", kwargs["rescale_factor"], positive=True)
        if kwargs["do_normalize"]:
            _number("image_mean", kwargs["image_mean"])
            _number("image_std", kwargs["image_std"], positive=True)

    def _preprocess(
        self, images: list[np.ndarray], do_frame: bool | None, do_invert: bool | str | None, do_center: bool | None,
        do_deskew: bool | None, do_resize: bool | None, size: SizeDict | None,
        resample: PILImageResampling | int | None, do_rescale: bool | None, rescale_factor: float | None,
        do_normalize: bool | None, image_mean: Any, image_std: Any, return_tensors: Any = None, device: Any = None,
        **kwargs,
    ) -> BatchFeature:  # fmt: skip
        shape = (size.height, size.width) if size else (0, 0)  # used only if images are resized or centered
        if do_frame and not (do_invert or do_center):
            found = [self.frame(image, shape[0]) for image in images]
            framed = [framing.image for framing in found]
            self.report_framings(found)
        else:
            framed = [invert_and_resize(image, shape, resample, do_invert, do_center, do_resize) for image in images]
        if do_deskew:
            framed = [deskew(image) for image in framed]
        if len({image.shape for image in framed}) > 1:
            sizes = ", ".join(sorted({"x".join(map(str, image.shape)) for image in framed}))
            raise ValueError(f"Cannot batch images of different sizes ({sizes}): use do_resize=True.")
        is_float = any(image.dtype == np.float32 for image in images)  # then all are rescaled already
        if len({image.dtype for image in framed}) > 1 or (is_float and not do_rescale):
            framed = [image if image.dtype == np.float32 else np.float32(image) / np.float32(255) for image in framed]
        stacked = np.stack(framed) if framed else np.empty((0, *shape), np.uint8)
        pixel_values = self.rescale_and_normalize(
            torch.from_numpy(stacked), bool(do_rescale), rescale_factor, bool(do_normalize), image_mean, image_std
        )
        if return_tensors is None:
            return BatchFeature({"pixel_values": list(pixel_values.numpy())})
        batch = BatchFeature({"pixel_values": pixel_values.numpy()}, tensor_type=return_tensors)
        if device is not None:
            batch.to(device)
        return batch


__all__ = ["VitMnistImageProcessor"]
