"""
MNIST in: from the Hub, a folder or the kept sample, through `datasets`, to one uint8 tensor of images per split.

The images are decoded once, by the image processor, and normalised per batch by its own arithmetic: what the model
sees is what the processor makes of each image, whatever the source.
"""

import gzip
import hashlib
import io
import logging
import os
import re
import struct
import threading
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from .arguments import DATASET_VARIABLE, DEFAULT_DATASET, DataArguments
from .errors import InputError
from .image_processing_vit_mnist import VitMnistImageProcessor


logger = logging.getLogger(__name__)

SAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "data" / "mnist-5k"
SPLITS = ("train", "validation", "test")
# MD5 of the uncompressed train-images-idx3-ubyte and t10k-images-idx3-ubyte of LeCun, Cortes and Burges.
MNIST_MD5 = {"train": "6bbc9ace898e44ae57da46a324031adb", "test": "2646ac647ad5339dbf082846283269ea"}


@dataclass
class Digits(torch.utils.data.Dataset):
    """
    A split in memory.

    Attributes:
        images (`torch.Tensor` of shape `(n, height, width)`, uint8): Grey frames, as the processor makes them.
        labels (`torch.Tensor` of shape `(n,)`, int64): Classes in `[0, len(names))`.
        names (`list[str]`): The classes' names.
        processor ([`VitMnistImageProcessor`]): Turns frames into `pixel_values`, batch by batch.
        source (`str`): Where the images come from, fit for print: a Hub id or a folder's name, no path.
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

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """One batch, which a `DataLoader` asks for at once: `pixel_values` (b, 1, height, width) and `labels` (b,)."""
        batch = self.select(torch.as_tensor(indices))
        return {"pixel_values": self.processor.to_pixel_values(batch.images), "labels": batch.labels}

    def select(self, indices: torch.Tensor | slice) -> "Digits":
        """The images at `indices`, a slice or int64 of shape `(n,)`."""
        if isinstance(indices, slice):
            return replace(self, images=self.images[indices], labels=self.labels[indices])
        # Copies whole images, where `images[indices]` would copy byte by byte.
        return replace(self, images=self.images.index_select(0, indices), labels=self.labels.index_select(0, indices))

    def head(self, limit: int) -> "Digits":
        """The first images."""
        return self.select(slice(limit))

    @property
    def is_sample(self) -> bool:
        """Whether these are from the kept sample, which is no match for the whole of MNIST."""
        return self.source == SAMPLE_FOLDER.name

    @staticmethod
    def collate(batch: dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """`data_collator` for [`transformers.Trainer`]: `__getitems__` has made a batch already, streams have not."""
        return batch if isinstance(batch, dict) else torch.utils.data.default_collate(batch)


def load_digits(
    args: DataArguments, processor: VitMnistImageProcessor, splits: Iterable[str] = SPLITS
) -> dict[str, Digits]:
    """
    Load splits of a dataset into memory.

    `validation` comes from `train`, stratified by class and seeded, where the dataset brings none; `test` is left
    alone. A dataset without a test split gives up a sixth of `train` for it, in the same way.

    Args:
        args ([`DataArguments`]): The dataset and what to take of it.
        processor ([`VitMnistImageProcessor`]): Decodes the images.
        splits: Names out of "train", "validation" and "test".

    Returns:
        `dict[str, Digits]`: The splits asked for.

    Raises:
        InputError: the dataset, a column or a split is missing, empty or unreadable, a label is out of range, or an
            image is corrupt; the message says which.
        ConnectionError: the Hub cannot be reached and has to be.
    """
    if args.streaming:
        raise InputError("--streaming works where images are needed one after the other: in training and inference.")
    raw, source = load_raw(args)
    wanted = set(splits)
    if wanted & {"train", "validation"} or "test" not in raw:
        wanted.add("train")
    loaded = {name: _decode(raw[name], name, args, processor, source) for name in SPLITS if name in wanted & set(raw)}
    _name_mnist(loaded)

    if "test" in wanted and "test" not in raw:
        logger.warning("%s has no test split: a sixth of its train split serves as one.", source)
        loaded["train"], loaded["test"] = _stratified_split(loaded["train"], len(loaded["train"]) // 6, args)
    if wanted & {"train", "validation"} and "validation" not in raw:
        total = len(loaded["train"])
        size = total / 12 if args.validation_size is None else args.validation_size
        size = round(size * total) if size < 1 else round(size)
        loaded["train"], loaded["validation"] = _stratified_split(loaded["train"], size, args)

    limits = {"train": args.max_train_samples}
    return {name: loaded[name].select(slice(limits.get(name, args.max_eval_samples))) for name in splits}


def load_raw(args: DataArguments) -> tuple[datasets.DatasetDict | datasets.IterableDatasetDict, str]:
    """
    The dataset as it is, its splits named as in [`SPLITS`], and its name; splits that stream where `args` says so,
    but for formats that `datasets` cannot stream.

    Raises:
        InputError: it is missing or unreadable, or has neither a train nor a test split.
        ConnectionError: the Hub cannot be reached and has to be.
    """
    name = args.dataset_name or os.environ.get(DATASET_VARIABLE)
    if not name:
        try:
            raw, name = _load_from_hub(DEFAULT_DATASET, args.streaming), DEFAULT_DATASET
        except ConnectionError:
            if not SAMPLE_FOLDER.is_dir():
                raise
            logger.warning(
                f"The Hub cannot be reached and {DEFAULT_DATASET} is not cached: using the kept sample of 5,000 MNIST "
                f"digits. For all of MNIST, pass --dataset_name FOLDER or set {DATASET_VARIABLE}."
            )
            raw, name = _load_from_folder(SAMPLE_FOLDER, args.streaming), SAMPLE_FOLDER.name
    elif Path(name).exists():
        raw, name = _load_from_folder(Path(name), args.streaming), Path(name).resolve().name
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith("."):
        raw = _load_from_hub(name, args.streaming)
    else:
        raise InputError(f"There is no dataset folder {name!r}.")

    if isinstance(raw, datasets.Dataset):
        raw = datasets.DatasetDict({"train": raw})
    if "train" not in raw and "test" not in raw:
        raise InputError(f"{name} has neither a train nor a test split, only {', '.join(map(str, raw))}.")
    return raw, name


def _load_from_hub(name: str, streaming: bool) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    try:
        if huggingface_hub.constants.is_offline_mode() or _hub_is_reachable():
            return datasets.load_dataset(name, streaming=streaming)
        with _offline():
            return datasets.load_dataset(name, streaming=streaming)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise InputError(f"There is neither a folder nor a Hub dataset {name!r} (or it is private).") from error
    except (OSError, huggingface_hub.errors.OfflineModeIsEnabled) as error:
        raise ConnectionError(
            f"The Hub cannot be reached and {name} is not cached: pass --dataset_name FOLDER, or try again online."
        ) from error


def _hub_is_reachable(timeout: float = 3.0) -> bool:
    """Whether the Hub answers at all within `timeout` seconds; `load_dataset` alone would try for half a minute."""
    answers = []

    def ask():
        try:
            answers.append(huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=timeout))
        except Exception as error:
            logger.debug("The Hub does not answer: %s", error)

    # In a thread, since looking up a host name can hang for longer than any timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


@contextmanager
def _offline():
    """Have `datasets` look into its cache only."""
    saved = huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = saved


def _load_from_folder(
    folder: Path, streaming: bool
) -> datasets.DatasetDict | datasets.IterableDatasetDict | datasets.Dataset:
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: a dataset is a folder.")
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(folder))
        if idx := _load_idx(folder):
            return idx
        return datasets.load_dataset(str(folder), streaming=streaming)
    except InputError:
        raise
    except Exception as error:  # each of the formats has errors of its own
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"The dataset in {folder} cannot be read: {reason[0]}") from error


def _load_idx(folder: Path) -> datasets.DatasetDict | None:
    """The four files that MNIST was published as, gzipped or not; `None` where the folder holds none of them."""
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        parts = []
        for kind in ("images?idx3", "labels?idx1"):
            found = sorted(folder.glob(f"{prefix}-{kind}-ubyte*"))
            parts += [_read_idx(found[0])] if found else []
        if not parts:
            continue
        if len(parts) < 2:
            raise InputError(f"{folder} lacks the images or the labels of its {split} split.")
        images, labels = parts
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise InputError(
                f"The IDX files of the {split} split in {folder} do not fit together: images {images.shape}, "
                f"labels {labels.shape}."
            )
        features = datasets.Features(
            {"image": datasets.Array2D(images.shape[1:], "uint8"), "label": datasets.Value("int64")}
        )
        splits[split] = datasets.Dataset.from_dict({"image": images, "label": labels.astype(np.int64)}, features)
    return datasets.DatasetDict(splits) if splits else None


def _read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, the type 8, the rank, the big-endian sizes, the values."""
    try:
        content = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(f"{path} is not an IDX file of bytes: it begins with {content[:4].hex()}.")
    header = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:header].ljust(header - 4, b"\0"))
    if len(content) != header + int(np.prod(shape)):
        raise InputError(f"{path} is cut off or too long: {len(content)} bytes for the shape {shape}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _decode(
    dataset: datasets.Dataset, split: str, args: DataArguments, processor: VitMnistImageProcessor, source: str
) -> Digits:
    """Every image of a split through the processor's geometry, to uint8 frames."""
    if len(dataset) == 0:
        raise InputError(f"The {split} split of {source} is empty.")
    image_column, label_column = find_columns(dataset, args)
    labels, names = _read_labels(dataset, label_column, split, args.num_labels)

    frames, kept = [], []
    column = encoded(dataset.select_columns([image_column]), image_column)
    with tqdm(total=len(dataset), desc=f"Decode {split}", unit=" images", leave=False, disable=None) as progress:
        for start in range(0, len(dataset), 2000):
            chunk = column[start : start + 2000][image_column]
            numbers = range(start, start + len(chunk))
            decoded, indices = decode_images(chunk, numbers, f"the {split} split", processor, args.skip_bad_images)
            frames.append(decoded)
            kept += [numbers[index] for index in indices]
            progress.update(len(chunk))
    if not kept:
        raise InputError(f"No image of the {split} split of {source} can be read.")
    return Digits(torch.cat(frames), torch.from_numpy(labels)[kept], names, processor, source)


