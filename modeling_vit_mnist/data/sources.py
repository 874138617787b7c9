"""Datasets as they come: from the Hub, a folder, IDX files, or the bundled sample."""

import gzip
import logging
import os
import re
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np

from ..cli.assets import asset
from ..cli.errors import UsageError
from .arguments import DATASET_VARIABLE, DEFAULT_DATASET, DataArguments

logger = logging.getLogger(__name__)

SAMPLE = asset("data/mnist-5k")
RawDatasets = dict[str, Any]  # DatasetDict or IterableDatasetDict


def load_raw(args: DataArguments) -> tuple[RawDatasets, str]:
    """The splits of a dataset, and its name. They are streams if `args.streaming` is set and `datasets` can stream it.

    Raises:
        UsageError: the dataset is missing or unreadable, or has neither a train nor a test split.
        ConnectionError: the Hub is needed and cannot be reached.
    """
    name = args.dataset_name or os.environ.get(DATASET_VARIABLE)
    if not name:
        try:
            raw, name = _load_from_hub(DEFAULT_DATASET, args.streaming), DEFAULT_DATASET
        except ConnectionError:
            logger.warning(
                f"The Hub cannot be reached and {DEFAULT_DATASET} is not cached: using the bundled sample of 5,000 "
                f"MNIST digits. To use all of MNIST, pass --dataset_name FOLDER or set {DATASET_VARIABLE}."
            )
            raw, name = _load_from_folder(SAMPLE, args.streaming), SAMPLE.name
    elif Path(name).exists():
        raw, name = _load_from_folder(Path(name), args.streaming), Path(name).resolve().name
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith("."):
        raw = _load_from_hub(name, args.streaming)
    else:
        raise UsageError(f"No dataset folder {name!r}.")

    if isinstance(raw, datasets.Dataset):
        raw = datasets.DatasetDict({"train": raw})
    if "train" not in raw and "test" not in raw:
        raise UsageError(f"{name} has neither a train nor a test split, only {', '.join(map(str, raw))}.")
    return raw, name


def _load_from_hub(name: str, streaming: bool) -> RawDatasets:
    *owner, short = name.split("/")
    cache = "___".join([*owner, datasets.naming.camelcase_to_snakecase(short)])
    is_cached = Path(datasets.config.HF_DATASETS_CACHE, cache).is_dir()
    try:
        if not huggingface_hub.constants.is_offline_mode() and not _hub_is_reachable():
            if not is_cached:  # load_dataset would try for half a minute
                raise ConnectionError("no answer within 3 s")
            logger.warning(
                "The Hub does not answer. Trying for 30 s, then using the cache (HF_HUB_OFFLINE=1 skips this)."
            )
        return datasets.load_dataset(name, streaming=streaming)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UsageError(f"No folder and no Hub dataset {name!r} (or it is private).") from error
    except (OSError, huggingface_hub.errors.OfflineModeIsEnabled) as error:
        raise ConnectionError(
            f"The Hub cannot be reached and {name} is not cached: pass --dataset_name FOLDER, or try again online."
        ) from error


def _hub_is_reachable(timeout: float = 3.0) -> bool:
    """Whether the Hub answers within `timeout` seconds."""
    answers = []

    def ask():
        with suppress(Exception):
            answers.append(huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=timeout))

    # In a thread, since looking up a host name can take longer than any timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


def _load_from_folder(folder: Path, streaming: bool) -> Any:
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file: a dataset is a folder.")
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(folder))
        return _load_idx(folder) or datasets.load_dataset(str(folder), streaming=streaming)
    except UsageError:
        raise
    except Exception as error:  # each format raises exceptions of its own
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"Cannot read the dataset in {folder}: {reason[0]}") from error


def _load_idx(folder: Path) -> datasets.DatasetDict | None:
    """The four files that MNIST was published as, gzipped or not; `None` if the folder holds none of them."""
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = (_read_idx(folder, f"{prefix}-{kind}-ubyte*") for kind in ("images?idx3", "labels?idx1"))
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            raise UsageError(f"{folder} lacks the images or the labels of its {split} split.")
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            shapes = f"images {images.shape}, labels {labels.shape}"
            raise UsageError(f"The IDX files of the {split} split in {folder} do not match: {shapes}.")
        image_feature = datasets.Array2D(images.shape[1:], "uint8")
        features = datasets.Features({"image": image_feature, "label": datasets.Value("int64")})
        splits[split] = datasets.Dataset.from_dict({"image": images, "label": labels.astype(np.int64)}, features)
    return datasets.DatasetDict(splits) if splits else None


def _read_idx(folder: Path, pattern: str) -> np.ndarray | None:
    """An IDX file of unsigned bytes: two zeros, the type 8, the rank, the big-endian sizes, the values."""
    path = next(iter(sorted(folder.glob(pattern))), None)
    if path is None:
        return None
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError) as error:
        raise UsageError(f"Cannot read {path}: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UsageError(f"{path} is not an IDX file of bytes: it begins with {content[:4].hex()}.")
    header = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:header].ljust(header - 4, b"\0"))
    if len(content) != header + int(np.prod(shape)):
        raise UsageError(f"{path} is cut off or too long: {len(content)} bytes for the shape {shape}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
