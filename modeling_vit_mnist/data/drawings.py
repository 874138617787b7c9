"""Training images that MNIST lacks: digits as other people write them, drawn by code and of handwriting fonts,
photographs, and drawings of no digit.

All are framed as a user's pictures are. Drawings of no digit have the label [`NO_DIGIT`]: each gets another random
class in every epoch, so that the network learns to be unsure of them (outlier exposure; Hendrycks, Mazeika and
Dietterich, 2019, https://arxiv.org/abs/1812.04606)."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import torch
from tqdm.auto import tqdm

from ..cli.assets import asset
from ..cli.errors import UsageError
from ..deskewing_vit_mnist import deskew
from ..framing_vit_mnist import MNIST_BOX, frame_digit
from ..morphology_vit_mnist import crop, place
from .augmentation import NO_DIGIT, AugmentationArguments
from .folders import load_from_folder
from .images import ImageDataset
from .streaming import ImageStream

CANVAS = 96  # pixels
FLAGS = ("--num_photographs", "--num_drawn_digits", "--num_font_digits", "--num_outliers")
FONTS = asset("data/font-digits")

# Strokes of the pen, each from point to point. A point is a column and a row from 0 to 8. Strokes that begin with "-"
# have corners, others are curves.
DIGITS = {
    "0": ["40 10 05 18 58 87 83 60 30", "40 10 05 18 58 87 83 60 30 / -71 17"],
    "1": ["-40 48", "-13 40 48", "-13 40 48 / -18 78", "-05 50 58", "12 31 40 / -40 48", "-12 40 48 / -28 68"],
    "2": ["12 20 60 82 65 08 / -08 88", "12 30 70 72 45 07 16 28 88"],
    "3": ["10 60 82 44 44 86 78 38 07", "-10 80 44 / 44 88 78 38 07"],
    "4": ["-10 05 85 / -62 68", "-60 05 85 / -60 68", "20 14 05 85 / -63 68", "-10 04 64 / -60 68",
          "10 15 65 / -60 68"],
    "5": ["-80 20 14 / 14 63 85 58 07", "-20 14 / 14 63 85 58 07 / -20 80"],
    "6": ["60 14 06 38 77 64 24 06", "40 05 18 58 76 44 06"],
    "7": ["-10 80 38", "-10 80 38 / -24 74", "-12 10 80 38", "-12 10 80 38 / -24 74", "11 30 80 54 48 / -34 74"],
    "8": ["70 20 12 44 86 58 18 15 44 82 70", "82 50 11 44 85 58 16 44 82"],
    "9": ["72 40 12 35 74 72 / 72 74 58 28 06", "72 40 12 35 74 72 / -72 68", "72 40 12 35 74 72 / 72 76 68 58 47"],
}  # fmt: skip
# Letters and signs that look like no digit.
OTHERS = [
    "-08 40 88 / -25 65", "82 50 13 06 38 87", "-80 00 08 88 / -04 64", "-80 00 08 / -04 64",
    "-00 08 / -80 88 / -04 84", "60 66 38 07", "-00 08 / -80 04 88", "-00 08 78", "-08 00 44 80 88", "-08 00 88 80",
    "-08 00 / 00 70 73 04", "-08 00 / 00 70 73 04 / -34 88", "-00 80 / -40 48", "00 06 38 77 80", "-00 48 80",
    "-00 28 42 68 80", "-00 88 / -80 08", "-00 08 / 05 43 75 78", "-08 03 / 05 23 45 48 / 45 63 85 88",
    "-04 84 / -40 48", "-08 03 / 05 43 75 78", "-05 38 80", "-08 40 88 08", "-00 80 88 08 00", "-02 82 / -06 86",
    "-20 28 / -60 68 / -02 82 / -06 86", "12 40 72 44 46 / -47 48", "-03 83 18 40 78 03",
    "-08 80 / 10 02 23 10 / 75 67 88 75", "44 53 35 23 42 74 57 15 11 61", "-04 84 51 / -84 57",
    "48 14 10 43 70 74 48", "-00 08 / 03 40 70", "70 30 38 / -04 64", "04 84 62 20 05 28 87",
    "-80 88 / 84 40 05 38 86", "-40 48 / -02 86 / -06 82", "-00 88 / -80 08 / -04 84", "-20 27 58 / -03 63",
]  # fmt: skip


def check_drawable(train: ImageDataset | ImageStream) -> None:
    """Raise [`UsageError`] unless the images are in memory and digits of 28x28 pixels."""
    if not isinstance(train, ImageDataset):
        raise UsageError(f"Nothing can be added to a stream: leave out --streaming or {', '.join(FLAGS)}.")
    height, width = train.images.shape[1:]
    if (height, width) != (28, 28) or not set(train.names) <= DIGITS.keys():
        raise UsageError(
            f"{', '.join(FLAGS)} are for digits of 28x28 pixels, got classes {', '.join(train.names[:12])} of "
            f"{height}x{width}: leave them out."
        )


def add_drawings(train: ImageDataset, args: AugmentationArguments, seed: int) -> ImageDataset:
    """The training images, followed by those that `args` asks for, drawn from `seed` alone. Takes 6 ms an image."""
    images = train.images.numpy()
    generator = np.random.default_rng((seed, 1))
    chosen = generator.integers(len(images), size=args.num_photographs)
    classes = np.arange(args.num_drawn_digits) % len(train.names)
    glyphs = load_glyphs(train.names) if args.num_font_digits else []
    font_digits = [glyphs[index] for index in generator.integers(len(glyphs), size=args.num_font_digits)]
    parts = [
        (photograph(images[index], generator) for index in chosen),
        (draw_digit(train.names[label], generator) for label in classes),
        (draw_glyph(glyph, generator) for glyph, _ in font_digits),
        (draw_outlier(images, generator) for _ in range(args.num_outliers)),
    ]
    drawn = np.stack([*tqdm(chain(*parts), "Draw", args.num_added, leave=False, unit=" images", disable=None)])
    if train.processor.do_deskew:
        drawn = np.stack([deskew(image) for image in drawn])
    made = torch.tensor([*classes, *(label for _, label in font_digits)], dtype=torch.int64)
    outliers = torch.full((args.num_outliers,), NO_DIGIT)
    labels = torch.cat([train.labels, train.labels[chosen], made, outliers])
    return replace(train, images=torch.cat([train.images, torch.from_numpy(drawn)]), labels=labels)


def photograph(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A digit of shape (side, side), as framing finds it in a picture that is rotated, blurred, noisy or pale."""
    for _ in range(5):
        angle = float(np.clip(generator.normal(0, 25), -55, 55))
        large = PIL.Image.fromarray(image).resize((CANVAS, CANVAS), PIL.Image.Resampling.BICUBIC)
        large = large.rotate(angle, PIL.Image.Resampling.BILINEAR, expand=True)
        large = large.filter(PIL.ImageFilter.GaussianBlur(generator.uniform(0, 4)))
        contrast, noise = generator.uniform(0.2, 1), generator.uniform(0, 0.1)
        pale = contrast * (
            np.asarray(large, np.float32) + generator.normal(0, 255 * noise, (large.height, large.width))
        )
        framing = frame_digit(np.uint8(255 - np.clip(pale, 0, 255)), len(image))
        if framing.problem is None:
            return framing.image
    return image