def find_columns(dataset: datasets.Dataset | datasets.IterableDataset, args: DataArguments) -> tuple[str, str]:
    """
    The columns of images and labels.

    Raises:
        InputError: the dataset has no such column.
    """
    return (
        _find_column(dataset, args.image_column_name, "image", (datasets.Image, datasets.Array2D)),
        _find_column(dataset, args.label_column_name, "label", (datasets.ClassLabel,)),
    )


def encoded(dataset, image_column: str):
    """The dataset with its images as files, not yet decoded, so that a corrupt one can be named; or as arrays."""
    if isinstance(dataset.features[image_column], datasets.Image):
        return dataset.cast_column(image_column, datasets.Image(decode=False))
    return dataset.with_format("numpy")


def decode_images(
    items: list, numbers: Sequence[int], place: str, processor: VitMnistImageProcessor, skip_bad_images: bool
) -> tuple[torch.Tensor, list[int]]:
    """
    Frames of some images of a split, and which of them could be read.

    Args:
        items: Image files, as `datasets.Image(decode=False)` gives them, or arrays.
        numbers: Where in `place` they stand, for messages.
        place: The split, or the part of it, that they come from.
        processor ([`VitMnistImageProcessor`]): Makes the frames.
        skip_bad_images: Leave out what cannot be read, with a warning.

    Returns:
        `tuple`: `torch.Tensor` of shape `(n, height, width)`, uint8; `list` of `n` indices into `items`.

    Raises:
        InputError: an image cannot be read; the message names it.
    """
    images, kept = [], []
    for index, (item, number) in enumerate(zip(items, numbers, strict=True)):
        try:
            images.append(_open_image(item) if isinstance(item, dict) else np.asarray(item))
            kept.append(index)
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            where = item.get("path") or f"image {number} of {place}"
            if not skip_bad_images:
                raise InputError(
                    f"{where} cannot be read: {error}. Pass --skip_bad_images to go on without such images."
                ) from error
            logger.warning("Skipped %s, which cannot be read: %s", where, error)
    if not images:
        return torch.empty(0, processor.size["height"], processor.size["width"], dtype=torch.uint8), kept
    return processor.to_frames(images), kept


