"""Images opened, and turned to grayscale, inverted, centered or resized. Needs Pillow and NumPy, and httpx for URLs.
Travels with every checkpoint, so it imports nothing else of this package."""

import base64
import io
import os
import stat
import struct
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import PIL.Image
import PIL.ImageOps
from huggingface_hub.utils import httpx

# MNIST's digits were scaled into 20x20 of the 28x28 pixels.
MNIST_BOX = 20 / 28
URL = ("http://", "https://")
URL_TIMEOUT = 60  # seconds without an answer
MAX_IMAGE_PIXELS = 2**26  # of an image before it is decoded: the largest photos of common cameras
LEAST_RANGE = 32  # of the gray levels of something that is drawn on transparency, of 255
# Formats that are not opened. The first six need other programs, or code that is not there. Of the last two, Pillow
# decompresses any amount of data, before it is known how large the image is.
NOT_OPENED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF", "FITS", "ICO"}


class UnreadableImageError(PIL.UnidentifiedImageError, ValueError):
    """No image, a damaged one, or one that is too large. The message says which."""


def open_image(source: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> PIL.Image.Image:
    """An image, upright as its EXIF data says, in its own mode. The source may be what
    `transformers.image_utils.load_image` takes, with the same meaning (path, http URL, base64 text, data URL, PIL
    image), or bytes, or a file opened for reading. Of an animation, the first image is read. An image of more than
    `max_pixels`, or a file of more than four bytes for each of them, is refused before it is decoded.

    Raises `OSError` if the source cannot be read, or `ValueError` if it is no regular file, leads to no image, or is
    too large or damaged."""
    if isinstance(source, PIL.Image.Image):
        return _decode(source, "The image", max_pixels)
    name, fault = "The file", "holds no image that Pillow can read"
    if isinstance(source, (str, os.PathLike)):
        name = repr(str(source) if len(str(source)) <= 200 else f"{str(source)[:80]}...")
        if isinstance(source, str) and not os.path.exists(source):
            data = _read_text(source, max_pixels)
            if not source.startswith(URL):
                fault = "does not exist, and is not the http URL or base64 text of an image"
        else:
            data = read_file(source, max_pixels)
    elif isinstance(source, bytes):
        data = source
    else:
        if source.seekable():
            source.seek(0)
        data = source.read(max_bytes(max_pixels) + 1)
    if len(data) > max_bytes(max_pixels):
        raise UnreadableImageError(f"{name} is too large for an image of max_pixels={max_pixels}.")
    image = _identify(data, name)
    if image is None:
        raise UnreadableImageError(f"{name} {fault}.")
    with image:
        return _decode(image, name, max_pixels)


def _identify(data: bytes, name: str) -> PIL.Image.Image | None:
    """The image in a file, not yet decoded; `None` for no known format. `PIL.Image.open` does the same, but for the
    formats that it opens, and for its limit of pixels, which only a global variable lifts."""
    PIL.Image.init()
    for kind in PIL.Image.ID:
        factory, accept = PIL.Image.OPEN[kind]
        try:
            is_accepted = kind not in NOT_OPENED and (accept is None or accept(data[:16]))
            if is_accepted and not isinstance(is_accepted, str):  # text says which package is missing
                return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # of another format, as in Pillow
            continue
        except Exception as error:
            raise _damaged(name, error) from error
    return None


def _decode(image: PIL.Image.Image, name: str, max_pixels: int) -> PIL.Image.Image:
    check_pixels(image.size, name, max_pixels)
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise exceptions of many kinds for corrupt files
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> UnreadableImageError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return UnreadableImageError(f"{name} holds a damaged image: {reason}.")


def check_pixels(shape: tuple[int, ...], name: str, max_pixels: int) -> None:
    """Raise `ValueError` for a shape of more than `max_pixels`."""
    if np.prod(shape, dtype=object) > max_pixels:
        size = "x".join(map(str, shape))
        raise UnreadableImageError(
            f"{name} holds an image of {size} pixels, more than max_pixels={max_pixels}: raise it to read the file."
        )


def max_bytes(max_pixels: int) -> int:
    """Of a file with an image of up to `max_pixels`, besides a megabyte of text and profiles."""
    return 4 * max_pixels + 2**20


def read_file(path: str | os.PathLike, max_pixels: int) -> bytes:
    """The content of an image file, up to one byte more than is allowed. Raises `OSError`, or `ValueError` if it is
    not a regular file: a pipe or a device may never end."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UnreadableImageError(f"{str(path)!r} is a pipe or a device, not a regular file.")
    with open(path, "rb") as file:  # raises `IsADirectoryError` for a folder
        if os.fstat(file.fileno()).st_size > max_bytes(max_pixels):
            raise UnreadableImageError(f"{str(path)!r} is too large for an image of max_pixels={max_pixels}.")
        return file.read(max_bytes(max_pixels) + 1)


def _read_text(text: str, max_pixels: int) -> bytes:
    """What a URL or base64 text stands for; nothing for another text."""
    if text.startswith(URL):
        data = bytearray()
        try:
            with httpx.stream("GET", text, timeout=URL_TIMEOUT, follow_redirects=True) as response:
                for part in response.raise_for_status().iter_bytes():
                    data += part
                    if len(data) > max_bytes(max_pixels):
                        break
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error).partition("\n")[0]
            raise OSError(f"Cannot download {text}: {reason}") from error
        return bytes(data)
    try:
        return base64.decodebytes((text.partition(",")[2] if text.startswith("data:") else text).encode())
    except ValueError:
        return b""


def channel_axis(array: np.ndarray, data_format: str | None) -> int | None:
    """Axis of the color channels of a 3-dimensional array, as `data_format` says ("channels_first" or
    "channels_last") or as its shape suggests; `None` for a batch of grayscale images."""
    if data_format is not None:
        return 0 if data_format == "channels_first" else 2
    if array.shape[0] in (1, 3):
        return 0
    return 2 if array.shape[2] in (1, 2, 3, 4) else None


def to_grayscale(image: PIL.Image.Image | np.ndarray, background: int, data_format: str | None = None) -> np.ndarray:
    """One image in grayscale, of shape `(height, width)`: uint8, or float32 in [0, 1] for floats.

    Args:
        image: A PIL image of any mode, or an array of shape HW, HW1, 1HW, HW2 (gray and alpha), HW3, 3HW or HW4
            (RGBA).
        background (`int`): Gray level, 0 to 255, behind transparent pixels. Where nothing can be seen on it, as with
            white ink, its opposite is behind them.
        data_format (`str`, *optional*): Where an array has its channels, as in [`channel_axis`].

    Raises:
        ValueError: an array of another shape or without numbers, or values out of range.
    """
    return next(split_colors(image, background, data_format))


def split_colors(
    image: PIL.Image.Image | np.ndarray, background: int, data_format: str | None = None
) -> Iterator[np.ndarray]:
    """What [`to_grayscale`] makes of an image, followed by its red, green and blue, if it has colors, in the same
    form."""
    if isinstance(image, PIL.Image.Image):
        return _split_pil(image, background)
    return _split_array(image, background, data_format)


def _split_pil(image: PIL.Image.Image, background: int) -> Iterator[np.ndarray]:
    if 0 in image.size:
        raise ValueError(f"An image must have pixels, got a size of {image.size}.")
    if image.mode == "I" or image.mode.startswith("I;16"):
        array = np.asarray(image)
        yield _eight_bits(array, sixteen=image.mode != "I" or array.max() > 255)  # Pillow reads some 16 bits as "I"
        return
    if image.mode == "F":
        yield from _split_array(np.asarray(image), background)
        return
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # Pillow converts it to nothing else
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        drawn = _on_paper(image, background)
        if _is_blank(drawn) and not _is_blank(opposite := _on_paper(image, 255 - background)):
            drawn = opposite
        image = drawn
    elif image.mode not in ("1", "L"):
        image = image.convert("RGB")
    yield np.asarray(image.convert("L"))
    if image.mode == "RGB":
        yield from np.moveaxis(np.asarray(image), -1, 0)


def _on_paper(image: PIL.Image.Image, level: int) -> PIL.Image.Image:
    paper = PIL.Image.new("RGBA", image.size, (level,) * 3 + (255,))
    image = PIL.Image.alpha_composite(paper, image)
    del paper  # of a large image, each copy counts
    return image.convert("RGB")


def _is_blank(image: PIL.Image.Image) -> bool:
    return all(high - low < LEAST_RANGE for low, high in cast(list[tuple[int, int]], image.getextrema()))


def _split_array(array: np.ndarray, background: int, data_format: str | None = None) -> Iterator[np.ndarray]:
    axis = channel_axis(array, data_format) if array.ndim == 3 else None
    channels = array.shape[axis] if axis is not None else 1 if array.ndim == 2 else 0
    if not 1 <= channels <= 4 or 0 in array.shape:
        form = f" with {data_format}" if data_format else ""
        raise ValueError(f"An image must have shape HW, HW1, 1HW, HW2, HW3, 3HW or HW4, got {array.shape}{form}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"An image must hold integers, floats or bools, got {array.dtype}.")
    if axis is not None:
        array = np.moveaxis(array, axis, -1)
    if not np.issubdtype(array.dtype, np.floating):
        array = _eight_bits(array)
        if array.ndim == 3 and array.shape[-1] == 1:
            array = array[..., 0]
        yield from [array] if array.ndim == 2 else _split_pil(PIL.Image.fromarray(array), background)
        return

    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-5 and high <= 1 + 1e-5):  # true for NaN; resizing overshoots by rounding
        raise ValueError(f"Float images must lie in [0, 1], got values from {low:g} to {high:g}.")
    array = np.clip(array.astype(np.float32), 0, 1)
    if channels in (2, 4):
        alpha, levels = array[..., -1:], (background, 255 - background)
        array, opposite = (array[..., :-1] * alpha + np.float32(level / 255) * (1 - alpha) for level in levels)
        ranges = [255 * np.ptp(drawn, axis=(0, 1)).max() for drawn in (array, opposite)]
        if ranges[0] < LEAST_RANGE <= ranges[1]:
            array = opposite
    if array.ndim == 2 or array.shape[-1] == 1:
        yield array.reshape(array.shape[:2])
        return
    yield np.clip(array @ np.array([0.299, 0.587, 0.114], np.float32), 0, 1)
    yield from np.moveaxis(array, -1, 0)


def _eight_bits(array: np.ndarray, sixteen: bool | None = None) -> np.ndarray:
    """Integers as uint8, from 16 bits if `sixteen` says so or, by default, if they are of type uint16."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    low, high = int(array.min()), int(array.max())
    if sixteen is None:
        sixteen = (array.dtype.kind, array.dtype.itemsize) == ("u", 2)
        if sixteen and 0 < high <= 255:
            raise ValueError(f"A uint16 image with values up to {high} may have 8 bits or 16: convert it to uint8.")
    if low < 0 or high > (65535 if sixteen else 255):
        raise ValueError(f"Integer images must lie in 0 to 255, or to 65535 as uint16, got {low} to {high}.")
    # Rounded, in integers: floats would take eight bytes per pixel.
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8) if sixteen else array.astype(np.uint8)


