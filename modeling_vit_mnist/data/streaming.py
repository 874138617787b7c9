"""Images read from `datasets`' streams, a chunk at a time: once into memory, or again in every epoch.

A stream cannot be split by index. A hash of each encoded image decides whether it is held out, so the split is the
same in any order and in any folder."""

import functools
import logging
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from ..cli.errors import UsageError
from ..image_processing_vit_mnist import VitMnistImageProcessor
from .arguments import DataArguments
from .images import ImageDataset, check_labels, decode_images, read_encoded, without_decoding

logger = logging.getLogger(__name__)

CHUNK = 1000  # images read at a time
NEARLY_BLACK = 16  # of 255
SHUFFLE_BUFFER = 50_000  # images among which the next ones are drawn: about MNIST's size, and 40 MB
MAX_SHARDS = 1000  # up to so many files are read in random order
MIN_PARTS = 64  # fewer files are split further, if `datasets` can
ALL_HASHES = (0, 2**32)
TEXT = ("string", "large_string")


@dataclass
class Survey:
    """What a split holds, without the images that are skipped: hashes of the `n` encoded images, of shape `(n,)`,
    uint32, and `n` labels as the dataset holds them."""

    hashes: np.ndarray
    labels: list


@dataclass
class ImageStream(torch.utils.data.IterableDataset):
    """A split that is read again in every epoch. Like [`ImageDataset`], but without indices.

    Attributes:
        stream (`datasets.IterableDataset`): Encoded images, or arrays, and their labels.
        split, source (`str`): Names of the split as the dataset has it, and of the dataset, without a path.
        names (`list[str]`): Names of the classes; empty for text labels that have not been surveyed.
        class_of (`dict`, *optional*): Classes of labels that are text, or that count the names in another order.
        processor ([`VitMnistImageProcessor`]): Decodes and normalizes the images.
        columns (`tuple[str, str]`): Columns of the images and of the labels.
        hash_range (`tuple[int, int]`): The split holds the images whose hash lies in this range, out of 2**32.
        hash_seed (`int`): Seed of the hashes.
        skip_bad_images (`bool`): Skip images that cannot be read.
        shuffle_seed (`int`, *optional*): With the epoch, decides the order of the images. Default: the files' order.
        limit, num_images (`int`, *optional*): Take only the first images; how many there are, if they were counted.
        surveyed ([`Survey`], *optional*): What [`ImageStream.survey`] found in the whole split.
        table (`datasets.Dataset`, *optional*): What is streamed, if it is on this disk as a table.
        place (`str`): What messages call the images. Default: the split.
    """

    stream: datasets.IterableDataset
    split: str
    source: str
    names: list[str]
    processor: VitMnistImageProcessor
    columns: tuple[str, str]
    hash_range: tuple[int, int] = ALL_HASHES
    hash_seed: int = 0
    class_of: dict[Any, int] | None = None
    skip_bad_images: bool = False
    shuffle_seed: int | None = None
    limit: int | None = None
    num_images: int | None = None
    surveyed: Survey | None = None
    table: datasets.Dataset | None = None
    place: str = ""

    def __post_init__(self):
        self._epoch = shared_epoch()
        self.place = self.place or f"the {self.split} split"

    def __len__(self) -> int:
        if self.num_images is None:
            raise TypeError("The images of this stream have not been counted.")
        return self.num_images

    @property
    def has_named_classes(self) -> bool:
        """Whether the dataset lists the names of its classes."""
        return isinstance(self.stream.features[self.columns[1]], datasets.ClassLabel)

    @property
    def held_out(self) -> int:
        """How many images were taken from `train` for this split, by their hashes; 0 if it has its own."""
        low, high = self.hash_range
        hashes = self.survey().hashes if self.hash_range != ALL_HASHES else np.empty(0)
        return int(np.count_nonzero((low <= hashes) & (hashes < high)))

    @property
    def is_text(self) -> bool:
        """Whether the labels are text."""
        return self.stream.features[self.columns[1]].dtype in TEXT

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the images, before the data loader is iterated over."""
        self._epoch.fill_(epoch)

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
            draw = np.random.default_rng((self.shuffle_seed, int(self._epoch)))
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
        images = ImageDataset.concatenate(taken).take(limit)
        if not self.processor.do_frame and (brightest := int(images.images.max())) < NEARLY_BLACK:
            logger.warning(
                "No pixel of the %s split of %s is brighter than %d of 255: scale the images to 255, or to 65535 if "
                "they have 16 bits.", self.split, self.source, brightest,
            )  # fmt: skip
        return replace(images, held_out=self.held_out)

    def survey(self) -> Survey:
        """Read all images once: find their hashes and labels, and check the labels. Images are decoded only if those
        that cannot be read are to be skipped."""
        if self.surveyed is None:
            hashes: list[int] = []
            found: list = []
            start, place = 0, f"the {self.split} split"
            with tqdm(desc=f"Count {self.split}", unit=" images", leave=False, disable=None) as progress:
                for images, labels in self._rows(self.stream):
                    self._classes(labels, start, place)
                    names = [f"image {start + index} of {place}" for index in range(len(images))]
                    kept = list(range(len(images)))
                    if self.skip_bad_images:
                        _, kept = decode_images(images, names, self.processor, True)
                    for index in kept:
                        image_hash = hash_image(images[index], self.hash_seed, self.processor.max_pixels)
                        if image_hash is None:  # name it
                            decode_images([images[index]], [names[index]], self.processor, False)
                        hashes.append(image_hash or 0)
                        found.append(labels[index])
                    start += len(images)
                    progress.update(len(images))
            if not hashes:
                if not start:
                    raise UsageError(f"The {self.split} split of {self.source} is empty.")
                raise UsageError(f"No image of {place} of {self.source} can be read.")
            self.surveyed = Survey(np.array(hashes, np.uint32), found)
        return self.surveyed

    @functools.cached_property
    def parts(self) -> datasets.IterableDataset:
        """The stream with a shard for each part: a file; of a few parquet files, a row group; of a table, a range."""
        if self.table is not None:
            num_shards = min(MIN_PARTS, math.ceil(len(self.table) / CHUNK))
            return without_decoding(self.table.to_iterable_dataset(num_shards), self.columns[0])
        return self.stream.reshard() if self.stream.num_shards < MIN_PARTS else self.stream

    @property
    def num_parts(self) -> int:
        """How many parts [`ImageStream.part`] can give: as many as there are files, unless these are very many, since
        `datasets` lists all files to find those of one part. Images in files of their own are one part."""
        shards = self.parts.num_shards
        return min(shards, max(MIN_PARTS, 10_000_000 // shards))

    def part(self, index: int) -> "ImageStream":
        """Part `index` of `num_parts`: whole files, or row groups, that follow each other."""
        shard = self.parts.shard(self.num_parts, index)
        return replace(self, stream=shard, place=f"part {index} of the {self.split} split")

    def contents(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes (uint32) and classes (int64) of the images of the stream, in the files' order, after a survey."""
        survey = self.survey()
        low, high = self.hash_range
        inside = np.flatnonzero((survey.hashes >= low) & (survey.hashes < high))[: self.limit]
        labels = [survey.labels[index] for index in inside]
        return survey.hashes[inside], self._classes(labels, 0, f"the {self.split} split")

    def _rows(self, stream: datasets.IterableDataset) -> Iterator[tuple[list, list]]:
        """Encoded images and labels, a chunk at a time."""
        feature = stream.features[self.columns[0]]
        holds_integers = "int" in str(getattr(feature, "dtype", ""))
        try:
            for rows in stream.iter(batch_size=CHUNK):
                images = list(rows[self.columns[0]])
                if holds_integers and np.issubdtype(np.asarray(images[0]).dtype, np.floating):
                    # One missing array makes `datasets` return all as floats, and NaN for the missing one.
                    images = [None if np.isnan(image).any() else image.astype(np.int64) for image in images]
                yield images, list(rows[self.columns[1]])
        except OSError:
            raise
        except Exception as error:  # each format raises exceptions of its own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(f"Cannot read the {self.split} split of {self.source}: {reason[0]}") from error

    def _classes(self, labels: list, start: int, place: str) -> np.ndarray:
        """Classes (int64) of labels, which begin at image `start` of `place`, or [`UsageError`]. Text labels that have
        not been surveyed have no classes yet."""
        missing = [index for index, label in enumerate(labels) if label in (None, "") or label != label]  # NaN
        if missing:
            raise UsageError(f"Image {start + missing[0]} of {place} has no label.")
        if not self.names:
            return np.empty(0, np.int64)
        if self.class_of is not None:
            unknown = [index for index, label in enumerate(labels) if label not in self.class_of]
            if unknown:
                known = ", ".join(map(str, self.class_of))
                raise UsageError(
                    f"Label {labels[unknown[0]]} of image {start + unknown[0]} of {place} is none of {known}."
                )
            labels = [self.class_of[label] for label in labels]
        classes = np.asarray(labels)
        check_labels(classes, self.names, start, place)
        return classes.astype(np.int64)

    def _read(self, draw: np.random.Generator | None) -> Iterator[ImageDataset]:
        """Chunks in the files' order, or file by file in a random order if all images are wanted and shuffled."""
        shards, left = self.stream.num_shards, self.limit
        parts = [(self.place, self.stream)]
        if draw is not None and left is None and 1 < shards <= MAX_SHARDS:
            order = draw.permutation(shards).tolist()
            parts = [(f"file {index} of the {self.split} split", self.stream.shard(shards, index)) for index in order]
        for place, stream in parts:
            start = 0
            for images, labels in self._rows(stream):
                chunk = self._decode(images, labels, start, place).take(left)
                start += len(labels)
                if len(chunk):
                    yield chunk
                if left is not None:
                    left -= len(chunk)
                    if left == 0:
                        return

    def _decode(self, images: list, labels: list, start: int, place: str) -> ImageDataset:
        classes = self._classes(labels, start, place)
        low, high = self.hash_range
        inside = list(range(len(images)))
        if self.hash_range != ALL_HASHES:
            hashes = [hash_image(image, self.hash_seed, self.processor.max_pixels) or 0 for image in images]
            inside = [index for index in inside if low <= hashes[index] < high]
        image_names = [f"image {start + index} of {place}" for index in inside]
        chosen = [images[index] for index in inside]
        is_known = self.surveyed is not None  # the survey has warned of the images to skip
        decoded, kept = decode_images(chosen, image_names, self.processor, self.skip_bad_images, is_known)
        chosen_classes = torch.from_numpy(classes)[inside][kept]
        return ImageDataset(decoded, chosen_classes, self.names, self.processor, self.source)