def _open_image(item: dict) -> PIL.Image.Image:
    image = PIL.Image.open(item["path"] if item["bytes"] is None else io.BytesIO(item["bytes"]))
    image.load()
    return image


def _find_column(dataset: datasets.Dataset, asked: str | None, name: str, kinds: tuple[type, ...]) -> str:
    if asked is None:
        asked = next((column for column, kind in dataset.features.items() if isinstance(kind, kinds)), name)
    if asked not in dataset.column_names:
        raise InputError(
            f"There is no column {asked!r} in the dataset, only {', '.join(dataset.column_names)}: "
            f"pass --{name}_column_name."
        )
    return asked


def _read_labels(
    dataset: datasets.Dataset, column: str, split: str, num_labels: int | None
) -> tuple[np.ndarray, list[str]]:
    kind = dataset.features[column]
    if getattr(kind, "dtype", None) in ("string", "large_string"):
        dataset = dataset.class_encode_column(column)
        kind = dataset.features[column]
    labels = dataset.select_columns([column]).with_format("numpy")[:][column]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"The column {column!r} must hold one integer or string per image, got {kind}.")
    names = class_names(kind, num_labels)
    check_labels(labels, names, 0, f"the {split} split")
    return labels.astype(np.int64), names


def class_names(kind: datasets.Features, num_labels: int | None) -> list[str]:
    """Names of the classes, from the feature of the label column, or their numbers."""
    return kind.names if isinstance(kind, datasets.ClassLabel) else [str(label) for label in range(num_labels or 10)]


