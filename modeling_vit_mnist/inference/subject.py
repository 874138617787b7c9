"""What the views show: a checkpoint, its run, and images of a split, each loaded when a view first needs it."""

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.folder import load_checkpoint, read_record
from ..checkpoints.record import read_run_parts, warn_of_other_split
from ..cli.errors import UsageError, printable
from ..cli.inputs import read_text
from ..data.arguments import DataArguments
from ..data.images import ImageDataset
from ..data.splits import load_images
from ..image_processing_vit_mnist import VitMnistImageProcessor
from ..modeling_vit_mnist import VitMnistForImageClassification
from .arguments import VisualizeArguments
from .classes import class_names, match_classes
from .images import lack_digit
from .predict import check_finite, choose_device, predict
from .style import DARK, LIGHT

MEASURED = ("loss", "eval_loss", "eval_accuracy")  # what `history.json` holds of an epoch


class Subject:
    """A checkpoint and a split, as the arguments name them. Properties raise [`UsageError`] for what is missing."""

    def __init__(self, args: VisualizeArguments, data_args: DataArguments):
        self.args, self.data_args = args, data_args

    def path(self, name: str) -> Path:
        """Where a figure goes."""
        return Path(self.args.output_dir) / f"{name}{'-dark' if self.args.dark else ''}.{self.args.format}"

    def target(self, name: str, caption: str) -> dict[str, Any]:
        """Where a figure goes, what stands below it, and its style: arguments of the `plot_*` functions."""
        return {"path": self.path(name), "caption": caption, "style": DARK if self.args.dark else LIGHT}

    @property
    def name(self) -> str:
        """The name of the checkpoint, without a path."""
        return Path(self.args.model).resolve().name if Path(self.args.model).is_dir() else self.args.model

    @cached_property
    def checkpoint(self) -> tuple[VitMnistForImageClassification, VitMnistImageProcessor]:
        """Model, in evaluation mode, and processor. Only eager attention returns its probabilities."""
        model, processor = load_checkpoint(self.args.model, attn_implementation="eager")
        print(printable(f"Checkpoint: {self.args.model}, {model.num_parameters():,} parameters"))
        return model.to(choose_device(self.args.device)).eval(), processor

    @property
    def model(self) -> VitMnistForImageClassification:
        return self.checkpoint[0]

    @property
    def processor(self) -> VitMnistImageProcessor:
        return self.checkpoint[1]

    @cached_property
    def dataset(self) -> ImageDataset:
        """The split."""
        dataset = load_images(self.data_args, self.processor, [self.args.split])[self.args.split]
        print(printable(f"Data: {len(dataset):,} {self.args.split} images of {dataset.source}"))
        warn_of_other_split(self.args.model, self.args.split, dataset, self.data_args)
        return dataset

    @property
    def data(self) -> str:
        """The split in words."""
        return f"{self.args.split} images of {self.dataset.source}"

    def select(self, dataset: ImageDataset) -> ImageDataset:
        """The images of a dataset that `--index` names."""
        if outside := [index for index in self.args.index if not 0 <= index < len(dataset)]:
            raise UsageError(f"--index must lie in 0 to {len(dataset) - 1}, got {outside[0]}.")
        return dataset.select(torch.tensor(self.args.index))

    @cached_property
    def chosen(self) -> ImageDataset:
        """The images of the split that `--index` names."""
        return self.select(self.dataset)

    @cached_property
    def attentions(self) -> tuple[tuple[torch.Tensor, ...], list[str]]:
        """The attentions of the chosen images, `(n, heads, tokens, tokens)` per layer, and what they are read as."""
        pixel_values = self.processor.rescale_and_normalize(self.chosen.images).to(self.model.device)
        with torch.inference_mode():
            outputs = self.model(pixel_values, output_attentions=True)
        check_finite(outputs.logits, lambda row: f"image {self.args.index[row]}")
        names = class_names(self.model)
        blank = lack_digit(self.chosen.images, self.processor).tolist()
        best = outputs.logits.argmax(1).tolist()
        predictions = ["no digit" if is_blank else names[label] for label, is_blank in zip(best, blank, strict=True)]
        return tuple(attention.float().cpu() for attention in outputs.attentions), predictions

    @cached_property
    def tokens(self) -> torch.Tensor:
        """What the patch embedding makes of the chosen images, of shape `(n, patches, hidden_size)`."""
        pixel_values = self.processor.rescale_and_normalize(self.chosen.images).to(self.model.device)
        with torch.inference_mode():
            return self.model.vit.patch_embed(pixel_values.to(self.model.dtype)).float().cpu()

    @cached_property
    def labels(self) -> tuple[torch.Tensor, list[str]]:
        """The labels of the split, numbered as the model's classes, and the names of all numbers."""
        numbers, names = match_classes(self.dataset.names, class_names(self.model))
        return numbers[self.dataset.labels], names

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """The probabilities of the classes for the split, of shape `(n, classes)`."""
        return predict(self.model, self.processor, self.dataset.images).softmax(-1)

    @cached_property
    def has_digit(self) -> torch.Tensor:
        """In which images of the split framing found a digit, of shape `(n,)`. The others have no prediction."""
        has_digit = ~lack_digit(self.dataset.images, self.processor)
        if not has_digit.any():
            raise UsageError(f"None of the {self.data} holds a digit.")
        return has_digit

    @cached_property
    def history(self) -> list[dict]:
        """`log_history` of the run."""
        record = Path(self.args.model) / "history.json"
        problem = f"{self.args.model} holds no record of its training:"
        try:
            history = json.loads(read_text(record))["log_history"]
            measured = [e.get(name) for e in history for name in MEASURED if math.isfinite(e.get("epoch", 0))]
            has_values = any(math.isfinite(value) for value in measured if value is not None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{problem} cannot read {record.name}.") from error
        if not has_values:
            raise UsageError(f"{problem} {record.name} has no loss and no accuracy.")
        return history

    @property
    def best_epoch(self) -> float | None:
        """The epoch of the checkpoint, by `all_results.json`; `None` if there is none, or another program's."""
        try:
            epoch = read_record(Path(self.args.model, "all_results.json"))["best_epoch"]
        except (UsageError, KeyError, TypeError):
            return None
        return epoch if isinstance(epoch, (int, float)) else None

    @cached_property
    def run(self) -> dict[str, dict]:
        """`run.json`; empty if there is none, or another program's."""
        return read_run_parts(Path(self.args.model))
