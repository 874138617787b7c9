"""Several processes: what the main one finds decides for all."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from .arguments import VitMnistTrainingArguments


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
    files: dict[str, bytes] = {}
    if args.world_size > 1 and checkpoint is not None:
        files = decide(args, lambda: {path.name: path.read_bytes() for path in checkpoint.iterdir()})
    if args.process_index == 0 or checkpoint is None:
        yield checkpoint
        return
    with tempfile.TemporaryDirectory() as copy:
        for name, content in files.items():
            Path(copy, name).write_bytes(content)
        yield Path(copy)