def check_labels(labels: np.ndarray, names: list[str], start: int, place: str) -> None:
    """
    Raises:
        InputError: one of the labels, the first of them number `start` in its place, is no class.
    """
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if outside.size:
        raise InputError(
            f"Label {labels[outside[0]]} of image {start + outside[0]} of {place} is out of range: there "
            f"are {len(names)} classes, 0 to {len(names) - 1}."
        )


def _stratified_split(digits: Digits, size: int, args: DataArguments) -> tuple[Digits, Digits]:
    """Set aside `size` images, the classes in proportion; both parts keep the original order."""
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(
            np.arange(len(digits)), test_size=size, stratify=digits.labels.numpy(), random_state=args.split_seed
        )
    except ValueError as error:
        raise InputError(
            f"{size} of {len(digits)} images cannot be set aside, stratified by class: {error}"
        ) from error
    rest, aside = (digits.select(torch.from_numpy(np.sort(part))) for part in parts)
    return rest, aside


def _name_mnist(loaded: dict[str, Digits]) -> None:
    """Give MNIST its name wherever it came from, so that a result says what it was measured on."""
    for split, digits in loaded.items():
        if split in MNIST_MD5 and digits.images.shape[1:] == (28, 28):
            header = struct.pack(">4I", 0x803, *digits.images.shape)
            if hashlib.md5(header + digits.images.numpy().tobytes()).hexdigest() == MNIST_MD5[split]:
                digits.source = DEFAULT_DATASET
