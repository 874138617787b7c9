"""
Datasets that do not fit in memory: images come through `datasets`' streams, are decoded a chunk at a time, and are
read again in every epoch.

A stream cannot be split by index: which of its images are held out is decided by a hash of the image, so it stays the
same however the stream is shuffled, and copies of an image never lie on both sides.
"""

import functools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm

from .arguments import DataArguments
from .data import SPLITS, Digits, check_labels, class_names, decode_images, encoded, find_columns, load_raw
from .errors import InputError
from .image_processing_vit_mnist import VitMnistImageProcessor


CHUNK = 1000  # images that are read at a time
SHUFFLE_BUFFER = 50_000  # frames among which the next ones are drawn: all of MNIST's size, and 40 MB
MAX_SHARDS = 1000  # files whose order is shuffled, too
MAX_VALIDATION = 5_000


@dataclass
class StreamedDigits(torch.utils.data.IterableDataset):
    """
    A split that is read anew whenever it is gone through. Like [`Digits`], but for indices.

    Attributes:
        stream (`datasets.IterableDataset`): Encoded images and their labels, in the columns "image" and "label".
        split (`str`): Its name, for messages.
        names (`list[str]`): The classes' names.
        processor ([`VitMnistImageProcessor`]): Makes frames of images, and `pixel_values` of frames.
        source (`str`): Where the images come from, fit for print.
        hash_range (`tuple[int, int]`): Only images whose hash lies in it, out of 2**32, belong to the split.
        hash_seed (`int`): Of the hashes.
        shuffle_seed (`int`, *optional*): With the epoch, decides the order of the images; else it is the files'.
        skip_bad_images (`bool`): Leave out images that cannot be read.
        limit (`int`, *optional*): Take only so many, the first.
        num_images (`int`, *optional*): How many there are, where they have been counted.
    """

    stream: datasets.IterableDataset
    split: str
    names: list[str]
    processor: VitMnistImageProcessor
    source: str
    hash_range: tuple[int, int] = (0, 2**32)
    hash_seed: int = 0
    shuffle_seed: int | None = None
    skip_bad_images: bool = False
    limit: int | None = None
    num_images: int | None = None
    epoch: int = 0

    is_sample = Digits.is_sample

    def __len__(self) -> int:
        if self.num_images is None:
            raise TypeError("The images of this stream have not been counted.")
        return self.num_images

    def set_epoch(self, epoch: int) -> None:
        """Shuffle anew; accelerate's data loaders call this at the start of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Image by image: `pixel_values` (1, height, width) and `labels` ()."""
        return iterate(self.chunks())

    def chunks(self) -> Iterator[Digits]:
        """
        The images in memory, about a thousand at a time.

        Raises:
            InputError: a corrupt image, unless those are skipped, or a label out of range.
        """
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.id > 0:
            return  # the first worker reads it all, or every image would come once per worker
        if self.shuffle_seed is None:
            yield from self._read(None)
        else:
            draw = np.random.default_rng((self.shuffle_seed, self.epoch))
            yield from _shuffle(self._read(draw), draw)

    def head(self, limit: int | None = None) -> Digits:
        """The first images, or all of them, in memory."""
        taken, total = [], 0
        for chunk in self.chunks():
            taken.append(chunk)
            total += len(chunk)
            if limit is not None and total >= limit:
                break
        if not taken:
            raise InputError(f"No image of the {self.split} split of {self.source} can be read.")
        return _join(taken).select(slice(limit))

    def _read(self, draw: np.random.Generator | None) -> Iterator[Digits]:
        """Chunks file by file, in an order that is drawn, where images are shuffled and not only the first wanted."""
        shards = self.stream.num_shards
        left = self.limit
        if draw is None or left is not None or not 1 < shards <= MAX_SHARDS:
            parts = [(f"the {self.split} split", self.stream)]
        else:
            parts = [
                (f"file {index} of the {self.split} split", self.stream.shard(shards, index))
                for index in draw.permutation(shards).tolist()
            ]
        for place, stream in parts:
            start = 0
            for rows in stream.iter(batch_size=CHUNK):
                digits = self._decode(rows["image"], rows["label"], start, place).select(slice(left))
                start += len(rows["label"])
                if len(digits):
                    yield digits
                if left is not None:
                    left -= len(digits)
                    if left == 0:
                        return

    def _decode(self, images: list, labels: list, start: int, place: str) -> Digits:
        labels = np.asarray(labels)
        if labels.dtype.kind in "USO":  # text
            numbers = {name: number for number, name in enumerate(self.names)}
            labels = np.array([numbers[label] for label in labels])
        check_labels(labels, self.names, start, place)
        low, high = self.hash_range
        inside = range(len(images))
        if high - low < 2**32:
            inside = [index for index, image in enumerate(images) if low <= hash_image(image, self.hash_seed) < high]
        chosen, numbers = [images[index] for index in inside], [start + index for index in inside]
        frames, kept = decode_images(chosen, numbers, place, self.processor, self.skip_bad_images)
        labels = torch.from_numpy(labels.astype(np.int64))[inside][kept]
        return Digits(frames, labels, self.names, self.processor, self.source)


