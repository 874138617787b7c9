"""
The folder of a training run: whose it is, whether the run has finished, and where it can be resumed.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import TrainingArguments

from .errors import InputError
from .files import write_text


logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
RESULTS_FILE = "all_results.json"
# What Trainer puts into a checkpoint that training can go on from.
CHECKPOINT_FILES = ("config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def prepare_output_dir(folder: Path, run: dict, args: TrainingArguments) -> Path | None:
    """
    Decide what to do with what the output folder holds, and sign it with `run`, the description of the run to come.

    Args:
        folder: The output folder.
        run: Everything that decides how the run turns out, by part and name; two equal ones are the same run.
        args: With `overwrite`; `resume_from_checkpoint` names the checkpoint instead.

    Returns:
        `None` to start anew, the checkpoint to resume from, or the results file of this run where it has finished.

    Raises:
        InputError: it holds a different run, or something else, and `--overwrite` was not given.
    """
    if args.resume_from_checkpoint:
        checkpoint = Path(args.resume_from_checkpoint)
        if missing := [name for name in CHECKPOINT_FILES if not (checkpoint / name).is_file()]:
            raise InputError(f"{checkpoint} is no complete checkpoint: {missing[0]} is missing.")
        _write_run(folder, run, args)
        return checkpoint
    if args.overwrite:
        if args.process_index == 0:
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            for name in (RESULTS_FILE, RUN_FILE):
                (folder / name).unlink(missing_ok=True)
    elif folder.is_dir() and any(folder.iterdir()):
        try:
            previous = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder} is not empty and holds no run: choose another --output_dir or pass --overwrite."
            ) from error
        if differences := list(_differences(previous, run)):
            raise InputError(
                f"{folder} holds a different run ({'; '.join(differences[:3])}): choose another --output_dir or pass "
                "--overwrite."
            )
        if (folder / RESULTS_FILE).is_file():
            return folder / RESULTS_FILE
        return last_complete_checkpoint(folder)
    _write_run(folder, run, args)
    return None


def _differences(previous: dict, run: dict) -> Iterator[str]:
    for part in run:
        for name in sorted(previous.get(part, {}).keys() | run[part].keys()):
            there, here = previous.get(part, {}).get(name), run[part].get(name)
            if there != here:
                yield f"{name} {there} there, {here} here"


def _write_run(folder: Path, run: dict, args: TrainingArguments) -> None:
    if args.process_index == 0:
        write_text(folder / RUN_FILE, json.dumps(run, indent=2) + "\n")


def last_complete_checkpoint(folder: Path) -> Path | None:
    """
    The latest checkpoint that training can go on from. A run killed while it saved leaves an incomplete one, which
    transformers' `get_last_checkpoint` would take.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        except (OSError, ValueError):
            logger.warning("Skipping %s, which is incomplete.", checkpoint)
            continue
        if all((checkpoint / name).is_file() for name in CHECKPOINT_FILES):
            return checkpoint
    return None
