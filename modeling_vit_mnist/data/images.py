"""Images and labels in memory, and their decoding.

The image processor decodes each image once and normalizes each batch, so the model sees what the processor makes of
an image, whatever the source."""

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch

from ..cli.errors import UsageError
from ..image_processing_vit_mnist import VitMnistImageProcessor, open_image
from .arguments import DataArguments

logger = logging.getLogger(__name__)

# Raised for files and arrays that are not readable images.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, PIL.Image.DecompressionBombError)


@dataclass
class ImageDataset(torch.utils.data.Dataset):
    """A split in memory.

    Attributes:
        images (`torch.Tensor` of shape `(n, height, width)`, uint8): Grayscale images, as the processor makes them.
        labels (`torch.Tensor` of shape `(n,)`, int64): Classes in `[0, len(names))`.
        names (`list[str]`): Names of the classes.
        processor ([`VitMnistImageProcessor`]): Normalizes the images, batch by batch.
        source (`str`): Hub id or folder name of the dataset, without a path.
    """

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    processor: VitMnistImageProcessor
    source: str

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


def find_columns(dataset: Any, args: DataArguments) -> tuple[str, str]:
    """The columns of images and labels, or [`UsageError`] if the dataset has none."""
    found = []
    kinds: dict[str, tuple[type, ...]] = {"image": (datasets.Image, datasets.Array2D), "label": (datasets.ClassLabel,)}
    for name, kind in kinds.items():
        column = getattr(args, f"{name}_column_name")
        if column is None:
            column = next((column for column, feature in dataset.features.items() if isinstance(feature, kind)), name)
        if column not in dataset.column_names:
            raise UsageError(
                f"The dataset has no column {column!r}, only {', '.join(dataset.column_names)}: pass "
                f"--{name}_column_name."
            )
        found.append(column)
    return found[0], found[1]


def without_decoding(dataset: Any, image_column: str) -> Any:
    """The dataset with its images as encoded files, so that a corrupt one can be named, or as arrays."""
    if isinstance(dataset.features[image_column], datasets.Image):
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset.with_format("numpy")


def decode_images(
    items: Sequence[Any], names: Sequence[str], processor: VitMnistImageProcessor, skip_bad_images: bool
) -> tuple[torch.Tensor, list[int]]:
    """Decode images, make them grayscale and resize them.

    Args:
        items: Encoded files, as `datasets.Image(decode=False)` gives them, or arrays.
        names: What messages call the items without a path.
        processor ([`VitMnistImageProcessor`]): Does the work.
        skip_bad_images: Skip images that cannot be read, with a warning, instead of raising [`UsageError`].

    Returns a `torch.Tensor` of shape `(n, height, width)`, uint8 (float32 in [0, 1] if an image holds floats), and the
    `n` indices of the items that were read.
    """
    images, kept = [], []
    for index, item in enumerate(items):
        try:
            image: Any = np.asarray(item)
            if isinstance(item, dict):
                image = open_image(item["path"] if item["bytes"] is None else io.BytesIO(item["bytes"]))
            images.append(processor.process_image(image, processor.background))
            kept.append(index)
        except IMAGE_ERRORS as error:
            name = (item.get("path") if isinstance(item, dict) else None) or names[index]
            if not skip_bad_images:
                reason = str(error).rstrip(".")
                raise UsageError(
                    f"Cannot read {name}: {reason}. Pass --skip_bad_images to skip such images."
                ) from error
            logger.warning("Skipped %s, which cannot be read: %s", name, error)
    return processor.to_grayscale(images), kept


def check_labels(labels: np.ndarray, names: list[str], start: int, place: str) -> None:
    """Raise [`UsageError`] unless the labels, which begin at image `start` of `place`, are integers in range."""
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"The labels must be one integer or string per image, got {labels[:1].tolist()}.")
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if outside.size:
        raise UsageError(
            f"Label {labels[outside[0]]} of image {start + outside[0]} of {place} is out of range: there are "
            f"{len(names)} classes, 0 to {len(names) - 1}."
        )
