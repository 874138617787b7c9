"""
Photographs and drawings that code makes of MNIST's digits, as a folder for handwriting.py.

    python benchmarks/photographs.py FOLDER --num_images 100
    python benchmarks/handwriting.py FOLDER

Writes images of each kind and an index.csv with their labels and kinds. The same options give the same images. The
digits are of the validation split. Framing was developed on pictures like these, made of training digits.
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
from report import not_negative, positive
from tqdm.auto import tqdm

from modeling_vit_mnist import VitMnistImageProcessor
from modeling_vit_mnist.cli.errors import UsageError, run_script
from modeling_vit_mnist.data.arguments import DataArguments
from modeling_vit_mnist.data.splits import load_images

BICUBIC = PIL.Image.Resampling.BICUBIC
KINDS = (
    "plain paper", "ruled paper", "squared paper", "colored paper", "pale ink", "thin pen", "thick pen", "chalk",
    "random colors", "two lamps", "hard shadow", "object beside it", "sheet on a table", "turned", "cropped tightly",
    "small in the picture", "blur and JPEG", "drawing without noise", "line across it", "box across it",
    "drawing to its edges", "photograph to its edges", "darker line across it", "darker box across it",
)  # fmt: skip
PALE = {"pale ink": (0.5, 0.7), "darker line across it": (0.2, 0.6), "darker box across it": (0.2, 0.6)}
PENS = np.array([(20, 20, 30), (30, 50, 140), (180, 30, 40), (30, 120, 60), (90, 90, 95), (120, 60, 160)])
PAPERS = np.array([(250, 240, 150), (180, 220, 250), (250, 190, 210), (190, 240, 190)])
BOARDS = np.array([(40, 80, 60), (45, 50, 55), (30, 60, 110)])
CHALKS = np.array([(240, 240, 235), (240, 220, 120), (240, 160, 170)])


def photograph(digit: np.ndarray, kind: str, generator: np.random.Generator) -> PIL.Image.Image:
    """A picture in color of a digit of shape (28, 28), uint8, light on black."""
    side = int(generator.integers(110, 300))
    ink = write(digit, side, kind, generator)
    paper, pen = choose_colors(kind, generator)
    picture = rule(np.broadcast_to(paper, (*ink.shape, 3)), ink, kind, generator)
    picture += (pen - picture) * ink[..., None]
    if kind == "sheet on a table":
        table = generator.integers(20, 100, 3)
        picture = surround(picture, side // int(generator.integers(3, 8)), table)
    elif kind == "small in the picture":
        picture = surround(picture, int(generator.integers(2, 4) * side), paper)
    elif kind == "object beside it":
        edge, color = max(6, side // 5), generator.integers(0, 256, 3)
        if generator.choice([True, False]):
            picture[:edge] = color
        else:
            picture[:, :edge] = color
    return develop(picture, kind, generator)


def write(digit: np.ndarray, side: int, kind: str, generator: np.random.Generator) -> np.ndarray:
    """How much ink is where, from 0 to 1, of shape (rows, columns)."""
    large = PIL.Image.fromarray(digit).resize((side, side), BICUBIC)
    width = side // 28 | 1  # pixels of a pen that is thicker or thinner, odd
    if kind == "thick pen":
        large = large.filter(PIL.ImageFilter.MaxFilter(max(3, width)))
    elif kind == "thin pen":
        large = large.filter(PIL.ImageFilter.MinFilter(max(3, width)))
    large = large.rotate(generator.uniform(-1, 1) * (25 if kind == "turned" else 8), BICUBIC)
    if kind.endswith("to its edges"):
        thick = large.filter(PIL.ImageFilter.MaxFilter(int(generator.integers(0, side // 24)) * 2 + 1))
        large = thick.point(lambda level: 255 * (level > 110))
    if kind == "cropped tightly" or kind.endswith("to its edges"):
        return np.asarray(large.crop(large.point(lambda level: 255 * (level > 64)).getbbox())) / 255
    height, width = (int(side * factor) for factor in generator.uniform(1.1, 2, 2))
    canvas = PIL.Image.new("L", (width, height))
    canvas.paste(large, (int(generator.integers(width - side + 1)), int(generator.integers(height - side + 1))))
    return np.asarray(canvas) / 255


def choose_colors(kind: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The colors of paper and pen."""
    if kind == "random colors":
        while True:
            paper, pen = generator.integers(0, 256, (2, 3))
            if np.abs(paper - pen).max() >= 60:
                return paper, pen
    if kind == "chalk":
        return generator.choice(BOARDS), generator.choice(CHALKS)
    paper = (
        generator.choice(PAPERS) if kind == "colored paper" else generator.uniform((225, 222, 205), (250, 248, 245))
    )
    pen = generator.choice(PENS)
    return paper, pen + (paper - pen) * (generator.uniform(*PALE[kind]) if kind in PALE else 0)


