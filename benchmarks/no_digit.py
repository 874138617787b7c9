"""
AUROC of the digit score, which tells digits from other images, and what its threshold rejects.

    python benchmarks/no_digit.py --model vit-mnist-small
    python benchmarks/no_digit.py --fashion FOLDER --handwriting FOLDER --split validation

Prints a Markdown table for each model. The digits are MNIST's and, with --handwriting, those that people wrote, as
handwriting.py reads them. The other images are:

- Fashion-MNIST, of the same split, with --fashion;
- printed letters in faces that matplotlib ships, rotated by up to 10 degrees, without those that look like a digit:
  D O Q o (0), I J i j l (1), Z z (2), S s (5), G b (6), B (8), g q (9);
- scribbles: one to three smooth strokes of random curvature, of 300 to 1,200 pixels each on a pad of 280;
- two digits of the same split side by side, apart or touching, scaled into MNIST's 20x20 pixels;
- blank paper, plain, ruled or squared, with shading and noise.

Each image goes through the processor, which frames it. An image in which framing finds nothing gets the lowest score.
Select thresholds and recipes on the validation split.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from handwriting import NONE, read_samples
from report import not_negative, positive
from sklearn.metrics import roc_auc_score

from modeling_vit_mnist import VitMnistImageProcessor, digit_score
from modeling_vit_mnist.checkpoints.folder import load_checkpoint
from modeling_vit_mnist.checkpoints.record import warn_of_other_split
from modeling_vit_mnist.cli.errors import UsageError, printable, run_script
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images
from modeling_vit_mnist.inference.classes import class_names
from modeling_vit_mnist.inference.images import lack_digit, read_images
from modeling_vit_mnist.inference.predict import choose_device, predict

SMALL = Path(__file__).resolve().parents[1] / "vit-mnist-small"
FACES = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cmr10", "cmss10", "cmb10")
LETTERS = "ACEFHKLMNPRTUVWXY" + "acdefhkmnprtuvwxy"
SIDE = 280  # pixels of the pad on which letters and scribbles are drawn
LOWEST = -1.0  # score of an image in which framing finds nothing; that of a network is at least 0


def draw_letter(draw: np.random.Generator) -> PIL.Image.Image:
    """Dark on light, 60 to 200 pixels high."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = sorted(file for face in FACES for file in fonts.glob(f"{face}.ttf") if "Display" not in file.name)
    font = PIL.ImageFont.truetype(str(draw.choice(faces)), int(draw.integers(80, 240)))
    image = PIL.Image.new("L", (SIDE, SIDE), 255)
    PIL.ImageDraw.Draw(image).text((SIDE / 2, SIDE / 2), str(draw.choice([*LETTERS])), fill=0, font=font, anchor="mm")
    return image.rotate(draw.uniform(-10, 10), PIL.Image.Resampling.BICUBIC, fillcolor=255)


def draw_scribble(draw: np.random.Generator) -> PIL.Image.Image:
    """Strokes of a pen whose curvature changes at random and that turns back at the border."""
    step, margin = 8, 20  # pixels
    image = PIL.Image.new("L", (SIDE, SIDE), 255)
    for _ in range(draw.integers(1, 4)):
        place, heading, curvature = draw.uniform(60, SIDE - 60, 2), draw.uniform(0, 2 * np.pi), 0.0
        points = [tuple(place)]
        for _ in range(int(draw.integers(300, 1201) / step)):
            curvature = 0.8 * curvature + draw.normal(0, 0.25)
            heading += curvature
            place = place + step * np.array([np.cos(heading), np.sin(heading)])
            if not ((place > margin) & (place < SIDE - margin)).all():
                heading += 2.2
                place = place.clip(margin, SIDE - margin)
            points.append(tuple(place))
        PIL.ImageDraw.Draw(image).line(points, fill=0, width=int(draw.integers(8, 26)), joint="curve")
    return image


def join_digits(digits: np.ndarray, draw: np.random.Generator) -> PIL.Image.Image:
    """Two of the digits of shape `(n, height, width)`, uint8, with a gap of up to 6 pixels, or overlapping by up to 2.
    Centered by their center of mass, as MNIST's are."""
    left, right = (digits[index][:, digits[index].any(0)] for index in draw.integers(len(digits), size=2))
    width = left.shape[1] + right.shape[1] + draw.integers(-2, 7)
    both = np.zeros((len(left), width), np.uint8)
    both[:, : left.shape[1]] = left
    both[:, width - right.shape[1] :] = np.maximum(both[:, width - right.shape[1] :], right)
    picture = PIL.Image.fromarray(both[both.any(1)])
    factor = 20 / max(picture.size)
    size = [max(1, round(factor * side)) for side in picture.size]
    scaled = np.asarray(picture.resize(size, PIL.Image.Resampling.LANCZOS), np.float64)
    scaled *= 255 / scaled.max()
    top, start = (
        round(13.99 - (scaled.sum(1 - axis) @ np.arange(side)) / scaled.sum())
        for axis, side in enumerate(scaled.shape)
    )
    frame = PIL.Image.new("L", (28, 28))
    frame.paste(PIL.Image.fromarray(scaled.round().astype(np.uint8)), (start, top))
    return frame


