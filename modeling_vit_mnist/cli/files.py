"""Files that are written completely or not at all."""

import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UsageError

LOCK_FILE = ".lock"
# A folder of complete new files that have not all been moved to their places yet, and the list of files to delete.
COMPLETE, STALE = ".complete", ".stale"


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
def replacing_files(folder: Path, owned: Collection[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; on success, move its files into `folder`, and delete those files there
    that match a glob pattern in `owned` and were not written again. On an error, the files in `folder` are unchanged.
    If the process is killed while it moves files, [`finish_replacing`] does the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    finish_replacing(folder)
    staging = folder / f".saving-{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir()
        yield staging
        written = {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()}
        old = {path.relative_to(folder) for pattern in owned for path in folder.glob(pattern) if path.is_file()}
        (staging / STALE).write_text("\n".join(sorted(map(str, old - written))), encoding="utf-8")
        staging.rename(folder / COMPLETE)
        finish_replacing(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def finish_replacing(folder: Path) -> None:
    """Move the files of a [`replacing_files`] that was killed after all of them were written."""
    complete = folder / COMPLETE
    if not complete.is_dir():
        return
    stale = complete / STALE
    for name in stale.read_text(encoding="utf-8").splitlines() if stale.is_file() else ():
        (folder / name).unlink(missing_ok=True)
    for path in sorted(complete.rglob("*")):
        if path.is_file() and path != stale:
            target = folder / path.relative_to(complete)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(complete)


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` if it does not exist, and keep other processes from locking it. At the end, folders that were
    created and are still empty are deleted. Raises [`UsageError`] if the folder is locked or cannot be written."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        check_writable(folder)
        lock = FileLock(folder / LOCK_FILE, blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"Another process is using {folder}: wait until it ends, or choose another folder."
            ) from error
        try:
            yield
        finally:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            lock.release()
    finally:
        with suppress(OSError):
            for path in created:
                path.rmdir()
