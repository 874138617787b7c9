"""Files that others may have made: regular ones, of a size that can be read."""

import math
import os
import stat
from pathlib import Path
from typing import Any

from .errors import UsageError

MAX_RECORD_BYTES = 2**25  # of JSON: the history of a run of some 100,000 epochs
MAX_VALUES = 100_000  # in YAML, whose aliases can repeat a value a billion times in a few lines


def check_regular(path: str | os.PathLike) -> None:
    """Raise [`UsageError`] for a pipe, a device or a socket, which may never end. A missing file passes."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{path} is a pipe or a device, not a regular file.")


def read_text(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> str:
    """The text of a UTF-8 file. Raises [`UsageError`] if it is not a regular file, or larger than `max_bytes`, besides
    `OSError` and `UnicodeDecodeError`."""
    check_regular(path)
    with open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UsageError(f"{path} is too large: more than {max_bytes:,} bytes.")
    return content.decode("utf-8")


def check_values(path: Path | str, value: Any) -> None:
    """Raise [`UsageError`] if what YAML stands for has more than [`MAX_VALUES`] values, with each alias in full. A
    thousand characters of text count as a value."""
    sizes: dict[int, float] = {}

    def size_of(part: Any) -> float:
        if isinstance(part, (str, bytes)):
            return 1 + len(part) / 1000
        if not isinstance(part, (dict, list, tuple, set)):
            return 1
        if id(part) not in sizes:
            sizes[id(part)] = math.inf  # of a value that holds itself
            items = [*part.keys(), *part.values()] if isinstance(part, dict) else part
            sizes[id(part)] = 1 + sum(map(size_of, items))
        return sizes[id(part)]

    if size_of(value) > MAX_VALUES:
        raise UsageError(f"{path} holds more than {MAX_VALUES:,} values.")
