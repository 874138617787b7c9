"""The classes of a model and those of a dataset, matched by name. Their numbers may differ."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from ..cli.errors import UsageError
from ..modeling_vit_mnist import VitMnistForImageClassification


def class_names(model: VitMnistForImageClassification) -> list[str]:
    """The names of the model's classes, by number."""
    id2label: dict[Any, str] = model.config.id2label  # in any order
    return [id2label[number] for number in range(len(id2label))]


def match_classes(dataset_names: list[str], model_names: list[str]) -> tuple[torch.Tensor, list[str]]:
    """Give the classes of a dataset the numbers of the model's classes of the same names.

    Returns an int64 `torch.Tensor` of shape `(len(dataset_names),)`, which labels of the dataset index, and the names
    that the numbers stand for: `model_names`, followed by the classes that only the dataset has. Raises [`UsageError`]
    if no name is in both lists.
    """
    unknown = [name for name in dataset_names if name not in model_names]
    if len(unknown) == len(dataset_names):
        raise UsageError(
            f"The dataset and the model have no class in common: the dataset has {_shorten(dataset_names)}, the model "
            f"{_shorten(model_names)}. Use a model of these classes, or rename the classes of one of the two."
        )
    names = model_names + unknown
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers[name] for name in dataset_names]), names


@dataclass
class Tally:
    """Counts of predicted images: all, without a digit, rejected, correct, and, in `unknown`, those of each class that
    the model does not have. With `is_selective`, images without a prediction count neither as wrong nor as unknown."""

    images: int = 0
    without_digit: int = 0
    rejected: int = 0
    correct: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    is_selective: bool = False

    def add(self, predictions: torch.Tensor, labels: torch.Tensor, names: list[str], num_classes: int) -> None:
        """Count images.

        Args:
            predictions (`torch.Tensor` of shape `(n,)`, int64): Below `num_classes`, the model's; -1 counts as wrong.
            labels (`torch.Tensor` of shape `(n,)`, int64): Numbered as `names` by [`match_classes`]; empty for none.
        """
        self.images += len(predictions)
        predictions = predictions[: len(labels)]
        self.correct += int((predictions == labels).sum())
        counted = labels[predictions >= 0] if self.is_selective else labels
        self.unknown.update(names[number] for number in counted[counted >= num_classes].tolist())

    def merge(self, other: "Tally") -> None:
        """Add the counts of other images."""
        for name in ("images", "without_digit", "rejected", "correct", "unknown"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def describe_others(self) -> list[str]:
        """How many images have no digit, if there are any, and how many are rejected, if that was asked for."""
        counts = [f"{self.without_digit:,} without a digit"] if self.without_digit else []
        return counts + ([f"{self.rejected:,} rejected"] if self.is_selective else [])

    def describe_accuracy(self, what: str) -> str:
        """A line with the accuracy over `what`. Before it, if there are any, a line with the number of images whose
        class the model does not have."""
        total = self.images - (self.without_digit + self.rejected if self.is_selective else 0)
        if not total:
            return f"Accuracy: - (there are no {what})"
        line = f"Accuracy: {self.correct / total:.2%} ({self.correct:,} of {total:,} {what})"
        if not self.unknown:
            return line
        return (
            f"The model does not know the class of {self.unknown.total():,} images "
            f"({_shorten(sorted(self.unknown))}): they count as wrong.\n{line}"
        )


def describe_accuracy(
    predictions: torch.Tensor, labels: torch.Tensor, names: list[str], num_classes: int, what: str
) -> str:
    """[`Tally.describe_accuracy`] of images whose predictions and labels are as in [`Tally.add`], -1 for an image
    without a digit, and the number of these."""
    tally = Tally(without_digit=int((predictions == -1).sum()))
    tally.add(predictions, labels, names, num_classes)
    return ", ".join([tally.describe_accuracy(what), *tally.describe_others()])


def _shorten(names: list[str]) -> str:
    return ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12:,} more" if len(names) > 12 else "")
