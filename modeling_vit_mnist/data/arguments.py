"""Arguments that choose a dataset."""

from dataclasses import dataclass

from ..cli.arguments import arg
from ..cli.errors import UsageError
from ..configuration_vit_mnist import LIMITS
from ..grayscale_vit_mnist import MAX_IMAGE_PIXELS

DEFAULT_DATASET = "ylecun/mnist"
DATASET_VARIABLE = "VIT_MNIST_DATASET"


@dataclass
class DataArguments:
    """Which images, and which part of them."""

    dataset_name: str | None = arg(
        help="Hub id or folder (parquet, class folders, a saved dataset, or four IDX files). "
        f"Default: ${DATASET_VARIABLE}, else {DEFAULT_DATASET}, else, without a network, the bundled 5,000 digits."
    )
    image_column_name: str | None = arg(help="Column of the images. Default: the first that holds images.")
    label_column_name: str | None = arg(help="Column of the labels. Default: the first class label, or 'label'.")
    num_labels: int | None = arg(help="Number of classes of a dataset that does not name them. Default: 10.")
    max_train_samples: int | None = arg(help="Train on the first N images only.")
    max_eval_samples: int | None = arg(help="Validate and test on the first N images of each split only.")
    validation_size: float | None = arg(
        help="Size of the validation split taken from train: a count, or a fraction if below 1. Default: 1/12, "
        "5,000 of MNIST's 60,000."
    )
    split_seed: int = arg(0, "Seed of the validation and test splits taken from train.")
    streaming: bool = arg(
        False,
        "Stream the images, and decode them again in every epoch. A hash of each image decides whether it is held out "
        "for validation (1/12, at most 5,000).",
    )
    skip_bad_images: bool = arg(
        False,
        "Skip images that cannot be read, with a warning, instead of stopping. To count a stream, decode it first.",
    )
    max_pixels: int = arg(MAX_IMAGE_PIXELS, "Refuse images of more pixels, before they are decoded.")

    def limit(self, split: str) -> int | None:
        """How many images of a split are taken; `None` for all."""
        return self.max_train_samples if split == "train" else self.max_eval_samples

    def __post_init__(self):
        for name in ("num_labels", "max_train_samples", "max_eval_samples", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name} must be at least 1, got {value}.")
        if (self.num_labels or 0) > LIMITS["num_labels"]:
            raise UsageError(f"--num_labels must be at most {LIMITS['num_labels']}, got {self.num_labels}.")
        size = self.validation_size
        if size is not None and not size > 0:  # also true for NaN
            raise UsageError(f"--validation_size must be positive, got {size:g}.")
        if size is not None and size >= 1 and not float(size).is_integer():
            raise UsageError(f"--validation_size must be a whole number or a fraction below 1, got {size:g}.")
        if not 0 <= self.split_seed < 2**32:
            raise UsageError(f"--split_seed must lie in 0 to {2**32 - 1}, got {self.split_seed}.")
