"""The output folder of a run: new, to be resumed, finished, or of another run.

`run.json` and `all_results.json` describe the finished checkpoint in the folder, and are only written together with
it. `unfinished_run.json` says that a run has not finished there. Each of its checkpoints holds the `run.json` of the
run, and a manifest."""

import hashlib
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save
from transformers import TrainerCallback

from ..checkpoints.card import read_run
from ..cli.errors import UsageError
from ..cli.files import remove_folder, write_text
from ..cli.inputs import read_text
from ..data.arguments import DataArguments
from ..data.augmentation import AugmentationArguments
from ..data.images import ImageDataset
from ..data.splits import fingerprint
from ..data.streaming import ImageStream
from ..modeling_vit_mnist import VitMnistForImageClassification
from .arguments import ModelArguments, VitMnistTrainingArguments
from .manifest import find_damage
from .processes import decide

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
RESULTS_FILE = "all_results.json"
UNFINISHED_FILE = "unfinished_run.json"
# Begins the names of folders with the checkpoints of a run that is being replaced.
REPLACED = ".replaced-"
# What a shell or a logger puts into the folder of a run.
LOGS = ("*.log", "*.out", "*.err", "log*.txt", "runs")
# Arguments of Trainer that decide the result of a run, and are always recorded.
DECISIVE_ARGUMENTS = (
    "seed", "data_seed", "num_train_epochs", "max_steps", "total_train_batch_size", "optim", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "metric_for_best_model",
    "greater_is_better", "eval_strategy", "eval_steps", "save_strategy", "load_best_model_at_end",
)  # fmt: skip
NATURAL_GRADIENT_ARGUMENTS = ("damping", "final_damping", "fisher_update_interval", "fisher_batch_size")
# Further ones, which are recorded if they differ from their default.
RARE_ARGUMENTS = (
    "optim_args", "eval_delay", "save_steps", "dataloader_drop_last", "train_sampling_strategy", "neftune_noise_alpha",
    "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode",
)  # fmt: skip
# What may differ between a run and the one that it continues from a checkpoint.
LENGTH = ("num_train_epochs", "max_steps", "resumed_weights")
# The kinds of files that Trainer writes into a checkpoint.
SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".bin", ".py")
# Names of what a run started from, which do not decide its result.
NAMES = ("source", "fine_tuned_from", "resumed_from")


