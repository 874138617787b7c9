"""Files that are written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Give a path to write to beside `path`, and move it there when all went well; else `path` stays as it was.

    Its name ends like that of `path`, so that writers which go by the suffix do the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path, last: Collection[str] = ()) -> Iterator[Path]:
    """
    Give a folder to write to inside `folder`, and move what it holds up there when all went well, the files named in
    `last` after the others; else what `folder` held stays as it was.
    """
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
    """Write a text file, UTF-8."""
    with replacing(path) as staging:
        staging.write_text(text, encoding="utf-8")


def check_writable(folder: Path) -> None:
    """
    Make `folder` if need be.

    Raises:
        InputError: it cannot be made or written; better known before the work than after it.
    """
    try:
        with replacing(folder / ".writable") as staging:
            staging.touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be written: {error.strerror}.") from error