def _join(chunks: list[Digits]) -> Digits:
    images, labels = ([getattr(chunk, name) for chunk in chunks] for name in ("images", "labels"))
    return replace(chunks[0], images=torch.cat(images), labels=torch.cat(labels))


def _shuffle(chunks: Iterator[Digits], draw: np.random.Generator) -> Iterator[Digits]:
    """Fill a buffer, then let every chunk change places with images drawn from it; give the rest in the end."""
    first, total = [], 0
    for chunk in chunks:
        first.append(chunk)
        total += len(chunk)
        if total >= SHUFFLE_BUFFER:
            break
    if not first:
        return
    buffer = _join(first)
    for chunk in chunks:
        places = torch.from_numpy(draw.choice(total, len(chunk), replace=False))
        yield buffer.select(places)  # copies
        buffer.images[places], buffer.labels[places] = chunk.images, chunk.labels
    for places in torch.from_numpy(draw.permutation(total)).split(CHUNK):
        yield buffer.select(places)


def iterate(chunks: Iterable[Digits]) -> Iterator[dict[str, torch.Tensor]]:
    """Single images of chunks that have been normalised as a whole."""
    for chunk in chunks:
        batch = chunk.__getitems__(range(len(chunk)))
        for pixel_values, label in zip(batch["pixel_values"], batch["labels"], strict=True):
            yield {"pixel_values": pixel_values, "labels": label}


def stream_digits(
    args: DataArguments, processor: VitMnistImageProcessor, splits: Iterable[str] = SPLITS
) -> dict[str, Digits | StreamedDigits]:
    """
    Splits of a dataset as streams, as [`load_digits`] gives them in memory.

    Where a split has to be taken from `train`, or more than one is asked for, the dataset is gone through once first,
    without decoding any image, to count the images and to check the labels.

    Args:
        args ([`DataArguments`]): The dataset and what to take of it.
        processor ([`VitMnistImageProcessor`]): Decodes the images.
        splits: Names out of "train", "validation" and "test".

    Returns:
        `dict`: [`StreamedDigits`]; `validation`, which is gone through again and again, as [`Digits`].

    Raises:
        InputError: the dataset or a column is missing, empty or unreadable, or a label is out of range.
        ConnectionError: the Hub cannot be reached and has to be.
    """
    raw, source = load_raw(args)
    splits = list(splits)
    held_out = [split for split in ("test", "validation") if split not in raw]
    if "train" not in raw and (set(splits) & {"train", *held_out}):
        raise InputError(f"{source} has no train split, only {', '.join(raw)}.")
    origins = {split: split if split in raw else "train" for split in splits}
    raw_splits = {name: _RawSplit(raw[name], name, args, source) for name in set(origins.values())}

    digits = {}
    for split, origin in origins.items():
        raw_split, hash_range, count = raw_splits[origin], (0, 2**32), None
        limit = args.max_train_samples if split == "train" else args.max_eval_samples
        if len(splits) > 1 or (origin == "train" and held_out):
            hashes = raw_split.survey.hashes
            if origin == "train":
                hash_range = _share(split, held_out, len(hashes), args)
            count = int(((hashes >= hash_range[0]) & (hashes < hash_range[1])).sum())
            if count == 0:
                raise InputError(f"The {split} split of {source} is empty.")
            count = min(count, limit or count)
        digits[split] = StreamedDigits(
            raw_split.stream, split, raw_split.names, processor, source, hash_range, args.split_seed,
            skip_bad_images=args.skip_bad_images, limit=limit, num_images=count,
        )  # fmt: skip
    if "validation" in digits:
        digits["validation"] = digits["validation"].head()
    return digits


