"""The views of `run_visualize.py`: each prints what is to be read and draws what is to be looked at."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import hub, plots
from .arguments import DataArguments
from .data import load_digits
from .errors import InputError
from .files import check_writable
from .image_processing_vit_mnist import VitMnistImageProcessor
from .inference import DEFAULT_MODEL, choose_device, predict


@dataclass
class VisualizeArguments:
    """Which model and images to look at, and where the pictures go."""

    model: str = field(
        default=str(DEFAULT_MODEL), metadata={"help": "Checkpoint folder or Hub id. Default: the kept vit-mnist-tiny."}
    )
    split: str = field(
        default="test",
        metadata={"help": "Split for attention and mistakes.", "choices": ["train", "validation", "test"]},
    )
    index: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4, 18],
        metadata={"help": "Images of the split whose attention is shown.", "nargs": "+"},
    )
    output_dir: str = field(default="outputs/figures", metadata={"help": "Folder for the pictures."})
    batch_size: int = field(default=64, metadata={"help": "Images in the batch whose shapes are shown."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps, ... Default: the best at hand."})

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"--batch_size must be at least 1, got {self.batch_size}.")
        check_writable(Path(self.output_dir))

    def picture(self, name: str) -> Path:
        return Path(self.output_dir) / name


def view_data(args: VisualizeArguments, data_args: DataArguments) -> None:
    """Summary, measured mean and standard deviation, batch shapes; a picture of digits and class balance."""
    processor = VitMnistImageProcessor()
    digits = load_digits(data_args, processor)
    images = torch.cat([digits["train"].images, digits["validation"].images])
    labels = torch.cat([digits["train"].labels, digits["validation"].labels])
    pixels = images.double() / 255

    print(f"Dataset {digits['train'].source}")
    print(
        f"    Train:   {len(images):,} images ({len(digits['train']):,} to train on, "
        f"{len(digits['validation']):,} for validation)"
    )
    print(f"    Test:    {len(digits['test']):,} images")
    print(f"    Image:   {images.shape[1]}x{images.shape[2]} pixels, 1 channel, uint8")
    print(f"    Classes: {', '.join(digits['train'].names)}")
    print(f"    Mean:    {pixels.mean():.4f} measured on train, {processor.image_mean[0]:.4f} used")
    print(f"    Std:     {pixels.std(unbiased=False):.4f} measured on train, {processor.image_std[0]:.4f} used")
    batch = next(
        iter(torch.utils.data.DataLoader(digits["train"], args.batch_size, collate_fn=digits["train"].collate))
    )
    print(f"Batch: images {list(batch['pixel_values'].shape)}, labels {list(batch['labels'].shape)}")
    plots.plot_data(images, labels, digits["train"].names, args.picture("data.png"))
    print(f"Wrote {args.picture('data.png')}")


def view_model(args: VisualizeArguments, data_args: DataArguments) -> None:
    """The parameter table, and one batch's shape after every stage."""
    model, processor = hub.load_checkpoint(args.model)
    model.eval()
    print(plots.parameter_table(model))
    size = model.config.image_size
    frames = torch.zeros(args.batch_size, size, size, dtype=torch.uint8)
    print(f"\nForward pass of a batch of {args.batch_size}:")
    for name, shape in plots.stage_shapes(model, processor.to_pixel_values(frames)):
        print(f"    {name:<44} {list(shape)}")


def view_attention(args: VisualizeArguments, data_args: DataArguments) -> None:
    """What the CLS token looks at, per layer and head."""
    model, processor = hub.load_checkpoint(args.model, attn_implementation="eager")  # the one that returns attentions
    model.to(choose_device(args.device)).eval()
    digits = load_digits(data_args, processor, [args.split])[args.split]
    if outside := [index for index in args.index if not 0 <= index < len(digits)]:
        raise InputError(f"--index must lie in 0 to {len(digits) - 1}, got {outside[0]}.")
    digits = digits.select(torch.tensor(args.index))
    pixel_values = processor.to_pixel_values(digits.images).to(model.device)
    with torch.inference_mode():
        outputs = model(pixel_values, output_attentions=True)
    predictions = [model.config.id2label[label] for label in outputs.logits.argmax(1).tolist()]
    attentions = tuple(attention.cpu() for attention in outputs.attentions)
    plots.plot_attention(digits.images, attentions, predictions, args.picture("attention.png"))
    print(f"Wrote {args.picture('attention.png')}")


def view_training(args: VisualizeArguments, data_args: DataArguments) -> None:
    """Loss, accuracy and learning rate of the run that made a checkpoint folder."""
    record = Path(args.model) / "history.json"
    try:
        history = json.loads(record.read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{args.model} holds no record of its training: {record.name} cannot be read.") from error
    plots.plot_training(history, args.picture("training.png"))
    print(f"Wrote {args.picture('training.png')}")


def view_mistakes(args: VisualizeArguments, data_args: DataArguments) -> None:
    """Confusion matrix and surest mistakes."""
    model, processor = hub.load_checkpoint(args.model)
    model.to(choose_device(args.device))
    digits = load_digits(data_args, processor, [args.split])[args.split]
    probabilities = predict(model, processor, digits.images)
    right = (probabilities.argmax(1) == digits.labels).sum().item()
    print(f"Accuracy: {right / len(digits):.2%} ({right:,} of {len(digits):,} {args.split} images of {digits.source})")
    plots.plot_mistakes(digits.images, digits.labels, probabilities, digits.names, args.picture("mistakes.png"))
    print(f"Wrote {args.picture('mistakes.png')}")


VIEWS = {
    "data": view_data,
    "model": view_model,
    "attention": view_attention,
    "training": view_training,
    "mistakes": view_mistakes,
}
