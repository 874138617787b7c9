"""Images read from `datasets`' streams, a chunk at a time: once into memory, or again in every epoch.

A stream cannot be split by index. A hash of each encoded image, or of the path of an image file, decides whether it is
held out, so the split is the same in any order."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from ..cli.errors import UsageError
from ..image_processing_vit_mnist import VitMnistImageProcessor
from .arguments import DataArguments
from .images import ImageDataset, check_labels, decode_images, find_columns, without_decoding

CHUNK = 1000  # images read at a time
SHUFFLE_BUFFER = 50_000  # images among which the next ones are drawn: about MNIST's size, and 40 MB
MAX_SHARDS = 1000  # up to so many files are read in random order
ALL_HASHES = (0, 2**32)


@dataclass
class ImageStream(torch.utils.data.IterableDataset):
    """A split that is read again in every epoch. Like [`ImageDataset`], but without indices.

    Attributes:
        stream (`datasets.IterableDataset`): Encoded images and their labels, in the columns "image" and "label".
        split, source (`str`): Names of the split and of its dataset, without a path.
        names (`list[str]`): Names of the classes; empty for text labels that have not been surveyed.
        processor ([`VitMnistImageProcessor`]): Decodes and normalizes the images.
        hash_range (`tuple[int, int]`): The split holds the images whose hash lies in this range, out of 2**32.
        hash_seed (`int`): Seed of the hashes.
        skip_bad_images (`bool`): Skip images that cannot be read.
        shuffle_seed (`int`, *optional*): With the epoch, decides the order of the images. Default: the files' order.
        limit, num_images (`int`, *optional*): Take only the first images; how many there are, if they were counted.
    """

    stream: datasets.IterableDataset
    split: str
    source: str
    names: list[str]
    processor: VitMnistImageProcessor
    hash_range: tuple[int, int] = ALL_HASHES
    hash_seed: int = 0
    skip_bad_images: bool = False
    shuffle_seed: int | None = None
    limit: int | None = None
    num_images: int | None = None
    epoch: int = 0

    def __len__(self) -> int:
        if self.num_images is None:
            raise TypeError("The images of this stream have not been counted.")
        return self.num_images

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the images. Data loaders call this at the start of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Single images: `pixel_values` (1, height, width) and `labels` ()."""
        return iterate(self.chunks())

    def chunks(self) -> Iterator[ImageDataset]:
        """The images in memory, about a thousand at a time. Raises [`UsageError`] for a corrupt image that is not to
        be skipped, and for a label out of range."""
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.id > 0:
            return  # only the first worker reads, or each image would come once per worker
        if self.shuffle_seed is None:
            yield from self._read(None)
        else:
            draw = np.random.default_rng((self.shuffle_seed, self.epoch))
            yield from _shuffle(self._read(draw), draw)

    def take(self, limit: int | None = None) -> ImageDataset:
        """The first `limit` images, or all, in memory."""
        taken, total = [], 0
        with tqdm(desc=f"Decode {self.split}", unit=" images", leave=False, disable=None) as progress:
            for chunk in self.chunks():
                taken.append(chunk)
                total += len(chunk)
                progress.update(len(chunk))
                if limit is not None and total >= limit:
                    break
        if not taken:
            raise UsageError(f"No image of the {self.split} split of {self.source} can be read.")
        return ImageDataset.concatenate(taken).take(limit)

    def survey(self) -> np.ndarray:
        """Read all images once, without decoding. Returns their hashes (uint32), checks labels, finds text labels."""
        hashes, found, total = [np.empty(0, np.uint32)], set(), 0
        with tqdm(desc=f"Count {self.split}", unit=" images", leave=False, disable=None) as progress:
            for rows in self.stream.iter(batch_size=CHUNK):
                labels = np.asarray(rows["label"])
                if self.names:
                    check_labels(labels, self.names, total, f"the {self.split} split")
                else:
                    found |= set(labels.tolist())
                hashes.append(np.array([hash_image(image, self.hash_seed) for image in rows["image"]], np.uint32))
                total += len(labels)
                progress.update(len(labels))
        self.names = self.names or sorted(found)
        return np.concatenate(hashes)

    def _read(self, draw: np.random.Generator | None) -> Iterator[ImageDataset]:
        """Chunks in the files' order, or file by file in a random order if all images are wanted and shuffled."""
        shards, left = self.stream.num_shards, self.limit
        parts = [(f"the {self.split} split", self.stream)]
        if draw is not None and left is None and 1 < shards <= MAX_SHARDS:
            order = draw.permutation(shards).tolist()
            parts = [(f"file {index} of the {self.split} split", self.stream.shard(shards, index)) for index in order]
        for place, stream in parts:
            start = 0
            for rows in stream.iter(batch_size=CHUNK):
                chunk = self._decode(rows["image"], rows["label"], start, place).take(left)
                start += len(rows["label"])
                if len(chunk):
                    yield chunk
                if left is not None:
                    left -= len(chunk)
                    if left == 0:
                        return

    def _decode(self, images: list, labels: list, start: int, place: str) -> ImageDataset:
        classes = np.asarray(labels)
        if classes.dtype.kind in "USO":  # text
            numbers = {name: number for number, name in enumerate(self.names)}
            classes = np.array([numbers[label] for label in labels])
        check_labels(classes, self.names, start, place)
        low, high = self.hash_range
        inside = list(range(len(images)))
        if self.hash_range != ALL_HASHES:
            inside = [index for index in inside if low <= hash_image(images[index], self.hash_seed) < high]
        image_names = [f"image {start + index} of {place}" for index in inside]
        chosen = [images[index] for index in inside]
        decoded, kept = decode_images(chosen, image_names, self.processor, self.skip_bad_images)
        chosen_classes = torch.from_numpy(classes.astype(np.int64))[inside][kept]
        if decoded.is_floating_point():
            decoded = decoded.mul(255).round().to(torch.uint8)
        return ImageDataset(decoded, chosen_classes, self.names, self.processor, self.source)