class _Survey(NamedTuple):
    hashes: np.ndarray  # of every image, uint32
    names: list[str]


class _RawSplit:
    """A split of the dataset as it comes."""

    def __init__(self, dataset, split: str, args: DataArguments, source: str):
        if not isinstance(dataset, datasets.IterableDataset):
            dataset = dataset.to_iterable_dataset()
        image_column, label_column = find_columns(dataset, args)
        kind = dataset.features[label_column]
        stream = encoded(dataset.select_columns([image_column, label_column]), image_column)
        renamed = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
        self.stream = stream.rename_columns(renamed) if renamed else stream
        self.split, self.source, self.seed = split, source, args.split_seed
        is_text = getattr(kind, "dtype", None) in ("string", "large_string")
        self.known_names = None if is_text else class_names(kind, args.num_labels)

    @property
    def names(self) -> list[str]:
        return self.known_names or self.survey.names

    @functools.cached_property
    def survey(self) -> _Survey:
        """Go through the split once: every image is hashed, every label checked, and text labels are gathered."""
        hashes, found, total = [], set(), 0
        with tqdm(desc=f"Count {self.split}", unit=" images", leave=False, disable=None) as progress:
            for rows in self.stream.iter(batch_size=CHUNK):
                labels = np.asarray(rows["label"])
                if self.known_names is None:
                    found |= set(labels.tolist())
                elif labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
                    raise InputError(f"The labels must be one integer or string per image, got {rows['label'][0]!r}.")
                else:
                    check_labels(labels, self.known_names, total, f"the {self.split} split")
                hashes.append(np.array([hash_image(image, self.seed) for image in rows["image"]], np.uint32))
                total += len(labels)
                progress.update(len(labels))
        if not total:
            raise InputError(f"The {self.split} split of {self.source} is empty.")
        return _Survey(np.concatenate(hashes), self.known_names or sorted(found))


def _share(split: str, held_out: list[str], total: int, args: DataArguments) -> tuple[int, int]:
    """The range of hashes that makes a part of the train split."""
    test = 1 / 6 if "test" in held_out else 0
    size = min(total / 12, MAX_VALIDATION) if args.validation_size is None else args.validation_size
    validation = (size if size < 1 else size / total) if "validation" in held_out else 0
    if test + validation >= 1:
        raise InputError(f"{size:g} of {total} images cannot be set aside.")
    ends = [round(end * 2**32) for end in (0, test, test + validation, 1)]
    at = ("test", "validation", "train").index(split)
    return ends[at], ends[at + 1]


def hash_image(image: dict | np.ndarray, seed: int) -> int:
    """CRC-32 of an encoded image, or of the path of a file that is not loaded, beginning from `seed`."""
    if not isinstance(image, dict):
        return zlib.crc32(np.ascontiguousarray(image), seed)
    return zlib.crc32(image["path"].encode() if image["bytes"] is None else image["bytes"], seed)
