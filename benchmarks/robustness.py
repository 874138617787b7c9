"""
Accuracy of a checkpoint on test images that are shifted, rotated, scaled, noisy, blurred, low in contrast or inverted.

    python benchmarks/robustness.py --model vit-mnist-tiny
    python benchmarks/robustness.py --model vit-mnist-tiny --record   # also write it to the folder and its card

Prints a Markdown table. Directions, signs and noise are drawn from a fixed seed. A corrupted image goes through the
image processor, as any image of a user does. Pass the dataset by --dataset_name or $VIT_MNIST_DATASET.
"""

import argparse
import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch
from report import positive

from modeling_vit_mnist.checkpoints.card import add_measurement, read_run
from modeling_vit_mnist.checkpoints.folder import DEFAULT_MODEL, load_checkpoint
from modeling_vit_mnist.checkpoints.record import other_split, read_run_parts
from modeling_vit_mnist.cli.errors import UsageError, run_script
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.augmentation import warp_images
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.image_processing_vit_mnist import VitMnistImageProcessor
from modeling_vit_mnist.inference.classes import class_names, describe_accuracy, match_classes
from modeling_vit_mnist.inference.images import lack_digit
from modeling_vit_mnist.inference.predict import predict

logger = logging.getLogger(__name__)

SEED = 0


def warp(images: torch.Tensor, shift: float = 0, rotation: float = 0, scale: float = 1) -> torch.Tensor:
    """Shift by pixels in a random direction, rotate by degrees in a random sense, scale by a factor."""
    n, draw = len(images), torch.Generator().manual_seed(SEED)
    direction = 2 * math.pi * torch.rand(n, generator=draw)
    sign = 2 * torch.randint(2, (n,), generator=draw) - 1
    return warp_images(
        images,
        shift * torch.stack([direction.cos(), direction.sin()], 1),
        rotation * sign,
        torch.full((n, 2), float(scale)),
        torch.zeros(n),
    )


def add_noise(images: torch.Tensor, std: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
    return (images + std * noise).clamp(0, 1)


def blur(images: torch.Tensor, std: float) -> torch.Tensor:
    """Gaussian blur with a standard deviation in pixels."""
    reach = math.ceil(3 * std)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * std**2))
    kernel = kernel / kernel.sum()
    pixels = images.unsqueeze(1)
    pixels = torch.nn.functional.conv2d(pixels, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    return torch.nn.functional.conv2d(pixels, kernel.view(1, 1, 1, -1), padding=(0, reach)).squeeze(1)


CORRUPTIONS: dict[str, tuple[dict[str, float], Callable]] = {
    "shift": ({"1 pixel": 1, "2 pixels": 2, "4 pixels": 4}, lambda images, by: warp(images, shift=by)),
    "rotation": ({"10°": 10, "20°": 20, "40°": 40}, lambda images, by: warp(images, rotation=by)),
    "scale": ({"0.7": 0.7, "0.85": 0.85, "1.2": 1.2}, lambda images, by: warp(images, scale=by)),
    "noise": ({"σ 0.1": 0.1, "σ 0.2": 0.2, "σ 0.4": 0.4}, add_noise),
    "blur": ({"σ 0.5 pixels": 0.5, "σ 1 pixel": 1.0, "σ 2 pixels": 2.0}, blur),
    "contrast": ({"75 %": 0.75, "50 %": 0.5, "25 %": 0.25}, lambda images, by: images * by),
    "inversion": ({"10 %": 0.1, "25 %": 0.25, "100 %": 1.0}, lambda images, by: (1 - by) * images + by * (1 - images)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="Checkpoint folder or Hub id.")
    parser.add_argument("--dataset_name", help="Folder or Hub id. Default: $VIT_MNIST_DATASET.")
    parser.add_argument(
        "--num_images", type=positive, help="Only the first N test images. Framing takes 2 ms for each."
    )
    parser.add_argument("--record", action="store_true", help="Write the result to the folder and its card.")
    args = parser.parse_args()
    results = read_run(Path(args.model))[1] if args.record else None  # raises without a finished run
    model, processor = load_checkpoint(args.model)
    plain = VitMnistImageProcessor(size=processor.size)
    data_args = DataArguments(dataset_name=args.dataset_name)
    test = load_images(data_args, plain, ["test"])["test"]
    reason = other_split(read_run_parts(Path(args.model)), "test", test, data_args)
    if results and (reason or test.source != results["dataset"]):
        raise UsageError(f"Not to be recorded: {args.model} was tested on {results['dataset']}, on other images.")
    if reason:
        logger.warning("Some test images may be training images of %s: %s.", args.model, reason)
    test = test.take(args.num_images)
    images = test.images.float() / 255

    numbers, names = match_classes(test.names, class_names(model))
    labels, num_classes = numbers[test.labels], model.config.num_labels
    if args.record and (labels >= num_classes).any():
        raise UsageError(f"{test.source} has classes that the model does not know: nothing to --record.")

    def classify(images: torch.Tensor) -> torch.Tensor:
        levels = (255 * images).round().byte().unsqueeze(1)
        framed = torch.cat([processor.to_grayscale(part) for part in levels.split(100)])
        return predict(model, processor, framed).argmax(1).masked_fill(lack_digit(framed, processor), -1)

    def accuracy(images: torch.Tensor) -> float:
        return (classify(images) == labels).double().mean().item()

    record = {
        kind: {name: accuracy(corrupt(images, strength)) for name, strength in strengths.items()}
        for kind, (strengths, corrupt) in CORRUPTIONS.items()
    }
    predictions = classify(images)
    print(Path(args.model).name)
    print(describe_accuracy(predictions, labels, names, num_classes, f"test images of {test.source}"), end="\n\n")
    print("| accuracy, % | mild | medium | strong |\n|---|---|---|---|")
    for kind, levels in record.items():
        print(f"| {kind} | " + " | ".join(f"{level}: {100 * value:.1f}" for level, value in levels.items()) + " |")
    if args.record:
        add_measurement(args.model, "robustness", {"dataset": test.source, "n": len(test), "accuracy": record})


if __name__ == "__main__":
    run_script(main)
