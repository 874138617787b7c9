"""Several processes: what the main one finds decides for all, and none outlives its launcher."""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from .arguments import VitMnistTrainingArguments

LAUNCHER_CHECK_SECONDS = 2.0


def decide(args: VitMnistTrainingArguments, function: Callable, *arguments: Any) -> Any:
    """What `function` returns or raises in the main process, in every process. The others have no access to its disk,
    and may find something else on theirs. They exit silently where the main process reports an error."""
    if args.world_size == 1:
        return function(*arguments)
    outcome: list[Any] = [None, None]
    failure = None
    if args.process_index == 0:
        try:
            outcome[0] = function(*arguments)
        except Exception as error:
            outcome[1], failure = type(error).__name__, error
    broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        sys.exit(1)
    return outcome[0]


@contextmanager
def shared(args: VitMnistTrainingArguments, checkpoint: Path | None) -> Iterator[Path | None]:
    """Yield a folder with the files of the main process's `checkpoint`: a copy in the others."""
    files = decide(args, _read_files, checkpoint) if args.world_size > 1 and checkpoint is not None else {}
    if args.process_index == 0 or checkpoint is None:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as copy:
        for name, content in files.items():
            Path(copy, name).write_bytes(content)
        yield Path(copy)


def _read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def watch_launcher() -> None:
    """End this process if the launcher that started it ends: nothing else would."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # of accelerate launch and torchrun
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(LAUNCHER_CHECK_SECONDS)
        rank = os.environ.get("RANK")
        print(f"error: The launcher of process {rank} has ended. The same command resumes the run.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
