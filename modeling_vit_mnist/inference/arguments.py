"""Arguments of prediction and of the views."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from ..checkpoints.folder import DEFAULT_MODEL
from ..cli.arguments import arg
from ..cli.errors import UsageError
from ..data.arguments import DataArguments

TABLES = (".jsonl", ".csv", ".parquet")
QUIET_BEYOND = 5_000  # images
MAX_BATCH = 100_000  # images whose shapes are shown
NUM_SAMPLES = 64  # predicted by default
MAX_SHOWN = 100  # images whose attention fits into one picture
MAX_FRAMED = 20  # images whose framing fits into one picture


@dataclass
class _ModelChoice:
    model: str = arg(
        str(DEFAULT_MODEL),
        "Checkpoint folder or Hub id. Default: the newest finished run in outputs/, else the bundled vit-mnist-tiny.",
    )
    split: str = arg("test", "Split of the dataset.", choices=["train", "validation", "test"])
    device: str | None = arg(help="cpu, cuda, mps, ... Default: an accelerator if there is one.")


@dataclass
class InferenceArguments(_ModelChoice):
    """Which model, which images, and what to write."""

    num_samples: int | None = arg(
        help=f"Predict the first N images of the split; 0 for all. Default: {NUM_SAMPLES}; all with --output FOLDER/."
    )
    image: list[str] = arg([], "Predict these image files, folders or globs instead of a dataset.", nargs="+")
    do_center: bool | None = arg(
        help="Only center the ink as in MNIST. Default: find and frame the digit, whatever it is drawn on."
    )
    do_invert: str | None = arg(
        help="Only invert the images. auto: those with dark ink on light paper.", choices=["yes", "no", "auto"]
    )
    top_k: int = arg(1, "Print the K most probable classes.")
    reject: float | None = arg(
        help="Show as Pred:? what is probably no digit: images whose digit score is below this threshold. Without a "
        "number: the checkpoint's digit_score_threshold.", nargs="?", const=True,
    )  # fmt: skip
    output: str | None = arg(
        help="Also write the predictions to this .jsonl, .csv or .parquet file, or, with a / at the end, to parquet "
        "parts in this folder, which several processes share and a second start completes."
    )
    grid: str | None = arg(help="Also draw the images with their predictions to this .png file.")
    quiet: bool | None = arg(
        help=f"Print only the summary. Default: with --num_samples 0, beyond {QUIET_BEYOND:,} images, and with "
        "--output FOLDER/.", nargs="?", const=True,
    )  # fmt: skip
    batch_size: int = arg(1000, "Images per forward pass.")

    def __post_init__(self):
        if self.num_samples is None:
            self.num_samples = 0 if self.writes_parts else NUM_SAMPLES
        for name, least in (("num_samples", 0), ("top_k", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} must be at least {least}, got {getattr(self, name)}.")
        if self.output and not self.writes_parts and Path(self.output).suffix not in TABLES:
            raise UsageError(
                f"--output must end in {', '.join(TABLES)}, or in / for a folder of parts, got {self.output!r}."
            )
        if self.grid and Path(self.grid).suffix != ".png":
            raise UsageError(f"--grid must end in .png, got {self.grid!r}.")

    @property
    def writes_parts(self) -> bool:
        """Whether the output is a folder of parts."""
        return bool(self.output) and self.output.endswith(("/", os.sep))

    def used_flags(self) -> set[str]:
        """The flags that these arguments use: fewer of them for image files."""
        own = {field.name for field in fields(self)}
        if self.image:
            return own - {"split", "num_samples"} | {"skip_bad_images", "max_pixels"}
        return own | _data_flags(self.split)


@dataclass
class VisualizeArguments(_ModelChoice):
    """Which model and images to show, and where to write the pictures."""

    index: list[int] = arg([0, 1, 2, 3, 4, 18], "Images of the split that are shown.", nargs="+")
    image: list[str] = arg(
        [],
        f"Image files, folders or globs whose framing is shown, up to {MAX_FRAMED}. Default: images of the split.",
        nargs="+",
    )
    output_dir: str = arg("outputs/figures", "Folder of the figures.")
    format: str = arg("png", "Format of the figures.", choices=["png", "svg"])
    dark: bool = arg(False, "Draw for a dark background, to a file whose name ends in -dark.")
    batch_size: int = arg(64, "Images in the batch whose shapes are shown.")

    def __post_init__(self):
        if not 1 <= self.batch_size <= MAX_BATCH:
            raise UsageError(f"--batch_size must be from 1 to {MAX_BATCH:,}, got {self.batch_size}.")
        if len(self.index) > MAX_SHOWN:
            raise UsageError(f"--index takes at most {MAX_SHOWN} images, got {len(self.index)}.")

    def used_flags(self, view: str) -> set[str]:
        """The flags that a view uses."""
        figure = {"output_dir", "format", "dark"}
        on_a_split = {"model", "split", "device", *_data_flags(self.split)}
        of_images = {"index", *on_a_split, *figure}
        return {
            "data": {"batch_size", *_data_flags("train"), *_data_flags("test"), *figure},
            "model": {"model", "device", "batch_size"},
            "training": {"model", *figure},
            "warps": {"model", "index", *_data_flags("train"), *figure},
            "framing": {"model", "image", "skip_bad_images", "max_pixels", *(figure if self.image else of_images)},
            "report": {"index", "output_dir", *on_a_split},
            **{name: {"model", *figure} for name in ("architecture", "parameters", "positions")},
            **dict.fromkeys(("patches", "filters", "attention", "rollout"), of_images),
            **{name: {*on_a_split, *figure} for name in ("mistakes", "calibration")},
        }[view]


def _data_flags(split: str) -> set[str]:
    """The flags of a dataset, without the limit of other splits than `split`."""
    other_limit = "max_eval_samples" if split == "train" else "max_train_samples"
    return {field.name for field in fields(DataArguments)} - {other_limit}
