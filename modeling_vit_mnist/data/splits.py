"""Splits of a dataset: in memory, or as streams."""

import copy
import hashlib
import json
import logging
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch

from ..cli.errors import UsageError
from ..deskewing_vit_mnist import deskew
from ..image_processing_vit_mnist import VitMnistImageProcessor
from .arguments import DEFAULT_DATASET, DataArguments
from .folders import SPLITS
from .images import ImageDataset, find_columns
from .sources import load_raw
from .streaming import ALL_HASHES, ImageStream, open_stream

logger = logging.getLogger(__name__)

MAX_STREAMED_VALIDATION = 5_000
# MD5 of the uncompressed train-images-idx3-ubyte and t10k-images-idx3-ubyte of LeCun, Cortes and Burges, and of the
# files of their labels.
MNIST_MD5 = {"train": "6bbc9ace898e44ae57da46a324031adb", "test": "2646ac647ad5339dbf082846283269ea"}
MNIST_LABELS_MD5 = {"train": "a25bea736e30d166cdddb491f175f624", "test": "27ae3e4e09519cfbb04c329615203637"}
# A stream is recognized by its number of images, and the MD5 of the first ones and their labels.
MNIST_SIZE = {"train": 60_000, "test": 10_000}
MNIST_START = 1000
MNIST_START_MD5 = {"train": "603010c9a92bc2d898634e8fbe60aedf", "test": "f2651a0ef751317d89c42a0f94ade8cf"}