def rule(paper: np.ndarray, ink: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """The paper with its lines, as floats."""
    paper = paper.astype(float)
    if kind.endswith("across it"):
        print_lines(paper, ink, kind, generator)
    if kind in ("ruled paper", "squared paper"):
        gap = int(generator.integers(14, 40))
        lines = slice(int(generator.integers(gap)), None, gap)
        color = generator.uniform((120, 170, 220), (190, 210, 250))
        paper[lines] = color
        if kind == "squared paper":
            paper[:, lines] = color
    return paper


def print_lines(paper: np.ndarray, ink: np.ndarray, kind: str, generator: np.random.Generator) -> None:
    """Print a line or a box across the digit, in place."""
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0))
    side = max(np.ptp(rows), np.ptp(columns))
    levels = (0, 40) if kind.startswith("darker") else (40, 140)
    width, color = int(generator.integers(1, 2 + side // 35)), generator.uniform(*levels, 3)
    margins = generator.uniform(-0.12, 0.3, 4) * side  # from the digit to the box: one at least is within the digit
    margins[generator.integers(4)] = generator.uniform(-0.12, -0.02) * side
    if kind.endswith("line across it"):
        row = int(generator.uniform(rows[0], rows[-1]))
        paper[row : row + width] = color
    else:
        top, left = (max(0, int(edge)) for edge in (rows[0] - margins[0], columns[0] - margins[1]))
        bottom, right = int(rows[-1] + margins[2]), int(columns[-1] + margins[3])
        inner = paper[top + width : bottom, left + width : right].copy()
        paper[top : bottom + width, left : right + width] = color
        paper[top + width : bottom, left + width : right] = inner


def surround(picture: np.ndarray, margin: int, color: np.ndarray) -> np.ndarray:
    height, width, _ = picture.shape
    wide = np.broadcast_to(color, (height + 2 * margin, width + 2 * margin, 3)).astype(float)
    wide[margin : margin + height, margin : margin + width] = picture
    return wide


def develop(picture: np.ndarray, kind: str, generator: np.random.Generator) -> PIL.Image.Image:
    """The picture in uneven, tinted light, blurred, noisy, and saved as JPEG."""
    if kind in ("drawing without noise", "drawing to its edges"):
        return PIL.Image.fromarray(picture.round().astype(np.uint8))
    height, width, _ = picture.shape
    coarse = PIL.Image.fromarray(generator.normal(1, 0.1, (3, 3)).astype(np.float32))
    light = np.asarray(coarse.resize((width, height), BICUBIC))[..., None] * generator.uniform((1, 0.9, 0.7), 1)
    if kind == "two lamps":  # a warm and a cold one
        light = light * np.linspace((1, 0.9, 0.6), (0.8, 0.9, 1), width)
    elif kind == "hard shadow":
        angle, at = generator.uniform(0, 2 * np.pi), generator.uniform(-0.3, 0.3)
        across = np.linspace(-1, 1, width) * np.cos(angle) + np.linspace(-1, 1, height)[:, None] * np.sin(angle)
        light = light * np.where(across < at, generator.uniform(0.35, 0.6), 1)[..., None]
    noise = generator.normal(0, 2, (height, width, 1)) + generator.normal(0, 4, picture.shape)
    image = PIL.Image.fromarray((picture * light + noise).clip(0, 255).astype(np.uint8))
    is_bad = kind == "blur and JPEG"
    image = image.filter(PIL.ImageFilter.GaussianBlur(generator.uniform(*((2, 4) if is_bad else (0.3, 1.2)))))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(generator.integers(*((10, 30) if is_bad else (50, 95)))))
    return PIL.Image.open(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="A new folder.")
    parser.add_argument("--num_images", type=positive, default=100, help="Images of each kind. Default: 100.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="Default: all.")
    parser.add_argument("--dataset_name", help="Folder or Hub id. Default: $VIT_MNIST_DATASET.")
    parser.add_argument("--seed", type=not_negative, default=0)
    args = parser.parse_args()
    if args.folder.exists():
        raise UsageError(f"{args.folder} exists: choose a new folder.")
    digits = load_images(DataArguments(dataset_name=args.dataset_name), VitMnistImageProcessor(), ["validation"])
    images, labels = digits["validation"].images.numpy(), digits["validation"].labels.tolist()
    args.folder.mkdir(parents=True)
    with (args.folder / "index.csv").open("w", newline="") as file:
        index = csv.writer(file)
        index.writerow(["file", "label", "kind"])
        for kind in tqdm(args.kinds, "Draw", unit=" kinds", leave=False, disable=None):
            # Each kind depends on the seed alone, not on which others are drawn.
            generator = np.random.default_rng((args.seed, KINDS.index(kind)))
            for number, chosen in enumerate(generator.integers(len(images), size=args.num_images)):
                name = f"{kind.replace(' ', '-')}-{number:04}.png"
                photograph(images[chosen], kind, generator).save(args.folder / name)
                index.writerow([name, digits["validation"].names[labels[chosen]], kind])
    print(f"Wrote {len(args.kinds) * args.num_images:,} images to {args.folder}")


if __name__ == "__main__":
    run_script(main)
