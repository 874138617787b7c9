"""Datasets as they come: from the Hub, a folder, or the bundled sample."""

import filecmp
import logging
import os
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

import datasets
import huggingface_hub
from datasets.data_files import SPLIT_KEYWORDS
from huggingface_hub.utils import httpx

from ..cli.assets import asset
from ..cli.errors import UsageError, printable
from .arguments import DATASET_VARIABLE, DEFAULT_DATASET, DataArguments
from .folders import SPLITS, RawDatasets, blame, causes, load_from_folder

logger = logging.getLogger(__name__)

SAMPLE = asset("data/mnist-5k")
HUB_TIMEOUT = 3  # seconds


def is_sample(args: DataArguments) -> bool:
    """Whether [`load_raw`] will take the bundled sample: it is named, or nothing is, MNIST is not cached, and the Hub
    cannot be reached."""
    if name := args.dataset_name or os.environ.get(DATASET_VARIABLE):
        return Path(name).resolve() == SAMPLE.resolve()
    return not _cache_folder(DEFAULT_DATASET).is_dir() and (
        huggingface_hub.constants.is_offline_mode() or not _hub_is_reachable()
    )


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
            raw, name = load_from_folder(SAMPLE, args.streaming), SAMPLE.name
    elif Path(name).exists():
        raw, name = load_from_folder(Path(name), args.streaming), _folder_name(Path(name).resolve())
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith("."):
        raw = _load_from_hub(name, args.streaming)
    else:
        raise UsageError(f"No dataset folder {name!r}.")

    if isinstance(raw, (datasets.Dataset, datasets.IterableDataset)):
        raw = {"train": raw}
    for other in sorted(set(raw) - set(SPLITS)):
        split = next((split for split, words in SPLIT_KEYWORDS.items() if other.lower() in words), None)
        if split and str(split) not in raw:
            raw[str(split)] = raw.pop(other)
    if not set(raw) & set(SPLITS):
        raise UsageError(f"{name} has neither a train nor a test split, only {', '.join(map(str, raw))}.")
    if others := sorted(set(raw) - set(SPLITS)):
        logger.warning("Not using the splits %s of %s.", ", ".join(others), name)
    return raw, name


def _folder_name(folder: Path) -> str:
    """What a dataset in a folder is called. Only the bundled sample and copies of it have the sample's name."""
    if folder.name == SAMPLE.name:
        ours, own = (sorted(str(file.relative_to(top)) for file in top.rglob("*.parquet")) for top in (SAMPLE, folder))
        if own != ours or filecmp.cmpfiles(SAMPLE, folder, ours, shallow=False)[0] != ours:
            return printable(f"{folder.parent.name}-{folder.name}")
    return printable(folder.name)


def _cache_folder(name: str) -> Path:
    *owner, short = name.split("/")
    return Path(datasets.config.HF_DATASETS_CACHE, "___".join([*owner, datasets.naming.camelcase_to_snakecase(short)]))


def _load_from_hub(name: str, streaming: bool) -> RawDatasets:
    is_cached = _cache_folder(name).is_dir()
    try:
        if not huggingface_hub.constants.is_offline_mode() and not _hub_is_reachable():
            if not is_cached:  # load_dataset would try for half a minute
                raise ConnectionError(f"no answer within {HUB_TIMEOUT} s")
            logger.warning(
                "The Hub does not answer. Trying for 30 s, then using the cache (HF_HUB_OFFLINE=1 skips this)."
            )
        return datasets.load_dataset(name, streaming=streaming)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UsageError(f"No folder and no Hub dataset {name!r} (or it is private).") from error
    except Exception as error:
        kinds = (ConnectionError, TimeoutError, socket.gaierror, httpx.TransportError)
        if any(isinstance(cause, kinds) for cause in causes(error)):
            is_path = Path(name).parent.is_dir()  # else a Hub id
            raise (UsageError if is_path else ConnectionError)(
                f"No folder {name!r}. The Hub cannot be reached and {name} is not cached: "
                "pass --dataset_name FOLDER, or try again online."
            ) from error
        blame(error, name)


def _hub_is_reachable() -> bool:
    """Whether the Hub answers within [`HUB_TIMEOUT`]."""
    answers = []

    def ask():
        with suppress(Exception):
            answers.append(huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT))

    # In a thread, since looking up a host name can take longer than any timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    return bool(answers)
