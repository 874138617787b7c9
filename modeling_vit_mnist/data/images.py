"""Images and labels in memory, and their decoding.

The image processor decodes each image once and normalizes each batch, so the model sees what the processor makes of
an image, whatever the source."""

import copy
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from datasets.utils.file_utils import xopen

from ..cli.errors import UsageError
from ..grayscale_vit_mnist import MAX_IMAGE_PIXELS, NOT_OPENED, UnreadableImageError, max_bytes, open_image, read_file
from ..image_processing_vit_mnist import VitMnistImageProcessor
from .arguments import DataArguments

logger = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000  # of decoded images before they are resized: several photos, or all digits of a chunk


def image_suffixes() -> set[str]:
    """The suffixes of the image formats that are opened, in lower case."""
    formats = PIL.Image.registered_extensions().items()
    return {suffix for suffix, name in formats if name in PIL.Image.OPEN and name not in NOT_OPENED}


@dataclass
class ImageDataset(torch.utils.data.Dataset):
    """A split in memory.

    Attributes:
        images (`torch.Tensor` of shape `(n, height, width)`, uint8): Grayscale images, as the processor makes them.
        labels (`torch.Tensor` of shape `(n,)`, int64): Classes in `[0, len(names))`.
        names (`list[str]`): Names of the classes.
        processor ([`VitMnistImageProcessor`]): Normalizes the images, batch by batch.
        source (`str`): Hub id or folder name of the dataset, without a path.
        held_out (`int`): How many images were taken from `train` for this split, by a seed; 0 if it has its own.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    processor: VitMnistImageProcessor
    source: str
    held_out: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """One batch, as `DataLoader` requests it: `pixel_values` (b, 1, height, width) and `labels` (b,)."""
        batch = self.select(torch.as_tensor(indices))
        return {"pixel_values": self.processor.rescale_and_normalize(batch.images), "labels": batch.labels}

    def select(self, indices: torch.Tensor | slice) -> "ImageDataset":
        """The images at `indices`, a slice or an int64 tensor of shape `(n,)`."""
        if isinstance(indices, slice):
            return replace(self, images=self.images[indices], labels=self.labels[indices])
        # `index_select` copies whole images, `images[indices]` copies byte by byte.
        return replace(self, images=self.images.index_select(0, indices), labels=self.labels.index_select(0, indices))

    def take(self, limit: int | None) -> "ImageDataset":
        """The first `limit` images, or all."""
        return self.select(slice(limit))

    @staticmethod
    def collate(batch: dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """`data_collator` of `Trainer`: keeps the batches of `__getitems__`, and stacks the items of streams."""
        return batch if isinstance(batch, dict) else torch.utils.data.default_collate(batch)

    @staticmethod
    def concatenate(parts: Sequence["ImageDataset"]) -> "ImageDataset":
        """All images of `parts`, which share names and processor."""
        images, labels = ([getattr(part, name) for part in parts] for name in ("images", "labels"))
        return replace(parts[0], images=torch.cat(images), labels=torch.cat(labels))


def find_columns(splits: dict[str, Any], args: DataArguments) -> tuple[str, str]:
    """The columns of images and labels, the same in all splits, or [`UsageError`] if a split lacks one. Columns that
    all splits have are preferred, then the order of the first split decides."""
    found: list[str] = []
    features = next(iter(splits.values())).features
    arrays = (datasets.Image, datasets.Array2D, datasets.Array3D)
    kinds: dict[str, tuple[type, ...]] = {"image": arrays, "label": (datasets.ClassLabel,)}
    for name, kind in kinds.items():
        column = getattr(args, f"{name}_column_name")
        if column is None:
            candidates = [*(column for column, feature in features.items() if isinstance(feature, kind)), name]
            column = max(candidates, key=lambda column: sum(column in split.column_names for split in splits.values()))
        for split, dataset in splits.items():
            if column not in dataset.column_names:
                listed = ", ".join(dataset.column_names[:10]) + (", ..." if len(dataset.column_names) > 10 else "")
                raise UsageError(
                    f"The {split} split has no column {column!r}, only {listed}: pass --{name}_column_name."
                )
        if column in found:
            raise UsageError(f"The column {column!r} cannot hold both images and labels: pass --{name}_column_name.")
        found.append(column)
    return found[0], found[1]


def without_decoding(dataset: Any, image_column: str) -> Any:
    """The dataset with its images as encoded files, so that a corrupt one can be named, or as arrays. Bytes and
    strings are encoded files and paths."""
    feature = dataset.features[image_column]
    is_encoded = getattr(feature, "dtype", None) in ("binary", "large_binary", "string", "large_string")
    if isinstance(feature, datasets.Image) or is_encoded:
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset.with_format("numpy")


def read_encoded(item: dict[str, Any], max_pixels: int = MAX_IMAGE_PIXELS) -> bytes:
    """Content of an encoded image, as `datasets.Image(decode=False)` gives it: in memory, in a file or at a URL.
    Raises `OSError`, or `ValueError` as [`read_file`]."""
    content, path = item.get("bytes"), item.get("path")
    if content is not None:
        return content
    if path is None:
        raise ValueError("there is no image")
    if "://" in path:
        with xopen(path, "rb") as file:
            return file.read(max_bytes(max_pixels) + 1)  # more is refused
    # Absolute, so that an error shows where a relative path of a table was looked for: in the working directory.
    return read_file(os.path.abspath(path), max_pixels)


def decode_images(
    items: Sequence[Any], names: Sequence[str], processor: VitMnistImageProcessor, skip_bad_images: bool,
    is_quiet: bool = False,
) -> tuple[torch.Tensor, list[int]]:  # fmt: skip
    """Decode images, make them grayscale and resize them.

    Args:
        items: Encoded files, as `datasets.Image(decode=False)` gives them, or arrays. `None` is a missing image.
        names: What messages call the items without a path.
        processor ([`VitMnistImageProcessor`]): Does the work.
        skip_bad_images: Skip images that cannot be read, with a warning, instead of raising [`UsageError`].
        is_quiet: Skip without a warning.

    Returns a `torch.Tensor` of shape `(n, height, width)`, uint8, and the `n` indices of the items that were read.
    """
    parts, batch, pixels, kept = [], [], 0, []
    framings: list[tuple[bool, bool]] = []  # whether there is no digit, or more than one
    processor = copy.copy(processor)
    processor.report_framings = lambda found: framings.extend((f.problem is not None, f.has_others) for f in found)
    for index, item in enumerate(items):
        image = decode_image(item, names[index], processor, skip_bad_images, is_quiet)
        if image is None:
            continue
        kept.append(index)
        batch.append(image)
        pixels += image.size
        if pixels > MAX_PIXELS:
            parts.append(processor.to_grayscale(batch))
            batch, pixels = [], 0
    parts.append(processor.to_grayscale(batch))
    framed = [(_name(items[index], names[index]), *framing) for index, framing in zip(kept, framings, strict=False)]
    _warn([name for name, is_blank, _ in framed if is_blank], len(kept), "No digit in %d of %d images: %s.")
    several = [name for name, _, has_others in framed if has_others]
    _warn(several, len(kept), "More than one digit in %d of %d images, of which the clearest is read: %s.")
    # Images that hold floats come in [0, 1].
    parts = [part.mul(255).round().to(torch.uint8) if part.is_floating_point() else part for part in parts]
    return torch.cat(parts), kept


def _name(item: Any, name: str) -> str:
    return (item.get("path") if isinstance(item, dict) else None) or name


def _warn(names: list[str], total: int, message: str) -> None:
    if names:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        logger.warning(message, len(names), total, listed)


def decode_image(
    item: Any, name: str, processor: VitMnistImageProcessor, skip_bad_images: bool, is_quiet: bool = False
) -> np.ndarray | None:
    """One image in grayscale, of its own size; `None` if it is skipped. The arguments are those of
    [`decode_images`]."""
    try:
        if item is None:
            raise ValueError("there is no image")
        is_encoded, limit = isinstance(item, dict), processor.max_pixels
        source: Any = open_image(read_encoded(item, limit), limit) if is_encoded else np.asarray(item)
        image = processor.process_image(source, processor.background)
        size = (processor.size["height"], processor.size["width"])
        if image.shape != size and not (processor.do_resize or processor.do_center or processor.do_frame):
            raise ValueError(f"it has {image.shape} pixels, and the processor takes {size} without resizing")
        return image
    except Exception as error:  # Pillow's decoders raise exceptions of many kinds for corrupt files
        name = _name(item, name)
        reason = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, UnreadableImageError):
            reason = reason.replace("The file", "it", 1).replace("max_pixels=", "--max_pixels ")
        if not skip_bad_images:
            raise UsageError(f"Cannot read {name}: {reason}. Pass --skip_bad_images to skip such images.") from error
        if not is_quiet:
            logger.warning("Skipped %s, which cannot be read: %s", name, reason)
        return None


def check_labels(labels: np.ndarray, names: list[str], start: int, place: str) -> None:
    """Raise [`UsageError`] unless the labels, which begin at image `start` of `place`, are integers in range."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"The labels must be one integer or string per image, got {labels[:1].tolist()}.")
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if outside.size:
        label = labels[outside[0]]
        is_unnamed = names == [str(number) for number in range(len(names))]
        advice = f" Pass --num_labels {label + 1} or more." if is_unnamed and label > 0 else ""
        raise UsageError(
            f"Label {label} of image {start + outside[0]} of {place} is out of range: there are {len(names)} classes, "
            f"0 to {len(names) - 1}.{advice}"
        )
