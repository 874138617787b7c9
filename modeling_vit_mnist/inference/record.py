"""What a checkpoint's folder records of its training, and whether a split is the one that training held out."""

import logging
from pathlib import Path

from ..checkpoints.folder import read_record
from ..cli.errors import UsageError
from ..data.arguments import DataArguments
from ..data.images import ImageDataset
from ..data.streaming import ImageStream
from .arguments import InferenceArguments, VisualizeArguments

logger = logging.getLogger(__name__)


def read_run_parts(folder: Path) -> dict[str, dict]:
    """`run.json`; empty if there is none, or another program's."""
    try:
        run = read_record(folder / "run.json")
    except UsageError:
        return {}
    parts = ("model", "data", "augmentation", "training")
    return run if isinstance(run, dict) and all(isinstance(run.get(part), dict) for part in parts) else {}


def other_split(
    run: dict[str, dict], name: str, split: ImageDataset | ImageStream, args: DataArguments
) -> str | None:  # fmt: skip
    """How the split `name` differs from the one that training took from the train split of the same dataset, by its
    record `run`, so that it may hold training images. `None` if it does not, or was not taken."""
    data = run.get("data", {})
    if name == "train" or not split.held_out or data.get("source") != split.source:
        return None
    if bool(data.get("streaming")) != args.streaming:
        return f"training was {'with' if data.get('streaming') else 'without'} --streaming"
    if (seed := data.get("split_seed", 0)) != args.split_seed:
        return f"training had --split_seed {seed}"
    size = data.get(f"{name}_held_out", data.get(name))
    if isinstance(size, int) and split.held_out != size:
        return f"training validated or tested on {size:,}, here are {split.held_out:,}"
    return None


def warn_of_other_split(
    args: InferenceArguments | VisualizeArguments, split: ImageDataset | ImageStream, data_args: DataArguments
) -> None:
    """Warn if the split that the arguments name may hold images that the checkpoint was trained on."""
    if difference := other_split(read_run_parts(Path(args.model)), args.split, split, data_args):
        logger.warning("Some of these images may be training images of %s: %s.", args.model, difference)