def _shuffle(chunks: Iterator[ImageDataset], draw: np.random.Generator) -> Iterator[ImageDataset]:
    """Fill a buffer. Exchange each further chunk for images drawn from the buffer. At the end, empty the buffer."""
    first, total = [], 0
    for chunk in chunks:
        first.append(chunk)
        total += len(chunk)
        if total >= SHUFFLE_BUFFER:
            break
    if not first:
        return
    buffer = ImageDataset.concatenate(first)
    for chunk in chunks:
        places = torch.from_numpy(draw.choice(total, len(chunk), replace=False))
        yield buffer.select(places)  # copies
        buffer.images[places], buffer.labels[places] = chunk.images, chunk.labels
    for places in torch.from_numpy(draw.permutation(total)).split(CHUNK):
        yield buffer.select(places)


def iterate(chunks: Iterable[ImageDataset]) -> Iterator[dict[str, torch.Tensor]]:
    """Single images of chunks, each chunk normalized at once."""
    for chunk in chunks:
        batch = chunk.__getitems__(range(len(chunk)))
        for pixel_values, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            yield {"pixel_values": pixel_values, "labels": label}


def open_stream(
    dataset: Any, split: str, source: str, processor: VitMnistImageProcessor, args: DataArguments
) -> ImageStream:
    """A split of the dataset as a stream. Its names are empty if its labels are text."""
    if not isinstance(dataset, datasets.IterableDataset):
        if len(dataset) == 0:
            raise UsageError(f"The {split} split of {source} is empty.")
        dataset = dataset.to_iterable_dataset()
    image_column, label_column = find_columns(dataset, args)
    feature = dataset.features[label_column]
    stream = without_decoding(dataset.select_columns([image_column, label_column]), image_column)
    renamed = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    stream = stream.rename_columns(renamed) if renamed else stream
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    elif getattr(feature, "dtype", None) in ("string", "large_string"):
        names = []
    else:
        names = [str(label) for label in range(args.num_labels or 10)]
    return ImageStream(
        stream, split, source, names, processor, hash_seed=args.split_seed, skip_bad_images=args.skip_bad_images
    )


def hash_image(image: dict | np.ndarray, seed: int) -> int:
    """CRC-32 of an encoded image, or of the path of a file that is not loaded, starting from `seed`."""
    if not isinstance(image, dict):
        return zlib.crc32(np.ascontiguousarray(image).data, seed)
    return zlib.crc32(image["path"].encode() if image["bytes"] is None else image["bytes"], seed)
