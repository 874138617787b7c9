"""Files and folders that are written completely or not at all, whenever the process is killed or the power fails."""

import ctypes
import errno
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UsageError

LOCK_FILE = ".lock"
# Begins the name of whatever is being written or deleted. A kill leaves it behind, and [`locked`] deletes it.
SAVING = ".saving-"
# A folder of complete new files that have not all been moved to their places yet, and the list of files to delete.
COMPLETE, STALE = ".complete", ".stale"


def _temporary(path: Path) -> Path:
    """A new name beside `path`, with its suffix, for writers that choose a format by it."""
    return path.with_name(f"{SAVING}{uuid.uuid4().hex[:8]}-{path.name}")


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if os.name == "nt":  # which opens no folder, and syncs only what is open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Wait until a folder and all in it are on the disk. In parallel, this takes a third of the time."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(sync, [folder, *folder.rglob("*")]))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, rename it to `path` atomically. On an error, `path` is
    unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _temporary(path)
    try:
        yield staging
        sync(staging)
        os.replace(staging, path)
        sync(path.parent)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder with the name of `path` in a temporary folder beside it; on success, rename it to `path`
    atomically. On an error, `path` is unchanged. A folder that is there is deleted just before."""
    holder = _temporary(path)
    staging = holder / path.name
    try:
        staging.mkdir(parents=True)
        yield staging
        sync_all(staging)
        if path.is_dir():
            remove_folder(path)
        staging.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder. A kill meanwhile leaves no part of it under its name."""
    doomed = _temporary(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


@contextmanager
def replacing_files(folder: Path, owned: Collection[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; on success, move its files into `folder`, and delete those files there
    that match a glob pattern in `owned` and were not written again. On an error, the files in `folder` are unchanged.
    If the process is killed after all files are written, [`finish_replacing`] does the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    finish_replacing(folder)
    staging = folder / f"{SAVING}{uuid.uuid4().hex[:8]}"
    try:
        staging.mkdir()
        yield staging
        written = {path.relative_to(staging) for path in staging.rglob("*") if path.is_file()}
        old = {path.relative_to(folder) for pattern in owned for path in folder.glob(pattern) if path.is_file()}
        (staging / STALE).write_text("\n".join(sorted(map(str, old - written))), encoding="utf-8")
        sync_all(staging)
        staging.rename(folder / COMPLETE)
        sync(folder)
        finish_replacing(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def finish_replacing(folder: Path) -> None:
    """Bring the complete new files of a [`replacing_files`] to their places: on Linux in one step, elsewhere and where
    the system refuses it one by one."""
    if (folder / COMPLETE).is_dir() and not _exchange(folder.resolve()):
        _move_complete(folder)


def _move_complete(folder: Path) -> None:
    complete = folder / COMPLETE
    stale = complete / STALE
    for name in stale.read_text(encoding="utf-8").splitlines() if stale.is_file() else ():
        (folder / name).unlink(missing_ok=True)
    for path in sorted(complete.rglob("*")):
        if path.is_file() and path != stale:
            target = folder / path.relative_to(complete)
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(complete)
    sync(folder)


def _exchange(folder: Path) -> bool:
    """Put the new state of `folder` together beside it, from hard links to the files of both, and exchange the two
    folders in one step. Returns `False`, with `folder` unchanged, if this is impossible: it needs Linux, a file system
    with hard links and such an exchange (NFS has none), and rights in the parent folder, and fails for a mount point.
    """
    if sys.platform != "linux" or Path.cwd().is_relative_to(folder):  # a shell there would be in a deleted folder
        return False
    beside = _beside(folder)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        unfinished = shutil.ignore_patterns(f"{SAVING}*")
        shutil.copytree(folder, beside, symlinks=True, copy_function=os.link, ignore=unfinished)
        _move_complete(beside)
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <fcntl.h> and <stdio.h>
        if rename(here, os.fsencode(beside), here, os.fsencode(folder), exchange):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
        sync(folder.parent)
        return True
    except (OSError, AttributeError):  # AttributeError: a C library without the function
        return False
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{SAVING}{folder.name}")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file."""
    with replacing(path) as staging:
        staging.write_text(text, encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Create `folder` if it does not exist, and check that files can be written there. Raises [`UsageError`] if not: a
    long run should fail at its start."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # without a name, so that a kill leaves nothing
            pass
    except OSError as error:
        raise UsageError(f"Cannot write to the folder {folder}: {error.strerror}.") from error


def check_space(folder: Path, error: Exception) -> None:
    """After an `error` of writing, raise an `OSError` that names the reason if nothing can be written to `folder`."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as reason:
        message = f"Cannot save to the disk: {reason.strerror}. What was there is unchanged. Free some space there"
        raise OSError(reason.errno, f"{message}, and run the same command again", str(folder)) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` if it does not exist, keep other processes from locking it, and clear up what killed ones left
    there. At the end, folders that were created and are still empty are deleted. Raises [`UsageError`] if the folder
    is locked or cannot be written."""
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
            _clear_up(folder)
            yield
        finally:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            lock.release()
    finally:
        with suppress(OSError):
            for path in created:
                path.rmdir()


def _clear_up(folder: Path) -> None:
    """Delete what was being written when a process was killed, and finish a [`replacing_files`]."""
    for path in (_beside(folder.resolve()), *folder.glob(f"{SAVING}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finish_replacing(folder)