def draw_digit(digit: str, generator: np.random.Generator) -> np.ndarray:
    return _frame(lambda: draw_strokes(generator.choice(DIGITS[digit]), generator))


def load_glyphs(names: list[str]) -> list[tuple[PIL.Image.Image, int]]:
    """The digits of the training fonts, white on black, each with the index of its name."""
    glyphs = load_from_folder(FONTS, streaming=False)["train"]
    digits = glyphs.features["label"].int2str(glyphs["label"])
    return [
        (image.convert("L"), names.index(digit))
        for image, digit in zip(glyphs["image"], digits, strict=True)
        if digit in names
    ]


def draw_glyph(glyph: PIL.Image.Image, generator: np.random.Generator) -> np.ndarray:
    """A digit of a font, slanted, rotated and stretched at random, with a thicker pen."""

    def draw() -> np.ndarray:
        turn, stretch = np.deg2rad(generator.normal(0, 8)), generator.uniform(0.8, 1.3)
        lean, rise = generator.uniform(-0.3, 0.3), generator.uniform(-0.1, 0.1)
        shape = np.array([[1.25 * stretch, lean], [rise, 1.25 / stretch]])  # from the picture to the glyph
        matrix = shape @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        middle = CANVAS / 2
        offset = middle - matrix @ [middle, middle]
        large = glyph.resize((CANVAS, CANVAS), PIL.Image.Resampling.BICUBIC)
        map_back = (*matrix[0], offset[0], *matrix[1], offset[1])
        large = large.transform(large.size, PIL.Image.Transform.AFFINE, map_back, PIL.Image.Resampling.BILINEAR)
        pen = int(generator.choice([3, 3, 5]))
        return np.asarray(large.filter(PIL.ImageFilter.MaxFilter(pen)))

    return _frame(draw)