def shared_epoch() -> torch.Tensor:
    """The number of an epoch, 0, in memory that a dataset shares with its copies in data-loader workers. Persistent
    workers keep their copies for the whole run, so they would never see another value."""
    return torch.zeros((), dtype=torch.int64).share_memory_()


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
    dataset: Any, split: str, source: str, columns: tuple[str, str], processor: VitMnistImageProcessor,
    args: DataArguments,
) -> ImageStream:  # fmt: skip
    """A split of the dataset as a stream. Its names are empty if its labels are text."""
    table = None
    if not isinstance(dataset, datasets.IterableDataset):
        if len(dataset) == 0:
            raise UsageError(f"The {split} split of {source} is empty.")
        table = dataset.select_columns(list(columns))
        dataset = dataset.to_iterable_dataset()
    image_column, label_column = columns
    feature = dataset.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    elif isinstance(feature, datasets.Value):
        names = [] if feature.dtype in TEXT else [str(label) for label in range(args.num_labels or 10)]
    else:
        raise UsageError(
            f"The labels must be one integer or string per image, got {feature} in {label_column!r} of the {split} "
            "split: pass --label_column_name."
        )
    stream = without_decoding(dataset.select_columns(list(columns)), image_column)
    return ImageStream(
        stream, split, source, names, processor, columns, hash_seed=args.split_seed,
        skip_bad_images=args.skip_bad_images, table=table,
    )  # fmt: skip


def hash_image(image: Any, seed: int, max_pixels: int) -> int | None:
    """CRC-32 of an encoded image or an array, starting from `seed`; `None` if there is no image, or its file cannot be
    read."""
    if image is None:
        return None
    if isinstance(image, dict):
        try:
            return zlib.crc32(read_encoded(image, max_pixels), seed)
        except (OSError, ValueError):
            return None
    array = np.ascontiguousarray(image)
    # The bytes of rows of different lengths would be addresses.
    return zlib.crc32(repr(image).encode() if array.dtype.hasobject else array.data, seed)
