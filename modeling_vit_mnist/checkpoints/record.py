"""What a checkpoint's folder records of its training, and whether a split is the one that training held out."""

import logging
from pathlib import Path

from ..cli.errors import UsageError
from ..data.arguments import DEFAULT_DATASET, DataArguments
from ..data.images import ImageDataset
from ..data.sources import SAMPLE
from ..data.streaming import ImageStream
from .folder import read_record

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
    """Why the split `name` may hold images that a run, by its record `run`, was trained on: it is of the same dataset,
    and training took another one from the train split, or it is of the sample. `None` if it does not."""
    data = run.get("data", {})
    if data.get("source") == DEFAULT_DATASET and split.source == SAMPLE.name:
        return "the sample was taken from MNIST's train split"
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
    model: str, name: str, split: ImageDataset | ImageStream, data_args: DataArguments, shown: str = "these"
) -> None:
    """Warn if the split `name` may hold images that the checkpoint `model` was trained on."""
    if reason := other_split(read_run_parts(Path(model)), name, split, data_args):
        logger.warning("Some of %s images may be training images of %s: %s.", shown, model, reason)
