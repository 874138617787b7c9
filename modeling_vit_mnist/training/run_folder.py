"""The output folder of a run: new, to be resumed, finished, or of another run.

`run.json` and `all_results.json` describe the finished checkpoint in the folder, and are only written together with
it. `unfinished_run.json` describes the run whose training checkpoints are there."""

import hashlib
import itertools
import json
import logging
import re
import shlex
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from transformers import TrainerCallback

from ..checkpoints.card import read_run
from ..cli.errors import UsageError
from ..cli.files import finish_replacing, write_text
from ..data.arguments import DataArguments
from ..data.augmentation import AugmentationArguments
from ..data.images import ImageDataset
from ..data.splits import fingerprint
from ..data.streaming import ImageStream
from ..modeling_vit_mnist import VitMnistForImageClassification
from .arguments import ModelArguments, VitMnistTrainingArguments

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
RESULTS_FILE = "all_results.json"
UNFINISHED_FILE = "unfinished_run.json"
# What Trainer writes into a checkpoint that training can resume from.
RESUMABLE_FILES = ("config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
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
    "optim_args", "optim_target_modules", "eval_delay", "save_steps", "dataloader_drop_last",
    "train_sampling_strategy", "neftune_noise_alpha", "use_liger_kernel", "tf32", "bf16_full_eval", "fp16_full_eval",
    "ignore_data_skip", "auto_find_batch_size", "label_names", "torch_compile", "torch_compile_backend",
    "torch_compile_mode",
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
    network["whiten_patches"] = model_args.whiten_patches
    if model_args.model_name_or_path:  # a folder by its name alone, since the record is pushed to the Hub
        folder = Path(model_args.model_name_or_path)
        network["fine_tuned_from"] = folder.resolve().name if folder.is_dir() else model_args.model_name_or_path
        network["initial_weights"] = hashlib.sha256(save(model.state_dict())).hexdigest()[:16]
    data: dict[str, Any] = {name: len(split) for name, split in datasets.items()}
    data |= {"source": datasets["train"].source, "content": fingerprint(datasets), "split_seed": data_args.split_seed}
    if data_args.streaming:
        data["streaming"] = True
    settings = json.loads(datasets["train"].processor.to_json_string())
    names = DECISIVE_ARGUMENTS + (NATURAL_GRADIENT_ARGUMENTS if args.optim == "natural_gradient" else ())
    training = {name: getattr(args, name) for name in names}
    defaults = {name: field.default for name, field in type(args).__dataclass_fields__.items()}
    training |= {name: getattr(args, name) for name in RARE_ARGUMENTS if getattr(args, name) != defaults[name]}
    checkpoint = chosen_checkpoint(args)
    if checkpoint is not None and checkpoint.resolve().parent != Path(args.output_dir).resolve():
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
    if damage := find_damage(Path(chosen)):
        raise UsageError(f"Cannot resume from {chosen}: {damage}.")
    return Path(chosen)


def prepare_output_dir(folder: Path, run: dict, args: VitMnistTrainingArguments) -> Path | None:
    """Record `run`, as [`describe_run`] returns it, in the output folder.

    Returns `None` to start, the checkpoint to resume from, or the results file of this run if it has finished. Raises
    [`UsageError`] if the folder holds another run, or something else, and `--overwrite` was not given. `--overwrite`
    keeps a finished checkpoint until the new one is complete, and resumes a run that was cut off while replacing it.
    """
    if args.process_index == 0:
        finish_replacing(folder)
    finished = None
    if (folder / RESULTS_FILE).is_file() and not args.overwrite:
        try:
            finished, _ = read_run(folder)
        except UsageError as error:
            raise UsageError(f"{error}. Pass --overwrite to train it again.") from error
    unfinished = _read(folder / UNFINISHED_FILE)
    is_unfinished = unfinished is not None and not any(differences(unfinished, run))
    if finished and not any(differences(finished, run)):
        if is_unfinished and args.process_index == 0:  # killed before it cleaned up, or while it trained again
            close_run(folder, args)
        return folder / RESULTS_FILE
    checkpoint = chosen_checkpoint(args)
    if is_unfinished:
        return checkpoint or last_complete_checkpoint(folder)
    if not args.overwrite:
        _check_unused(folder, unfinished or finished, run)
    if checkpoint is not None:
        _check_continues(checkpoint, run, args)
        if checkpoint.resolve().parent == folder.resolve():
            raise UsageError(f"--overwrite would delete {checkpoint}: pass another --output_dir.")
    if args.process_index == 0:
        for old in own_checkpoints(folder):
            shutil.rmtree(old)
        write_text(folder / UNFINISHED_FILE, json.dumps(run, indent=2) + "\n")
    if args.resume_from_checkpoint and checkpoint is None:
        logger.warning("%s holds no checkpoint of this run: starting from the beginning.", folder)
    return checkpoint


def close_run(folder: Path, args: VitMnistTrainingArguments) -> None:
    """Delete what only resuming needs from the folder of a finished run."""
    (folder / UNFINISHED_FILE).unlink(missing_ok=True)
    if not args.keep_checkpoints:
        for checkpoint in own_checkpoints(folder):
            shutil.rmtree(checkpoint)


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


def find_damage(checkpoint: Path) -> str | None:
    """Why training cannot resume from a checkpoint, in words."""
    for name in RESUMABLE_FILES:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            if name.endswith(".json"):
                json.loads(path.read_text(encoding="utf-8"))
            elif name.endswith(".pt"):
                torch.load(path, "cpu", weights_only=True)
            elif not all(weight.isfinite().all() for weight in load_file(path).values()):
                return f"{name} holds weights that are not finite"
        except Exception as error:  # pickle, zip and safetensors raise exceptions of their own
            return f"{name} is damaged ({type(error).__name__})"
    return None


def differences(previous: dict, run: dict, besides: Collection[str] = ()) -> Iterator[str]:
    """What makes `run` another run than `previous`, but for the settings in `besides`, in words."""
    for part in run:
        there, here = previous.get(part, {}), run[part]
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
        best = self.resumed.parent / f"checkpoint-{state.best_global_step}"
        if (best / "model.safetensors").is_file():
            state.best_model_checkpoint = str(best)
        elif args.load_best_model_at_end:
            logger.warning("The best checkpoint so far, %s, is missing: selecting among those to come.", best)
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_save(self, args, state, control, **kwargs):
        if self.limit and state.is_world_process_zero:
            best = f"checkpoint-{state.best_global_step}"
            _latest, *others = own_checkpoints(Path(args.output_dir))
            keep = max(self.limit - 1, any(path.name == best for path in others))
            others.sort(key=lambda path: path.name != best)  # stable: the best one first, then the latest
            for old in others[keep:]:
                shutil.rmtree(old)


def _read(path: Path) -> dict | None:
    """A JSON record; `None` if it is missing or unreadable."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _check_unused(folder: Path, previous: dict | None, run: dict) -> None:
    """Raise [`UsageError`] if the folder holds another run, or files that no run has written."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != UNFINISHED_FILE]
    if not visible:  # also after a run that ended before its first checkpoint
        return
    numbers = itertools.count(2)
    other = next(name for number in numbers if not Path(name := f"{folder}-{number}").exists())
    other = f"--output_dir {shlex.quote(other)}"
    advice = f"pass {other} to keep it, or --overwrite to replace it"
    if previous is None:
        raise UsageError(f"{folder} is not empty and holds no run: {advice}.")
    reasons = "; ".join(itertools.islice(differences(previous, run), 3))
    if all(previous.get(part) == run[part] for part in run if part != "training"):
        checkpoint = last_complete_checkpoint(folder)
        if checkpoint is not None:
            resume = f"--resume_from_checkpoint {shlex.quote(str(checkpoint))}"
            advice += f". To go on from its last checkpoint, pass {other} {resume}"
        elif (folder / "model.safetensors").is_file():
            advice += f". To train its model further, pass {other} --model_name_or_path {shlex.quote(str(folder))}"
    raise UsageError(f"{folder} holds a different run ({reasons}): {advice}.")


def _check_continues(checkpoint: Path, run: dict, args: VitMnistTrainingArguments) -> None:
    """Raise [`UsageError`] unless `run` is the run of the checkpoint, but longer. Optimizer, schedule and the best
    metric so far come from the checkpoint, so other settings would have no effect."""
    record = _read(checkpoint.parent / UNFINISHED_FILE) or _read(checkpoint.parent / RUN_FILE)
    reason: str | None = "its folder holds no record of its run"
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
