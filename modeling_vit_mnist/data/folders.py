"""Datasets in folders: images, tables, saved by `datasets`, or IDX files."""

import atexit
import errno
import glob
import gzip
import logging
import math
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet
from datasets.data_files import (
    FILES_TO_IGNORE,
    NON_WORDS_CHARS,
    SPLIT_KEYWORDS,
    DataFilesDict,
    DataFilesList,
    sanitize_patterns,
)
from datasets.info import DatasetInfosDict
from datasets.load import infer_module_for_data_files
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.utils.metadata import MetadataConfigs

from ..cli.errors import UsageError
from ..cli.files import check_writable
from ..cli.inputs import check_regular, check_values, read_text
from .images import image_suffixes

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
MAX_CARD_BYTES = 2**22  # the names of 20,000 classes take a fifth of it
TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl")
SHARD = r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\..*"  # a file of a split in `datasets`' own layout
RawDatasets = dict[str, Any]  # DatasetDict or IterableDatasetDict


def load_from_folder(folder: Path, streaming: bool) -> Any:
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file: a dataset is a folder.")
    if "::" in str(folder.resolve()):  # fsspec takes it for an address inside an archive
        raise UsageError(f"datasets cannot read a folder with '::' in its path: rename {folder.resolve()}.")
    try:
        if not _is_utf8(str(folder.resolve())):
            folder, _ = _link_utf8(folder.resolve(), [path.relative_to(folder) for path in folder.iterdir()])
        listed = list_files(folder.resolve())
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(folder))
        saved = [part for part in sorted(folder.iterdir()) if (part / "state.json").is_file()]
        if saved:
            return {part.name: datasets.load_from_disk(str(part)) for part in saved}
        return _load_idx(folder) or _load_files(folder, listed, streaming)
    except UsageError:
        raise
    except datasets.exceptions.DataFilesNotFoundError as error:
        raise UsageError(
            f"Cannot read the dataset in {folder}: it holds no tables, no images and no MNIST files "
            "(train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte)."
        ) from error
    except Exception as error:  # each format raises exceptions of its own
        blame(error, str(folder))


def _load_files(folder: Path, listed: list[Path], streaming: bool) -> RawDatasets:
    """A folder of images or tables. The files are listed here, since `datasets` takes characters such as "[" of a path
    for a pattern, and takes two folders of one name whose cards are equal for one dataset."""
    root = folder.resolve()
    if not listed:
        advice = f"put images into a folder per class, such as {folder / 'train' / '0' / 'a.png'}"
        raise UsageError(f"Cannot read the dataset in {folder}: it is empty. To train on images of yours, {advice}.")
    if not all(_is_utf8(str(file)) for file in listed):
        card_file = [Path("README.md")] if (root / "README.md").exists() else []
        root, listed = _link_utf8(root, card_file + listed)
    card = _read_card(root)
    name, features, splits = card or (None, None, {})
    splits = splits or _split_files(_choose_files(listed, folder), folder)
    lists = {}
    for split, files in splits.items():
        stats = [(root / file).stat() for file in files]
        origins = [(f"{stat.st_mtime_ns} {stat.st_size}",) for stat in stats]  # a changed file is read again
        lists[split] = DataFilesList([str(root / file) for file in files], origins)
    schemas = {
        split: {_class_names(root / file) for file in files if file.suffix == ".parquet"}
        for split, files in splits.items()
    }
    for split, found in schemas.items():
        if len(found) > 1 and features is None:
            raise UsageError(f"The files of the {split} split in {folder} name their classes differently.")
    options: dict[str, Any] = {"path": str(root), "name": name, "features": features, "streaming": streaming}
    if card is None:  # `datasets` would read it, too
        options["path"], more = infer_module_for_data_files(DataFilesDict(lists), str(root))
        options |= more
    if len(set(chain(*schemas.values()))) < 2 or features is not None:
        raw = datasets.load_dataset(**options, data_files=lists)
    else:  # loaded at once, all splits would get the class names of the first
        raw = {
            split: datasets.load_dataset(**options, data_files={split: lists[split]}, split=split) for split in lists
        }
    images = [file for file in chain(*splits.values()) if file.suffix.lower() in ImageFolder.EXTENSIONS]
    if images and all(len(dataset.features) == 1 for dataset in raw.values()):
        examples = dict.fromkeys(str(pick(images, key=lambda file: len(file.parts))) for pick in (min, max))
        tables = [file for file in listed if file.suffix in TABLES]
        raise UsageError(
            f"The images in {folder} have no labels: they need two or more class folders, all at one depth (found "
            f"{' and '.join(examples)}), or a metadata.csv with the columns file_name and label"
            + (f" (found {tables[0]})." if tables else ".")
        )
    return raw


