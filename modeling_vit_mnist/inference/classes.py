"""The classes of a model and those of a dataset, matched by name. Their numbers may differ."""

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


def describe_accuracy(
    predictions: torch.Tensor, labels: torch.Tensor, names: list[str], num_classes: int, what: str
) -> str:
    """A line with the accuracy over `what`. Before it, if there are any, a line with the number of images whose class
    the model does not have.

    Args:
        predictions (`torch.Tensor` of shape `(n,)`, int64): Below `num_classes`, the model's; -1 counts as wrong.
        labels (`torch.Tensor` of shape `(n,)`, int64): Numbered as `names` by [`match_classes`].
    """
    correct, total = int((predictions == labels).sum()), len(labels)
    if not total:
        return f"Accuracy: - (there are no {what})"
    line = f"Accuracy: {correct / total:.2%} ({correct:,} of {total:,} {what})"
    unknown = labels[labels >= num_classes]
    if not len(unknown):
        return line
    classes = _shorten([names[number] for number in unknown.unique().tolist()])
    return f"The model does not know the class of {len(unknown):,} images ({classes}): they count as wrong.\n{line}"


def _shorten(names: list[str], limit: int = 12) -> str:
    return ", ".join(map(repr, names[:limit])) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