def describe_run(
    model: VitMnistForImageClassification, model_args: ModelArguments, data_args: DataArguments,
    augmentation: AugmentationArguments, args: VitMnistTrainingArguments,
    datasets: dict[str, ImageDataset | ImageStream],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Everything that decides the result of a run, as JSON values, and the names of what it started from. Data and
    initial weights are identified by their content, so two runs are the same if all but [`NAMES`] is equal."""
    network = json.loads(model.config.to_json_string())
    for name in ("auto_map", "transformers_version", "architectures", "dtype", "digit_score_threshold"):
        network.pop(name, None)
    network["whiten_patches"] = model_args.whiten_patches and not model_args.model_name_or_path
    if model_args.model_name_or_path:  # a folder by its name alone, since the record is pushed to the Hub
        folder = Path(model_args.model_name_or_path)
        network["fine_tuned_from"] = folder.resolve().name if folder.is_dir() else model_args.model_name_or_path
        network["initial_weights"] = hashlib.sha256(save(model.state_dict())).hexdigest()[:16]
    data: dict[str, Any] = {name: len(split) for name, split in datasets.items()}
    # With --max_eval_samples, fewer are measured than were taken from the train split.
    data |= {f"{name}_held_out": split.held_out for name, split in datasets.items() if split.held_out > len(split)}
    data |= {"source": datasets["train"].source, "content": fingerprint(datasets), "split_seed": data_args.split_seed}
    if data_args.streaming:
        data["streaming"] = True
    settings = json.loads(datasets["train"].processor.to_json_string())
    names = DECISIVE_ARGUMENTS + (NATURAL_GRADIENT_ARGUMENTS if args.optim == "natural_gradient" else ())
    training = {name: getattr(args, name) for name in names}
    defaults = {name: field.default for name, field in type(args).__dataclass_fields__.items()}
    training |= {name: getattr(args, name) for name in RARE_ARGUMENTS if getattr(args, name) != defaults[name]}
    checkpoint = chosen_checkpoint(args)
    if checkpoint is not None and not _is_in(Path(args.output_dir), checkpoint):
        training["resumed_from"] = f"{checkpoint.resolve().parent.name}/{checkpoint.name}"
        training["resumed_weights"] = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()[:16]
    warps = vars(augmentation) if augmentation.is_on else {}
    run = {"model": network, "data": data, "processor": settings, "augmentation": warps, "training": training}
    return json.loads(json.dumps(run, default=str))


def chosen_checkpoint(args: VitMnistTrainingArguments) -> Path | None:
    """The checkpoint folder that `--resume_from_checkpoint` names; `None` for the default, the last one in the output
    folder, which `True` means too. Raises [`UsageError`] if training cannot resume from the folder."""
    chosen = str(args.resume_from_checkpoint or True)
    if chosen.lower() in ("true", "yes"):
        return None
    if chosen.lower() in ("false", "no"):
        raise UsageError("--resume_from_checkpoint takes a folder or True. To train anew, pass --overwrite.")
    checkpoint = Path(chosen)
    if not checkpoint.exists() and _is_in(Path(args.output_dir), checkpoint) and own_checkpoints(checkpoint.parent):
        logger.warning("%s is gone: going on from the last checkpoint beside it.", checkpoint)
        return None
    if damage := find_damage(checkpoint):
        raise UsageError(f"Cannot resume from {chosen}: {damage}.")
    return checkpoint


def _is_in(folder: Path, checkpoint: Path) -> bool:
    return checkpoint.resolve().parent == folder.resolve()


def prepare_output_dir(folder: Path, run: dict, args: VitMnistTrainingArguments) -> Path | None:
    """Record `run`, as [`describe_run`] returns it, in the output folder.

    Returns `None` to start, the checkpoint to resume from, or the results file of this run if it has finished. Raises
    [`UsageError`] if the folder holds another run, or something else, and `--overwrite` was not given. `--overwrite`
    keeps a finished checkpoint, and the checkpoints of an unfinished run, until the new result is complete. It resumes
    a run that was cut off while replacing them.
    """
    finished = None
    if (folder / RESULTS_FILE).is_file() and not args.overwrite:
        try:
            finished, _ = read_run(folder)
        except UsageError as error:
            raise UsageError(f"{error}. Pass --overwrite to train it again.") from error
    unfinished, last = _find_unfinished(folder)
    is_unfinished = unfinished is not None and not any(differences(unfinished, run))
    if finished and not any(differences(finished, run)):
        if is_unfinished:  # killed before it cleaned up, or while it trained again
            close_run(folder, args)
        return folder / RESULTS_FILE
    checkpoint = chosen_checkpoint(args)
    if is_unfinished:  # its last checkpoint comes after the one of another folder that it started from
        return checkpoint if checkpoint is not None and _is_in(folder, checkpoint) else last or checkpoint
    if not args.overwrite:
        _check_unused(folder, unfinished or finished, run, last)
    if checkpoint is not None:
        _check_continues(checkpoint, run, args)
        if _is_in(folder, checkpoint):
            raise UsageError(f"--overwrite would replace {checkpoint}: pass another --output_dir.")
    _set_aside(folder)
    write_text(folder / UNFINISHED_FILE, json.dumps(run, indent=2) + "\n")
    if args.resume_from_checkpoint and checkpoint is None:
        logger.warning("%s holds no checkpoint of this run: starting from the beginning.", folder)
    return checkpoint


def _find_unfinished(folder: Path) -> tuple[dict | None, Path | None]:
    """The record of the run that has not finished in a folder, and its last whole checkpoint."""
    if not (folder / UNFINISHED_FILE).exists() and (folder / RESULTS_FILE).is_file():
        return None, None
    last = last_complete_checkpoint(folder)
    return _read(folder / UNFINISHED_FILE if last is None else last / RUN_FILE), last


def _set_aside(folder: Path) -> None:
    """Move the checkpoints of another run out of the way until [`close_run`]."""
    checkpoints = own_checkpoints(folder)
    if not checkpoints:
        return
    aside = folder / f"{REPLACED}{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    logger.warning("The checkpoints that were in %s are kept in %s until this run has finished.", folder, aside)
    for checkpoint in checkpoints:
        checkpoint.rename(aside / checkpoint.name)


def close_run(folder: Path, args: VitMnistTrainingArguments) -> None:
    """Delete what only resuming needs from the folder of a finished run, and what it has replaced."""
    if not args.keep_checkpoints:
        for checkpoint in own_checkpoints(folder):
            remove_folder(checkpoint)
    for replaced in folder.glob(f"{REPLACED}*"):
        shutil.rmtree(replaced)
    (folder / UNFINISHED_FILE).unlink(missing_ok=True)  # last: it says that there may be something to delete


def own_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that Trainer wrote to the folder, latest first: neither `checkpoint-best`, for one, nor a folder
    with files of another kind."""
    named = (path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[1-9]\d*", path.name))
    own = [path for path in named if path.is_dir() and all(file.suffix in SUFFIXES for file in path.iterdir())]
    return sorted(own, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that training can resume from. transformers' `get_last_checkpoint` would also return one
    that a killed run left incomplete."""
    for checkpoint in own_checkpoints(folder):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("Skipping %s: %s.", checkpoint, damage)
    return None


def differences(previous: dict, run: dict, besides: Collection[str] = ()) -> Iterator[str]:
    """What makes `run` another run than `previous`, but for the settings in `besides`, in words."""
    for part in run:
        there, here = previous.get(part), run[part]
        there = there if isinstance(there, dict) else {}
        for name in sorted(there.keys() | here.keys()):
            if name in (*NAMES, *besides) or there.get(name) == here.get(name):
                continue
            if name == "content":
                yield f"other images or labels, of {there.get('source')} there, of {here['source']} here"
            elif name in ("initial_weights", "resumed_weights"):
                yield "other initial weights"
            else:
                yield f"{name} {there.get(name)} there, {here.get(name)} here"


class RunFolderCallback(TrainerCallback):
    """Keeps the last `limit` checkpoints of a run and the best one. Trainer would also delete folders of the user that
    are named like `checkpoint-best`. Finds the best checkpoint again in a folder that has moved."""

    def __init__(self, resumed: Path | None, limit: int | None):
        self.resumed, self.limit = resumed, limit

    def on_train_begin(self, args, state, control, **kwargs):
        if self.resumed is None or state.best_global_step is None:
            return
        state.best_model_checkpoint = decide(args, self._find_best, state)
        if state.best_model_checkpoint is None and args.load_best_model_at_end:
            state.best_metric = state.best_global_step = None

    def _find_best(self, state) -> str | None:
        best = self.resumed.parent / f"checkpoint-{state.best_global_step}"
        elsewhere = [Path(state.best_model_checkpoint)] if state.best_model_checkpoint else []
        damage = [find_damage(path) for path in (best, *elsewhere)]
        if None in damage:
            return str((best, *elsewhere)[damage.index(None)])
        logger.warning("The best checkpoint so far, %s, is lost: %s. Selecting among those to come.", best, damage[0])
        return None

    def on_save(self, args, state, control, **kwargs):
        if self.limit and state.is_world_process_zero:
            best = f"checkpoint-{state.best_global_step}"
            latest = f"checkpoint-{state.global_step}"  # a run that went back has later ones
            others = [path for path in own_checkpoints(Path(args.output_dir)) if path.name != latest]
            keep = max(self.limit - 1, any(path.name == best for path in others))
            others.sort(key=lambda path: path.name != best)  # stable: the best one first, then the latest
            for old in others[keep:]:
                remove_folder(old)


def _read(path: Path) -> dict | None:
    """A JSON record; `None` if it is missing or unreadable."""
    try:
        record = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _check_unused(folder: Path, previous: dict | None, run: dict, last: Path | None) -> None:
    """Raise [`UsageError`] if the folder holds another run, or files that no run has written. Hidden files and logs do
    not count, nor does a run that ended before its first checkpoint."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != UNFINISHED_FILE]
    if all(any(path.match(pattern) for pattern in LOGS) or _is_our_output(path) for path in visible):
        return
    numbers = itertools.count(2)
    other = next(name for number in numbers if not Path(name := f"{folder}-{number}").exists())
    other = f"--output_dir {shlex.quote(other)}"
    advice = f"pass {other} to keep it, or --overwrite to replace it"
    if previous is None:
        raise UsageError(f"{folder} is not empty and holds no run: {advice}.")
    reasons = "; ".join(itertools.islice(differences(previous, run), 3))
    if all(previous.get(part) == run[part] for part in run if part != "training"):
        if last is not None:
            resume = f"--resume_from_checkpoint {shlex.quote(str(last))}"
            advice += f". To go on from its last checkpoint, pass {other} {resume}"
        elif (folder / "model.safetensors").is_file():
            advice += f". To train its model further, pass {other} --model_name_or_path {shlex.quote(str(folder))}"
    raise UsageError(f"{folder} holds a different run ({reasons}): {advice}.")


def _is_our_output(path: Path) -> bool:
    """Whether a shell directs the output of this process to a file."""
    for descriptor in (1, 2):
        with suppress(OSError):  # a closed stream
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return True
    return False


def _check_continues(checkpoint: Path, run: dict, args: VitMnistTrainingArguments) -> None:
    """Raise [`UsageError`] unless `run` is the run of the checkpoint, but longer. Optimizer, schedule and the best
    metric so far come from the checkpoint, so other settings would have no effect."""
    record = _read(checkpoint / RUN_FILE)
    reason: str | None = "it holds no record of its run"
    if record is not None:
        reason = next(differences(record, run, besides=LENGTH), None)
    state = _read(checkpoint / "trainer_state.json")
    limit, done = ("max_steps", "global_step") if args.max_steps > 0 else ("num_train_epochs", "epoch")
    if reason is None and state[done] >= getattr(args, limit):
        raise UsageError(f"{checkpoint} is at {done} {state[done]:g} already: pass a larger --{limit}.")
    if reason is not None:
        raise UsageError(
            f"Cannot continue {checkpoint} as another run ({reason}). To train its weights further with these "
            f"settings, pass --model_name_or_path {shlex.quote(str(checkpoint))}."
        )