def _is_utf8(path: str) -> bool:
    return path == path.encode("utf-8", "replace").decode()


def _link_utf8(root: Path, files: list[Path]) -> tuple[Path, list[Path]]:
    """A temporary folder of links to files and folders of `root`, and their names there, which are UTF-8: `datasets`
    reads no others."""
    links = Path(tempfile.mkdtemp(prefix="vit-mnist-")).resolve()
    atexit.register(shutil.rmtree, links, ignore_errors=True)
    named = {re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:X}", str(file)): file for file in files}
    for name, file in named.items():
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        (links / name).symlink_to(root / file)
    return links, [Path(name) for name in named]


def _read_card(root: Path) -> tuple[str | None, datasets.Features | None, dict[str, list[Path]]] | None:
    """Name of the default configuration in the dataset card, features of its columns, and files of its splits, as far
    as the card holds them. Warns of a README.md that is no dataset card, and returns `None`."""
    if not (root / "README.md").is_file():
        return None, None, {}
    try:
        text = read_text(root / "README.md", MAX_CARD_BYTES)
        check_values(root / "README.md", huggingface_hub.metadata_load(root / "README.md"))
        data = huggingface_hub.DatasetCard(text).data
        configs, infos = MetadataConfigs.from_dataset_card_data(data), DatasetInfosDict.from_dataset_card_data(data)
    except Exception as error:  # of the encoding, of YAML, or of what it describes
        logger.warning("Ignoring %s, which is no dataset card: %s", root / "README.md", " ".join(str(error).split()))
        return None
    name = configs.get_default_config_name() if configs else next(iter(infos), "default")
    if name is None:
        raise UsageError(f"The card of {root} lists configurations without a default: {', '.join(configs)}.")
    features = infos[name].features if name in infos else None
    config = configs.get(name, {})
    if "data_files" not in config:
        return (name if configs else None), features, {}
    base = glob.escape((root / config.get("data_dir", "")).as_posix())
    files = DataFilesDict.from_patterns(sanitize_patterns(config["data_files"]), base_path=base)
    return name, features, {split: [Path(file) for file in files[split]] for split in files}


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` without hidden folders, following links, but not those that lead back to a folder on the way or above
    it. Raises [`UsageError`] if a folder cannot be read."""

    def fail(error: OSError) -> NoReturn:
        raise UsageError(f"Cannot read the folder {error.filename}: {error.strerror}.") from error

    ways: dict[str, list[Path]] = {}  # from the root to each folder, without links
    for directory, folders, names in os.walk(root, onerror=fail, followlinks=True):
        way = [*ways.pop(directory, []), Path(directory).resolve()]
        targets = {name: Path(directory, name).resolve() for name in folders if not name.startswith(".")}
        folders[:] = [
            name for name, target in targets.items() if not any(place.is_relative_to(target) for place in way)
        ]
        ways |= {os.path.join(directory, name): way for name in folders}
        yield directory, folders, names


def list_files(root: Path) -> list[Path]:
    """The files in a folder, relative to it, in the order of their paths, without what `datasets` ignores. Raises
    [`UsageError`] for a pipe or a device among them."""
    files = []
    for directory, folders, names in walk(root):
        folders[:] = [name for name in folders if not name.startswith("__")]
        files += [Path(directory, name).relative_to(root) for name in names if not name.startswith(".")]
    ignored = {*FILES_TO_IGNORE, "Thumbs.db", "desktop.ini"}
    for file in files:
        check_regular(root / file)
    return sorted((file for file in files if file.name not in ignored), key=Path.as_posix)


def _choose_files(files: list[Path], folder: Path) -> list[Path]:
    """The images and their metadata, or the tables of the most common kind. Warns of other files beside images, and of
    images and other tables beside tables."""
    suffixes = image_suffixes() & set(ImageFolder.EXTENSIONS)
    images = [file for file in files if file.suffix.lower() in suffixes]
    metadata = [file for file in files if file.name in ImageFolder.METADATA_FILENAMES]
    kinds = Counter(file.suffix for file in files if file.suffix in TABLES and file not in metadata)
    if len(images) > kinds[".parquet"] and len(images) >= kinds.total():  # each image may have a JSON file beside it
        kind, chosen, others = "images", {*images, *metadata}, files
    else:
        suffix = max(kinds, key=lambda suffix: (kinds[suffix], suffix == ".parquet"), default=None)
        kind, chosen = f"{suffix} files", {file for file in files if suffix in (None, file.suffix)}
        others = [file for file in files if file.suffix.lower() in suffixes or file.suffix in TABLES]
    if left := [file for file in others if file not in chosen]:
        logger.warning("Ignoring %d files in %s that are no %s, such as %s.", len(left), folder, kind, left[0])
    return [file for file in files if file in chosen]


def _split_files(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """The files of each split, by the names of folders, else of files, as in `datasets`. The outermost name decides. A
    folder that holds images but neither class folders nor metadata is a class, whatever its name. Warns of files in no
    split."""
    has_metadata = any(file.name in ImageFolder.METADATA_FILENAMES for file in files)
    are_images = any(file.suffix.lower() in ImageFolder.EXTENSIONS for file in files)
    depth = -2 if are_images and not has_metadata else -1
    by_folder = {file: _split_of(file.parts[:depth]) for file in files}
    by_name = {file: _split_of(file.parts[-1:]) for file in files}
    by_shard = {file: match[1] for file in files if (match := re.fullmatch(SHARD, file.as_posix()))}
    chosen: Mapping[Path, str | None]
    if by_shard:
        chosen = {file: by_shard.get(file) for file in files}
    elif any(by_folder.values()):
        chosen = by_folder
    elif all(by_name.values()) or (any(by_name.values()) and not are_images):
        chosen = by_name
    else:
        chosen = dict.fromkeys(files, "train")
    if left := [file for file, split in chosen.items() if not split]:
        logger.warning("Ignoring %d files in %s that are in no split, such as %s.", len(left), folder, left[0])
    splits = sorted({split for split in chosen.values() if split}, key=lambda split: (split not in SPLITS, split))
    return {split: [file for file in files if chosen[file] == split] for split in splits}


def _split_of(names: tuple[str, ...]) -> str | None:
    """The split that the first of the names of folders or files with a keyword of `datasets` names, in any case."""
    for name in names:
        for split, words in SPLIT_KEYWORDS.items():
            if re.fullmatch(rf"(.*[{NON_WORDS_CHARS}])?({'|'.join(words)})([{NON_WORDS_CHARS}].*)?", name.lower()):
                return str(split)
    return None


def _class_names(file: Path) -> tuple:
    """Class names in the schema of a parquet file, by column."""
    features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file))
    return tuple((name, *kind.names) for name, kind in features.items() if isinstance(kind, datasets.ClassLabel))


def _load_idx(folder: Path) -> datasets.DatasetDict | None:
    """The four files that MNIST was published as, gzipped or not, in the folder or in `MNIST/raw` inside, where
    torchvision keeps them; `None` if there are none of them."""
    places = [
        place for place in (folder, *sorted(folder.glob("*/raw"))) if any(map(Path.is_file, place.glob("t*-ubyte*")))
    ]
    if len(places) > 1 and places[0] != folder:
        raise UsageError(f"{folder} holds several datasets: pass one of {', '.join(map(str, places))}.")
    folder = places[0] if places else folder
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
    path = next((path for path in sorted(folder.glob(pattern)) if path.is_file()), None)
    if path is None:
        return None
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            header = file.read(4 + 4 * 255)
            if len(header) < 4 or header[:3] != b"\0\0\x08":
                raise UsageError(f"{path} is not an IDX file of bytes: it begins with {header[:4].hex()}.")
            rank = header[3]
            shape = struct.unpack(f">{rank}I", header[4 : 4 + 4 * rank].ljust(4 * rank, b"\0"))
            size = 4 + 4 * rank + math.prod(shape)
            if size > max(2**28, 200 * path.stat().st_size):  # a gzip file of a few bytes can hold any number of zeros
                raise UsageError(f"{path} is no IDX file: it would have {size:,} bytes.")
            content = header + file.read(max(0, size + 1 - len(header)))
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"Cannot read {path}: {error}") from error
    if len(content) != size:
        raise UsageError(f"{path} is cut off or too long: {len(content)} bytes for the shape {shape}.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def blame(error: Exception, dataset: str) -> NoReturn:
    """Raise what made loading fail: an unwritable cache folder or a full disk is not the dataset's fault."""
    cause = next((cause for cause in causes(error) if isinstance(cause, OSError)), None)
    if cause is not None:
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        variable = "HF_DATASETS_CACHE" if "HF_DATASETS_CACHE" in os.environ else "HF_HOME"
        try:
            check_writable(cache)
        except UsageError as unwritable:
            raise UsageError(
                f"{str(unwritable).rstrip('.')}. datasets keeps its cache there: set {variable} to another folder."
            ) from error
        if cause.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):  # a failed write, without the name of its file
            raise OSError(cause.errno, cause.strerror, cause.filename or str(cache)) from error
        if cause.errno not in (None, errno.ENOENT):
            raise cause
    reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
    raise UsageError(f"Cannot read the dataset in {dataset}: {reason[0]}") from error
