"""The output folder of a run: new, to be resumed, finished, or of another run."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..cli.errors import UsageError
from ..cli.files import write_text
from ..data.arguments import DataArguments
from ..data.augmentation import AugmentationArguments
from ..data.images import ImageDataset
from ..data.streaming import ImageStream
from ..modeling_vit_mnist import VitMnistForImageClassification
from .arguments import ModelArguments, VitMnistTrainingArguments

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
RESULTS_FILE = "all_results.json"
# What Trainer writes into a checkpoint that training can resume from.
RESUMABLE_FILES = ("config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
# Arguments of Trainer that decide the result of a run.
DECISIVE_ARGUMENTS = (
    "seed", "data_seed", "num_train_epochs", "max_steps", "total_train_batch_size", "optim", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "metric_for_best_model",
)  # fmt: skip
NATURAL_GRADIENT_ARGUMENTS = ("damping", "final_damping", "fisher_update_interval", "fisher_batch_size")


def describe_run(
    model: VitMnistForImageClassification, model_args: ModelArguments, data_args: DataArguments,
    augmentation: AugmentationArguments, args: VitMnistTrainingArguments,
    datasets: dict[str, ImageDataset | ImageStream],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Everything that decides the result of a run, as JSON values. Runs with equal descriptions are the same run."""
    network = json.loads(model.config.to_json_string())
    for name in ("auto_map", "transformers_version", "architectures", "dtype"):
        network.pop(name, None)
    network["whiten_patches"] = model_args.whiten_patches
    if model_args.model_name_or_path:  # a folder by its name alone, since the record is pushed to the Hub
        folder = Path(model_args.model_name_or_path)
        network["fine_tuned_from"] = folder.resolve().name if folder.is_dir() else model_args.model_name_or_path
    data: dict[str, Any] = {name: len(split) for name, split in datasets.items()}
    data |= {"source": datasets["train"].source, "split_seed": data_args.split_seed}
    if data_args.streaming:
        data["streaming"] = True
    names = DECISIVE_ARGUMENTS + (NATURAL_GRADIENT_ARGUMENTS if args.optim == "natural_gradient" else ())
    training = {name: getattr(args, name) for name in names}
    warps = vars(augmentation) if augmentation.is_on else {}
    run = {"model": network, "data": data, "augmentation": warps, "training": training}
    return json.loads(json.dumps(run, default=str))


def prepare_output_dir(folder: Path, run: dict, args: VitMnistTrainingArguments) -> Path | None:
    """Record `run`, as [`describe_run`] returns it, in the output folder.

    Returns `None` to start, the checkpoint to resume from, or the results file of this run if it has finished. Raises
    [`UsageError`] if the folder holds another run, or something else, and `--overwrite` was not given."""
    checkpoint = Path(args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    if checkpoint is not None:
        if missing := [name for name in RESUMABLE_FILES if not (checkpoint / name).is_file()]:
            raise UsageError(f"{checkpoint} is not a complete checkpoint: {missing[0]} is missing.")
    elif args.overwrite:
        if args.process_index == 0:
            for old in folder.glob("checkpoint-*"):
                shutil.rmtree(old)
            for name in (RESULTS_FILE, RUN_FILE):
                (folder / name).unlink(missing_ok=True)
    elif folder.is_dir() and any(folder.iterdir()):
        advice = "choose another --output_dir or pass --overwrite."
        try:
            previous = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder} is not empty and holds no run: {advice}") from error
        if differences := list(_differences(previous, run)):
            raise UsageError(f"{folder} holds a different run ({'; '.join(differences[:3])}): {advice}")
        if (folder / RESULTS_FILE).is_file():
            return folder / RESULTS_FILE
        return last_complete_checkpoint(folder)
    if args.process_index == 0:
        write_text(folder / RUN_FILE, json.dumps(run, indent=2) + "\n")
    return checkpoint


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that training can resume from. transformers' `get_last_checkpoint` would also return one
    that a killed run left incomplete."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # written last
        except (OSError, ValueError):
            logger.warning("Skipping %s, which is incomplete.", checkpoint)
            continue
        if all((checkpoint / name).is_file() for name in RESUMABLE_FILES):
            return checkpoint
    return None


def _differences(previous: dict, run: dict) -> Iterator[str]:
    for part in run:
        for name in sorted(previous.get(part, {}).keys() | run[part].keys()):
            there, here = previous.get(part, {}).get(name), run[part].get(name)
            if there != here:
                yield f"{name} {there} there, {here} here"