def load_images(
    args: DataArguments, processor: VitMnistImageProcessor, splits: Iterable[str] = SPLITS
) -> dict[str, ImageDataset]:
    """Load splits of a dataset, out of "train", "validation" and "test", into memory.

    A dataset without a validation split has one taken from `train`, stratified by class and seeded. A dataset without
    a test split has a sixth of `train` taken in the same way. If a class has too few images, the split is plain.

    Raises:
        UsageError: the dataset, a column or a split is missing, empty or unreadable, a label is out of range, or an
            image is corrupt.
        ConnectionError: the Hub is needed and cannot be reached.
    """
    if args.streaming:
        raise UsageError("--streaming works in training and inference only.")
    splits = list(splits)
    plain = copy.copy(processor)
    plain.do_deskew = False  # MNIST is recognized first
    streams, names, held_out = open_splits(args, plain, splits)
    wanted = {*splits, *(["train"] if held_out else [])}
    loaded = {name: stream.take() for name, stream in streams.items() if name in wanted}
    # All loaded splits must be MNIST's: results on other test images are not results on MNIST.
    is_mnist = "test" not in held_out and all(_is_mnist(name, loaded[name]) for name in loaded)
    for name, dataset in loaded.items():
        images = dataset.images
        if processor.do_deskew:
            images = torch.from_numpy(np.stack([deskew(image) for image in images.numpy()]))
        source = DEFAULT_DATASET if is_mnist else dataset.source
        loaded[name] = replace(dataset, images=images, processor=processor, source=source)

    # Always in this order, so that a split does not depend on which others are loaded.
    if "test" in held_out:
        size = max(1, len(loaded["train"]) // 6)
        loaded["train"], loaded["test"] = _hold_out(loaded["train"], "test", size, args)
    if "validation" in held_out and splits != ["test"]:
        size = _validation_size(len(loaded["train"]), args)
        loaded["train"], loaded["validation"] = _hold_out(loaded["train"], "validation", size, args)
    taken = {name: loaded[name].take(args.limit(name)) for name in splits}
    _warn_of_untrained_classes({name: dataset.labels.numpy() for name, dataset in taken.items()}, names)
    _warn_of_shared_images(taken)
    return taken


def stream_images(
    args: DataArguments, processor: VitMnistImageProcessor, splits: Iterable[str] = SPLITS
) -> dict[str, ImageDataset | ImageStream]:
    """[`load_images`] as streams, except `validation`, which is read many times.

    If a split is taken from `train`, or several are requested, the dataset is read once first, without decoding, to
    count images and check labels."""
    splits = list(splits)
    whole, names, held_out = open_splits(args, processor, splits)
    origins = {split: split if split in whole else "train" for split in splits}
    if len(splits) > 1:
        for name in dict.fromkeys(origins.values()):
            whole[name].survey()
    ranges = _hash_ranges(whole["train"].survey().hashes, held_out, args) if held_out else {}
    counted = {name: stream for name, stream in whole.items() if stream.surveyed is not None}
    if counted and "test" not in held_out and all(_starts_as_mnist(name, stream) for name, stream in counted.items()):
        for stream in whole.values():
            stream.source = DEFAULT_DATASET

    streams: dict[str, ImageDataset | ImageStream] = {}
    classes = {}
    for split, origin in origins.items():
        # Messages name the split that holds the image.
        stream = replace(whole[origin], limit=args.limit(split), hash_range=ranges.get(split, ALL_HASHES))
        if stream.surveyed is not None:
            classes[split] = stream.contents()[1]
            stream.num_images = len(classes[split])
            if stream.num_images == 0:
                raise UsageError(f"The {split} split of {stream.source} is empty.")
        streams[split] = stream.take() if split == "validation" else stream
    _warn_of_untrained_classes(classes, names)
    return streams


def fingerprint(splits: Mapping[str, ImageDataset | ImageStream]) -> str:
    """16 hex digits that depend on the images, labels and class names of each split, and on nothing else. Those of a
    stream depend on its encoded images, which are read once if they have not been counted."""
    state = hashlib.blake2b(digest_size=8)
    for name, split in sorted(splits.items()):
        images, labels = (
            split.contents() if isinstance(split, ImageStream) else (split.images.numpy(), split.labels.numpy())
        )
        header = [name, split.names, type(split).__name__, images.shape, str(images.dtype), str(labels.dtype)]
        state.update(json.dumps(header).encode())
        state.update(np.ascontiguousarray(images).data)
        state.update(np.ascontiguousarray(labels).data)
    return state.hexdigest()


def open_splits(
    args: DataArguments, processor: VitMnistImageProcessor, splits: list[str]
) -> tuple[dict[str, ImageStream], list[str], list[str]]:
    """All splits of the dataset as streams, with their classes numbered in the same way, by name; these names; and
    the splits to hold out of `train`, if `splits` needs it. Splits with text labels are surveyed. Raises
    [`UsageError`] if `train` is needed and missing, or the classes of the splits cannot be matched or contradict
    `--num_labels`."""
    raw, source = load_raw(args)
    processor.max_pixels = args.max_pixels
    held_out = []
    if "train" in splits or not set(splits) <= set(raw):
        if "train" not in raw:
            raise UsageError(f"{source} has no train split, only {', '.join(raw)}.")
        held_out = [split for split in ("test", "validation") if split not in raw]
    if args.validation_size is not None and "validation" in raw:
        logger.warning("%s has a validation split: --validation_size has no effect.", source)
    if "test" in held_out:
        logger.warning("%s has no test split: holding out a sixth of its train split.", source)
    used = {name: raw[name] for name in SPLITS if name in raw}
    columns = find_columns(used, args)
    streams = {name: open_stream(dataset, name, source, columns, processor, args) for name, dataset in used.items()}
    listed = {name: stream.names for name, stream in streams.items() if stream.has_named_classes}
    found = {str(label) for stream in streams.values() if stream.is_text for label in stream.survey().labels}
    names = list(dict.fromkeys(name for own in listed.values() for name in own))
    are_numbers = all(re.fullmatch("-?[0-9]+", name) for name in found)
    names += sorted(found - set(names), key=(lambda name: (int(name), name)) if are_numbers else None)
    if not names:  # integers
        return streams, next(iter(streams.values())).names, held_out
    if args.num_labels not in (None, len(names)):
        raise UsageError(f"--num_labels {args.num_labels} contradicts {source}, which names {len(names)} classes.")
    for split, stream in streams.items():
        own = listed.get(split, names)
        if stream.is_text:
            stream.class_of = {name: number for number, name in enumerate(names)}
        elif own != names:
            stream.class_of = {number: names.index(name) for number, name in enumerate(own)}
        elif split not in listed and names != [str(number) for number in range(len(names))]:
            shown = ", ".join(names[:5])
            raise UsageError(f"The {split} split of {source} numbers its classes, another names them ({shown}, ...).")
        stream.names = names
    return streams, names, held_out


def _warn_of_untrained_classes(classes: dict[str, np.ndarray], names: list[str]) -> None:
    """Warn of classes that other splits hold and `train`, if it is loaded, does not."""
    for split, held in classes.items():
        untrained = np.setdiff1d(held, classes.get("train", held))
        if untrained.size:
            listed = ", ".join(names[number] for number in untrained)
            logger.warning("The classes %s of the %s split have no training images.", listed, split)


def _warn_of_shared_images(splits: dict[str, ImageDataset]) -> None:
    """Warn of images in other splits that are in `train`, if it is loaded, too. Black ones show nothing."""
    contents = {
        name: np.unique([hash(image.tobytes()) for image in split.images.numpy() if image.any()])
        for name, split in splits.items() if "train" in splits
    }  # fmt: skip
    for name in contents.keys() - {"train"}:
        if shared := np.isin(contents[name], contents["train"]).sum():
            logger.warning("%d images of the %s split are in the train split, too.", shared, name)


def _validation_size(total: int, args: DataArguments) -> int:
    """How many of `total` images are held out for validation."""
    size = args.validation_size
    if size is None:
        return max(1, round(total / 12))
    return round(size * total) if size < 1 else round(size)


def _check_held_out(size: float, total: int, split: str) -> None:
    if not 1 <= size < total:
        advice = " or pass another --validation_size" if split == "validation" else ""
        raise UsageError(f"Cannot hold out {size:g} of {total} images for {split}: add images{advice}.")


def _hash_ranges(hashes: np.ndarray, held_out: list[str], args: DataArguments) -> dict[str, tuple[int, int]]:
    """The range of hashes of each part of the train split."""
    total = len(hashes)
    left = total - total // 6 if "test" in held_out else total
    size = args.validation_size
    if size is None:
        size = min(left / 12, MAX_STREAMED_VALIDATION)
    elif size < 1:
        size *= left
    shares = {"test": 1 / 6, "validation": size / total}
    if "validation" in held_out:
        _check_held_out(_validation_size(left, args), left, "validation")
    parts = [*held_out, "train"]
    ends = list(accumulate(shares[split] for split in held_out))
    bounds = [0, *(round(end * 2**32) for end in ends), 2**32]
    if 0 in np.histogram(hashes, bounds)[0]:  # by rank, no part is empty; equal images have equal hashes
        ranks = np.unique(hashes).tolist()
        if len(ranks) < len(parts):
            raise UsageError(f"Cannot hold out {' and '.join(held_out)} of {len(ranks)} different images: add images.")
        logger.warning("By their hashes, a part of the %d images would be empty: splitting by rank instead.", total)
        places = (
            min(max(round(end * len(ranks)), at), len(ranks) - len(parts) + at) for at, end in enumerate(ends, 1)
        )
        bounds = [0, *(ranks[place] for place in places), 2**32]
    return dict(zip(parts, pairwise(bounds), strict=True))


def _hold_out(dataset: ImageDataset, split: str, size: int, args: DataArguments) -> tuple[ImageDataset, ImageDataset]:
    """Split off `size` images, the classes in proportion if possible. Both parts keep the original order."""
    from sklearn.model_selection import train_test_split

    _check_held_out(size, len(dataset), split)
    options = {"test_size": size, "random_state": args.split_seed}
    try:
        parts = train_test_split(np.arange(len(dataset)), stratify=dataset.labels.numpy(), **options)
    except ValueError:  # too few images, at least of one class
        logger.warning(
            "The %s split, %d of %d images, is drawn whatever their class: too few images. Accuracy on it is coarse.",
            split, size, len(dataset),
        )  # fmt: skip
        parts = train_test_split(np.arange(len(dataset)), **options)
    rest, held_out = (dataset.select(torch.from_numpy(np.sort(part))) for part in parts)
    return rest, replace(held_out, held_out=size)


def _is_mnist(split: str, dataset: ImageDataset) -> bool:
    """Whether a whole split has MNIST's own images and labels."""
    if split not in MNIST_MD5 or dataset.images.shape[1:] != (28, 28):
        return False
    headers = struct.pack(">4I", 0x803, *dataset.images.shape), struct.pack(">2I", 0x801, len(dataset))
    contents = dataset.images.numpy().tobytes(), dataset.labels.numpy().astype(np.uint8).tobytes()
    found = [hashlib.md5(header + content).hexdigest() for header, content in zip(headers, contents, strict=True)]
    return found == [MNIST_MD5[split], MNIST_LABELS_MD5[split]]


def _starts_as_mnist(split: str, stream: ImageStream) -> bool:
    """Whether a stream that has been counted has as many images as MNIST's split, and its first ones."""
    if stream.surveyed is None or len(stream.surveyed.hashes) != MNIST_SIZE.get(split):
        return False
    plain = copy.copy(stream.processor)
    plain.do_deskew = False
    start = replace(stream, processor=plain, limit=MNIST_START).take()
    content = start.images.numpy().tobytes() + start.labels.numpy().astype(np.uint8).tobytes()
    return hashlib.md5(content).hexdigest() == MNIST_START_MD5[split]
