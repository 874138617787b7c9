"""Files that are written completely or not at all."""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, rename it to `path` atomically. On an error, `path` is
    unchanged.

    The temporary name has the suffix of `path`, for writers that choose a format by it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path, last: Collection[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; on success, move its files into `folder`, those named in `last` last.
    On an error, the files in `folder` are unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".saving-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir()
        yield staging
        files = (path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
        for file in sorted(files, key=lambda file: (str(file) in last, file)):
            (folder / file).parent.mkdir(exist_ok=True)
            os.replace(staging / file, folder / file)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file."""
    with replacing(path) as staging:
        staging.write_text(text, encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Create `folder` if it does not exist, and check that files can be written there. Raises [`UsageError`] if not: a
    long run should fail at its start."""
    try:
        with replacing(folder / ".writable") as staging:
            staging.touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise UsageError(f"Cannot write to the folder {folder}: {error.strerror}.") from error
