"""Image files that are predicted: found by path, folder or glob, and read."""

import copy
import glob
import logging
import os
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..cli.errors import UsageError, printable
from ..data.folders import walk
from ..data.images import decode_image, image_suffixes
from ..deskewing_vit_mnist import deskew
from ..framing_vit_mnist import Framing
from ..image_processing_vit_mnist import VitMnistImageProcessor

logger = logging.getLogger(__name__)


def find_images(patterns: list[str]) -> list[Path]:
    """The files that paths, folders and globs name, each once, those of a folder or glob in alphabetical order. Hidden
    files in folders, and files with the suffix of another format, are left out. Raises [`UsageError`] if a pattern
    names no file, or a folder cannot be read."""
    files: dict[str, Path] = {}
    total = 0
    for pattern in patterns:
        if os.path.isdir(pattern):
            found = _images_in(Path(pattern))
        elif os.path.lexists(pattern):  # also a file whose name holds `[`
            found = [Path(pattern)]
        else:
            found = _expand(Path(pattern))
        if not found:
            raise UsageError(f"No image at {pattern!r}.")
        total += len(found)
        for file in found:
            files.setdefault(os.path.abspath(file), file)
    if total > len(files):
        logger.warning("--image names %d files more than once: each is predicted once.", total - len(files))
    return list(files.values())


def _images_in(folder: Path) -> list[Path]:
    """The files in `folder` and its folders, except hidden ones, with the suffix of an image format."""
    suffixes = image_suffixes()
    found = [Path(place, name) for place, _, names in walk(folder) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.suffix.lower() in suffixes)


def _expand(pattern: Path) -> list[Path]:
    """The files that match a glob. Its leading folders that exist are taken literally, even if they hold a `[`."""
    base = next(parent for parent in pattern.parents if parent.is_dir())
    matches = glob.glob(str(pattern.relative_to(base)), root_dir=base, recursive=True)
    return sorted(base / match for match in matches if not (base / match).is_dir())


def read_images(
    files: list[Path], processor: VitMnistImageProcessor, skip_bad_images: bool
) -> tuple[torch.Tensor, list[Path], list[dict[str, Any]]]:
    """Grayscale images of files, of shape `(n, height, width)`, the files that were read, and what framing says of
    each: `problem` (`None` if there is a digit, or nothing was framed) and `has_others`. The images are uint8, or
    float32 in [0, 1] if one of the files holds floats and the processor rescales. Raises [`UsageError`] if a file is
    not a readable image and `skip_bad_images` is off, or none is readable."""
    images, read, found = [], [], []
    for file in tqdm(files, desc="Read", unit=" images", leave=False, disable=None if len(files) > 100 else True):
        gray = decode_image({"path": str(file), "bytes": None}, "", processor, skip_bad_images)
        if gray is None:
            continue
        framing = Framing(gray)
        if uses_framing(processor):
            framing = processor.frame(gray, processor.size["height"])
            image = deskew(framing.image) if processor.do_deskew else framing.image
            images.append(torch.tensor(image)[None])
        else:
            images.append(processor.to_grayscale(gray))
        read.append(file)
        found.append({"problem": framing.problem, "has_others": framing.has_others})
    if not read:
        raise UsageError("None of the images can be read.")
    if any(image.is_floating_point() for image in images):  # they lie in [0, 1]
        if processor.do_rescale:
            images = [image if image.is_floating_point() else image / 255 for image in images]
        else:  # the model reads 0 to 255
            images = [(image * 255).round().byte() if image.is_floating_point() else image for image in images]
    return torch.cat(images), read, found


def uses_framing(processor: VitMnistImageProcessor) -> bool:
    """Whether a processor finds the digit by itself, which inverting and centering replace."""
    return bool(processor.do_frame and not (processor.do_invert or processor.do_center))


def lack_digit(images: torch.Tensor, processor: VitMnistImageProcessor) -> torch.Tensor:
    """In which of the framed images, of shape `(n, height, width)`, no digit was found: a bool tensor of shape `(n,)`.
    Framing makes them black."""
    return (images.flatten(1).amax(1) == 0) & uses_framing(processor)


def report_blank_images(images: torch.Tensor, files: list[Path], processor: VitMnistImageProcessor) -> None:
    """Print which of the `images` of [`read_images`] are blank, and advise to invert those that then would not be."""
    inverting = copy.copy(processor)
    inverting.do_invert = "auto"
    for image, file in zip(images, files, strict=True):
        if image.max() > image.min():
            continue
        inverted = read_images([file], inverting, skip_bad_images=False)[0]
        advice = " For dark ink on light paper, pass --do_invert auto." if inverted.max() > inverted.min() else ""
        print(printable(f"{file} is blank after preprocessing.{advice}"))
