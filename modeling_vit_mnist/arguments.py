"""Dataclasses from the command line and from recipes, for all scripts alike: one-line errors, nearest known names."""

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from .errors import InputError


DEFAULT_DATASET = "ylecun/mnist"
DATASET_VARIABLE = "VIT_MNIST_DATASET"


class Parser(HfArgumentParser):
    """`HfArgumentParser` that takes no abbreviations and raises [`InputError`] instead of printing its usage."""

    def __init__(self, dataclass_types, **kwargs):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        raise InputError(message)

    def parse(self, argv: list[str]) -> tuple:
        """
        One instance per dataclass, then a namespace of the arguments that were added by hand, if any.

        Raises:
            InputError: an unknown flag, named with the nearest known one, or an unusable value.
        """
        for token in argv:
            if token.startswith("--"):
                self._check_known(token[2:].split("=")[0], "flag --")
        try:
            *arguments, stray = self.parse_args_into_dataclasses(
                argv, look_for_args_file=False, return_remaining_strings=True
            )
        except (ValueError, TypeError, ImportError) as error:
            raise InputError(str(error)) from error
        if stray:
            raise InputError(f"Unexpected argument {stray[0]!r}.")
        return tuple(arguments)

    def read_recipe(self, path: Path) -> list[str]:
        """
        The flags that a YAML or JSON file of `name: value` stands for.

        Raises:
            InputError: the file cannot be read, or an unknown key, named with the nearest known one.
        """
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"The recipe {path} cannot be read: {error}") from error
        if not isinstance(recipe, dict):
            raise InputError(f"The recipe {path} must hold lines of 'name: value', got {type(recipe).__name__}.")
        tokens = []
        for key, value in recipe.items():
            self._check_known(str(key), f"key in {path.name}: ")
            if value is not None:
                values = value if isinstance(value, list) else [value]
                tokens += [f"--{key}", *(json.dumps(item) if isinstance(item, dict) else str(item) for item in values)]
        return tokens

    def _check_known(self, name: str, kind: str) -> None:
        known = [option.removeprefix("--") for action in self._actions for option in action.option_strings]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise InputError(f"Unknown {kind}{name}" + (f": did you mean {near[0]}?" if near else "."))


@dataclass
class DataArguments:
    """Which images, and which of them."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A Hub id or a folder: parquet in the Hub's layout, class folders of images, a saved dataset, or "
            f"the four IDX files. Default: ${DATASET_VARIABLE}, else {DEFAULT_DATASET}, else, with no network, the "
            "kept sample of 5,000 digits."
        },
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of the images. Default: the first that holds images."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels. Default: the first class label, or 'label'."}
    )
    num_labels: int | None = field(
        default=None, metadata={"help": "Number of classes, where the dataset does not name them. Default: 10."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first N images only."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate and test on the first N images of each split only."}
    )
    validation_size: float | None = field(
        default=None,
        metadata={
            "help": "Images (or, below 1, the fraction) taken from train for validation, where the dataset has no "
            "validation split. Default: a twelfth, 5,000 of MNIST's 60,000."
        },
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the stratified split into train and validation."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read train and test image by image, again in every epoch, instead of holding them in memory. "
            "Validation images, about a twelfth of train but no more than 5,000, are chosen by a hash of the image."
        },
    )
    skip_bad_images: bool = field(
        default=False, metadata={"help": "Leave out images that cannot be read, naming them, instead of stopping."}
    )

    def __post_init__(self):
        for name in ("num_labels", "max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}.")
        if self.validation_size is not None and self.validation_size <= 0:
            raise InputError(f"--validation_size must be positive, got {self.validation_size:g}.")