def draw_paper(draw: np.random.Generator) -> PIL.Image.Image:
    """Paper under light from one side, as a camera sees it."""
    height, width = draw.integers(200, 500, 2)
    levels = np.full((height, width), draw.uniform(120, 250))
    kind, spacing = draw.integers(3), int(draw.integers(20, 50))
    if kind:  # ruled or squared
        levels[spacing // 2 :: spacing] -= draw.uniform(10, 40)
    if kind == 2:
        levels[:, spacing // 2 :: spacing] -= draw.uniform(10, 40)
    levels *= np.linspace(1, draw.uniform(0.6, 1), width)
    return PIL.Image.fromarray((levels + draw.normal(0, draw.uniform(0.5, 4), levels.shape)).clip(0, 255).astype("u1"))


def score(model, processor: VitMnistImageProcessor, frames: torch.Tensor) -> np.ndarray:
    """Digit scores of images of shape `(n, height, width)` as framing returns them."""
    scores = digit_score(predict(model, processor, frames)).numpy()
    scores[lack_digit(frames, processor).numpy()] = LOWEST
    return scores


def print_table(digits: dict[str, np.ndarray], others: dict[str, np.ndarray], threshold: float | None) -> None:
    """A row for each kind of images, given their scores."""
    print(
        f"| images | n | {' | '.join(f'AUROC against {name}' for name in digits)} | no digit found, % | rejected, % |"
    )
    print("|---" * (4 + len(digits)) + "|")
    for name, scores in (digits | others).items():
        areas = [
            f"{roc_auc_score([1] * len(digit) + [0] * len(scores), [*digit, *scores]):.3f}" if name in others else ""
            for digit in digits.values()
        ]
        not_found = f"{100 * (scores == LOWEST).mean():.1f}"
        rejected = "" if threshold is None else f"{100 * (scores < threshold).mean():.1f}"
        print(f"| {name} | {len(scores):,} | {' | '.join([*areas, not_found, rejected])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", nargs="+", default=[str(SMALL)], help="Checkpoint folders or Hub ids.")
    parser.add_argument("--dataset_name", help="Folder or Hub id of MNIST. Default: $VIT_MNIST_DATASET.")
    parser.add_argument("--split", default="test", choices=["validation", "test"], help="Split of the datasets.")
    parser.add_argument("--fashion", help="Folder or Hub id of Fashion-MNIST.")
    parser.add_argument("--handwriting", type=Path, help="Folder of digits that people wrote.")
    parser.add_argument("--samples", type=positive, default=1000, help="Images of each kind that is no digit.")
    parser.add_argument("--seed", type=not_negative, default=0, help="Of the images that are drawn.")
    args = parser.parse_args()
    if args.handwriting and not args.handwriting.is_dir():
        raise UsageError(f"{args.handwriting} is no folder.")
    data_args = DataArguments(dataset_name=args.dataset_name)
    mnist = load_images(data_args, VitMnistImageProcessor(), [args.split])[args.split]
    digits = mnist.images.numpy()
    kinds: dict[str, Callable[[np.random.Generator], PIL.Image.Image]] = {
        "printed letters": draw_letter, "scribbles": draw_scribble,
        "two digits": lambda draw: join_digits(digits, draw), "blank paper": draw_paper,
    }  # fmt: skip
    pictures = {}
    for number, (kind, make) in enumerate(kinds.items()):
        draw = np.random.default_rng([args.seed, number])
        pictures[kind] = [make(draw) for _ in range(args.samples)]
    if args.fashion:
        fashion = load_images(DataArguments(dataset_name=args.fashion), VitMnistImageProcessor(), [args.split])
        images = fashion[args.split].images[: args.samples].numpy()
        pictures = {"Fashion-MNIST": [*map(PIL.Image.fromarray, images)]} | pictures
    for name in args.model:
        model, processor = load_checkpoint(name)
        warn_of_other_split(name, args.split, mnist, data_args)
        model.to(choose_device())
        processor.do_frame, processor.do_invert, processor.do_center = True, False, False
        scores = {"MNIST": score(model, processor, processor.to_grayscale([*digits]))}
        if args.handwriting:
            samples = read_samples(args.handwriting, class_names(model))
            files = [sample.file for sample in samples if sample.label != NONE]
            scores["people's digits"] = score(model, processor, read_images(files, processor, False)[0])
        others = {kind: score(model, processor, processor.to_grayscale(images)) for kind, images in pictures.items()}
        threshold = model.config.digit_score_threshold
        shown = "" if threshold is None else f", digit_score_threshold {threshold:g}"
        print(f"{printable(Path(name).name)}, {args.split} split{shown}\n")
        print_table(scores, others, threshold)
        print()


if __name__ == "__main__":
    run_script(main)
