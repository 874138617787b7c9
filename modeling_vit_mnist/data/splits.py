"""Splits of a dataset: in memory, or as streams."""

import hashlib
import logging
import struct
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from ..cli.errors import UsageError
from ..image_processing_vit_mnist import VitMnistImageProcessor
from .arguments import DEFAULT_DATASET, DataArguments
from .images import ImageDataset
from .sources import load_raw
from .streaming import ImageStream, open_stream

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
MAX_STREAMED_VALIDATION = 5_000
# MD5 of the uncompressed train-images-idx3-ubyte and t10k-images-idx3-ubyte of LeCun, Cortes and Burges.
MNIST_MD5 = {"train": "6bbc9ace898e44ae57da46a324031adb", "test": "2646ac647ad5339dbf082846283269ea"}


def load_images(
    args: DataArguments, processor: VitMnistImageProcessor, splits: Iterable[str] = SPLITS
) -> dict[str, ImageDataset]:
    """Load splits of a dataset, out of "train", "validation" and "test", into memory.

    A dataset without a validation split has one taken from `train`, stratified by class and seeded. A dataset without
    a test split has a sixth of `train` taken in the same way.

    Raises:
        UsageError: the dataset, a column or a split is missing, empty or unreadable, a label is out of range, or an
            image is corrupt.
        ConnectionError: the Hub is needed and cannot be reached.
    """
    if args.streaming:
        raise UsageError("--streaming works in training and inference only.")
    raw, source = load_raw(args)
    wanted = set(splits)
    if "train" not in raw and wanted - set(raw):  # each missing split is taken from train
        raise UsageError(f"{source} has no train split, only {', '.join(raw)}.")
    if wanted & {"train", "validation"} or "test" not in raw:
        wanted.add("train")
    streams = {name: open_stream(raw[name], name, source, processor, args) for name in SPLITS if name in raw}
    survey_text_labels(streams)
    loaded = {name: stream.take() for name, stream in streams.items() if name in wanted}
    _recognize_mnist(loaded)

    if "test" in wanted and "test" not in raw:
        logger.warning("%s has no test split: holding out a sixth of its train split.", source)
        loaded["train"], loaded["test"] = _hold_out(loaded["train"], len(loaded["train"]) // 6, args)
    if wanted & {"train", "validation"} and "validation" not in raw:
        total = len(loaded["train"])
        size = total / 12 if args.validation_size is None else args.validation_size
        size = round(size * total) if size < 1 else round(size)
        loaded["train"], loaded["validation"] = _hold_out(loaded["train"], size, args)
    return {
        name: loaded[name].take(args.max_train_samples if name == "train" else args.max_eval_samples)
        for name in splits
    }


def stream_images(
    args: DataArguments, processor: VitMnistImageProcessor, splits: Iterable[str] = SPLITS
) -> dict[str, ImageDataset | ImageStream]:
    """[`load_images`] as streams, except `validation`, which is read many times.

    If a split is taken from `train`, or several are requested, the dataset is read once first, without decoding, to
    count images and check labels."""
    raw, source = load_raw(args)
    splits = list(splits)
    held_out = [split for split in ("test", "validation") if split not in raw]
    if "train" not in raw and (set(splits) & {"train", *held_out}):
        raise UsageError(f"{source} has no train split, only {', '.join(raw)}.")
    origins = {split: split if split in raw else "train" for split in splits}
    whole = {name: open_stream(raw[name], name, source, processor, args) for name in SPLITS if name in raw}
    hashes = survey_text_labels(whole)
    counted = [name for name in set(origins.values()) if len(splits) > 1 or (name == "train" and held_out)]
    hashes |= {name: whole[name].survey() for name in counted if name not in hashes}

    streams: dict[str, ImageDataset | ImageStream] = {}
    for split, origin in origins.items():
        limit = args.max_train_samples if split == "train" else args.max_eval_samples
        stream = replace(whole[origin], split=split, limit=limit)
        if origin in hashes:
            if origin == "train" and held_out:
                stream.hash_range = _hash_range(split, held_out, len(hashes[origin]), args)
            low, high = stream.hash_range
            count = int(((hashes[origin] >= low) & (hashes[origin] < high)).sum())
            if count == 0:
                raise UsageError(f"The {split} split of {source} is empty.")
            stream.num_images = min(count, limit or count)
        streams[split] = stream.take() if split == "validation" else stream
    return streams


def survey_text_labels(streams: dict[str, ImageStream]) -> dict[str, np.ndarray]:
    """Number text labels in the same way in all splits. Returns the hashes of the images of the splits with text."""
    hashes = {split: stream.survey() for split, stream in streams.items() if not stream.names}
    names = sorted({name for split in hashes for name in streams[split].names})
    for split in hashes:
        streams[split].names = names
    return hashes


def _hash_range(split: str, held_out: list[str], total: int, args: DataArguments) -> tuple[int, int]:
    """The range of hashes of a part of the train split."""
    test = 1 / 6 if "test" in held_out else 0
    size = min(total / 12, MAX_STREAMED_VALIDATION) if args.validation_size is None else args.validation_size
    validation = (size if size < 1 else size / total) if "validation" in held_out else 0
    if test + validation >= 1:
        raise UsageError(f"Cannot hold out {size:g} of {total} images.")
    shares = {"test": (0, test), "validation": (test, test + validation), "train": (test + validation, 1)}
    return round(shares[split][0] * 2**32), round(shares[split][1] * 2**32)


def _hold_out(dataset: ImageDataset, size: int, args: DataArguments) -> tuple[ImageDataset, ImageDataset]:
    """Split off `size` images, the classes in proportion. Both parts keep the original order."""
    from sklearn.model_selection import train_test_split

    try:
        options = {"test_size": size, "stratify": dataset.labels.numpy(), "random_state": args.split_seed}
        parts = train_test_split(np.arange(len(dataset)), **options)
    except ValueError as error:
        raise UsageError(f"Cannot hold out {size} of {len(dataset)} images, stratified by class: {error}") from error
    rest, held_out = (dataset.select(torch.from_numpy(np.sort(part))) for part in parts)
    return rest, held_out


def _recognize_mnist(loaded: dict[str, ImageDataset]) -> None:
    """Set the source of MNIST's own images to its Hub id, wherever they were loaded from."""
    for split, dataset in loaded.items():
        if split in MNIST_MD5 and dataset.images.shape[1:] == (28, 28):
            header = struct.pack(">4I", 0x803, *dataset.images.shape)
            if hashlib.md5(header + dataset.images.numpy().tobytes()).hexdigest() == MNIST_MD5[split]:
                dataset.source = DEFAULT_DATASET