def draw_outlier(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A letter or sign, a scribble, a patch, several of the digits `images` in one frame, or rarely nothing."""
    if generator.random() < 0.01:
        return np.zeros_like(images[0])  # what a blank image is framed to
    kind = generator.integers(4)
    if kind == 0:
        return _frame(lambda: draw_strokes(generator.choice(OTHERS), generator))
    if kind == 1:
        return _frame(lambda: _scribble(generator))
    if kind == 2:
        return _frame(lambda: _patch(generator))
    return _several(images[generator.integers(len(images), size=generator.integers(2, 4))], generator)


def _frame(draw: Callable[[], np.ndarray]) -> np.ndarray:
    """Draw, light on black, until framing finds a digit."""
    while (framing := frame_digit(255 - draw())).problem is not None:
        pass
    return framing.image


def draw_strokes(strokes: str, generator: np.random.Generator) -> np.ndarray:
    """An entry of [`DIGITS`] or [`OTHERS`], with its points moved at random."""
    lines = []
    for stroke in map(str.strip, strokes.split("/")):
        points = np.array([[*map(int, point)] for point in stroke.strip("-").split()], float)
        moved = points + generator.normal(0, 0.35, points.shape)
        lines.append(moved if stroke.startswith("-") else _curve(moved))
    return _draw(lines, generator)


def _curve(points: np.ndarray) -> np.ndarray:
    """The points joined by a smooth curve, by cutting corners (Chaikin, 1974)."""
    for _ in range(3):
        first, second = points[:-1], points[1:]
        inner = np.stack([0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second], 1).reshape(-1, 2)
        points = np.concatenate([points[:1], inner, points[-1:]])
    return points


def _draw(lines: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Lines of a round pen, slanted, rotated and stretched at random, light on black."""
    turn = np.deg2rad(generator.normal(0, 8))
    shape = np.array([[generator.uniform(0.5, 1.1), generator.uniform(-0.4, 0.25)], [0, 1]])
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ shape
    points = np.concatenate(lines) @ matrix.T
    low, high = points.min(0), points.max(0)
    scale = 0.68 * CANVAS / max(*(high - low), 1)
    width = generator.uniform(3, 12)
    canvas = PIL.Image.new("L", (CANVAS, CANVAS))
    pen = PIL.ImageDraw.Draw(canvas)
    for line in lines:
        placed = (line @ matrix.T - (low + high) / 2) * scale + CANVAS / 2
        pen.line([*map(tuple, placed)], fill=255, width=round(width), joint="curve")
        for x, y in (placed[0], placed[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return np.asarray(canvas)


def _scribble(generator: np.random.Generator) -> np.ndarray:
    lines = [generator.uniform(0, 8, (generator.integers(5, 14), 2)) for _ in range(generator.integers(1, 3))]
    return _draw([_curve(line) if generator.random() < 0.7 else line for line in lines], generator)


def _patch(generator: np.random.Generator) -> np.ndarray:
    """A filled shape with holes and gaps, wide or high."""
    canvas = PIL.Image.new("L", (CANVAS, CANVAS))
    corners = generator.integers(3, 12)
    angles = 2 * np.pi / corners * (np.arange(corners) + generator.uniform(-0.3, 0.3, corners))
    radii = generator.uniform(0.25, 0.48, corners) * CANVAS
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
    points[:, generator.integers(2)] *= generator.uniform(0.35, 1)
    PIL.ImageDraw.Draw(canvas).polygon([*map(tuple, points + CANVAS / 2)], fill=255)
    coarse = generator.normal(generator.uniform(0, 2), 1, generator.integers(2, 9, 2)).astype(np.float32)
    texture = PIL.Image.fromarray(coarse).resize((CANVAS, CANVAS), PIL.Image.Resampling.BICUBIC)
    return np.asarray(canvas) * (np.asarray(texture) > 0).astype(np.uint8)


def _several(digits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Digits side by side."""
    side = digits.shape[1]
    masks = [crop(np.asarray(PIL.Image.fromarray(digit).resize((4 * side, 4 * side))) > 127) for digit in digits]
    height = max(len(mask) for mask in masks)
    row = np.zeros((height + 16, sum(mask.shape[1] for mask in masks) + 16 * len(masks)), bool)
    column = 0
    for mask in masks:
        top = generator.integers(0, len(row) - len(mask) + 1)
        row[top : top + len(mask), column : column + mask.shape[1]] |= mask
        column += mask.shape[1] + int(generator.integers(-8, 16))
        column = max(column, 0)
    return place(crop(row), side, round(side * MNIST_BOX))