def invert_and_resize(
    image: np.ndarray, shape: tuple[int, int], resample: int | None, do_invert: bool | str | None,
    do_center: bool | None, do_resize: bool | None,
) -> np.ndarray:  # fmt: skip
    """Invert, then center or resize to `shape`, one grayscale image of shape `(height, width)`: uint8, or float32 in
    [0, 1]. The other arguments are those of [`VitMnistImageProcessor`]. The dtype is unchanged."""
    if _is_dark_on_light(image) if do_invert == "auto" else do_invert:
        image = (255 if image.dtype == np.uint8 else np.float32(1)) - image
    if do_center:
        return _center_as_mnist(image, shape, resample)
    return _resize(image, shape, resample) if do_resize and image.shape != shape else image


def _border(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])


def _is_dark_on_light(image: np.ndarray) -> bool:
    low, high = float(image.min()), float(image.max())
    return low < high and float(np.median(_border(image))) > (low + high) / 2


def _resize(image: np.ndarray, shape: tuple[int, int], resample: int | None) -> np.ndarray:
    resized = np.asarray(PIL.Image.fromarray(image).resize(shape[::-1], resample))
    return resized if resized.dtype == np.uint8 else np.clip(resized, 0, 1)


def _center_as_mnist(image: np.ndarray, shape: tuple[int, int], resample: int | None) -> np.ndarray:
    # The border shows the paper and its noise. In a clean drawing the noise is zero, and every gray pixel is ink.
    paper, bright = np.percentile(_border(image), [50, 95]).astype(np.float32)
    ink = np.where(image > paper + 3 * (bright - paper), image - paper, 0).astype(image.dtype)
    canvas = np.zeros(shape, image.dtype)
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
