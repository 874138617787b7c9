"""From a grayscale picture of a digit, drawn, scanned or photographed, to an image framed as MNIST's are. Needs Pillow
and NumPy only. Travels with every checkpoint, so it imports nothing of this package.

MNIST's digits are light on black, scaled into 20x20 pixels, with their center of mass at the center of 28x28 (LeCun et
al., 1998, "Gradient-Based Learning Applied to Document Recognition"). Images are of integers, and the rest is computed
in the same order by the page in `demo/web/frame.js`, to the same pixels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import PIL.Image

BILINEAR = PIL.Image.Resampling.BILINEAR
# MNIST's digits were scaled into 20x20 of the 28x28 pixels.
MNIST_BOX = 20 / 28
WORKING_SIDE = 384  # pixels of the longer side of the image in which the digit is searched
FINE = 8  # pixels per pixel of the frame in which strokes are made thicker or thinner
STROKE = 2.9 / 20  # width of strokes after framing, in parts of the longer side of the digit
OTHER = 3  # plausibility of another digit in the picture
LEVELS = ((0.15, 0.75), (0.2, 0.5))  # thresholds in parts of the strongest ink; of small images, with soft strokes
LEAST_CONTRAST = 16  # between paper and ink, of 255


@dataclass
class Framing:
    """What [`frame_digit`] found.

    Attributes:
        image (`np.ndarray` of shape `(side, side)`, uint8): The digit, light on black; all 0 if there is none.
        problem (`str`, *optional*): Why there is no digit.
        is_framed (`bool`): The image was framed already, and is unchanged. What follows is `None`.
        is_dark_on_light (`bool`): Whether the ink is darker than the paper.
        ink (`np.ndarray` of shape `(rows, columns)`, uint8): Contrast of each pixel of the working image to its paper.
        digit (`np.ndarray` of shape `(rows, columns)`, bool): The pixels of `ink` that belong to the digit.
        stroke_width (`float`): In pixels of the frame, before it was changed.
        has_others (`bool`): Whether there is more that may be a digit.
    """

    image: np.ndarray
    problem: str | None = None
    is_framed: bool = False
    is_dark_on_light: bool | None = None
    ink: np.ndarray | None = None
    digit: np.ndarray | None = None
    stroke_width: float | None = None
    has_others: bool = False


def frame_digit(gray: np.ndarray, side: int = 28, crop_again: bool = True) -> Framing:
    """Find the digit in an image and frame it as MNIST does. An image of MNIST is returned as it is.

    Args:
        gray (`np.ndarray` of shape `(height, width)`, uint8): One digit, dark on light or light on dark.
        side (`int`): Height and width of the frame.
        crop_again (`bool`): Search once more around a digit that is small in a large image.
    """
    if side == 28 and is_framed_as_mnist(gray):
        return Framing(gray, is_framed=True)
    blank = np.zeros((side, side), np.uint8)
    factor = max(1, max(gray.shape) / WORKING_SIDE)
    working = resize(gray, gray.shape[0] / factor, gray.shape[1] / factor) if factor > 1 else gray
    if min(working.shape) < 3:
        return Framing(blank, f"an image of {gray.shape[1]}x{gray.shape[0]} pixels is too small")
    candidates = [*find_candidates(working, True), *find_candidates(working, False)]
    if not candidates:
        return Framing(blank, "the image is blank")
    score, dark, ink, digit = max(candidates, key=lambda candidate: candidate[0])
    top, bottom, left, right = bounds(digit)
    length = max(bottom - top, right - left)
    if crop_again and factor > 1.5 and length < WORKING_SIDE / 4:
        rows = slice(max(0, int((top - length) * factor)), int((bottom + length) * factor))
        columns = slice(max(0, int((left - length) * factor)), int((right + length) * factor))
        return frame_digit(gray[rows, columns], side, crop_again=False)
    box = round(side * MNIST_BOX)
    contrast = percentile(ink[digit], 75)
    mask = magnify(ink, digit, contrast, box * FINE)
    width = stroke_width(mask) / max(mask.shape)
    found = Framing(blank, None, False, dark, ink, digit, box * width)
    found.problem = _why_no_digit(digit, contrast, width, score)
    if found.problem is None:
        found.image = place(set_stroke_width(mask), side, box)
        others = (part for score, _, its, part in candidates if score > OTHER and its is ink)
        found.has_others = any(2 * max(crop(part).shape) >= length for part in others if not (part & digit).any())
    return found


def is_framed_as_mnist(gray: np.ndarray) -> bool:
    """Whether an image of shape `(28, 28)`, uint8, is framed as all 70,000 of MNIST are."""
    if gray.shape != (28, 28) or gray.dtype != np.uint8 or gray.max() < 254:
        return False
    top, bottom, left, right = bounds(gray > 0)
    center = center_of_mass(gray)
    return max(bottom - top, right - left) in (19, 20) and all(13.48 <= middle <= 14.5 for middle in center)


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """First row, last row + 1, first column and last column + 1 that hold a pixel of the mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def center_of_mass(gray: np.ndarray) -> tuple[float, float]:
    """Row and column."""
    mass = gray.astype(np.int64)
    height, width = mass.shape
    row, column = mass.sum(1) @ np.arange(height), mass.sum(0) @ np.arange(width)
    return float(row / mass.sum()), float(column / mass.sum())


def resize(gray: np.ndarray, height: float, width: float) -> np.ndarray:
    """Rows, then columns; antialiased when shrinking. Both at once, Pillow chooses an order by its version."""
    height, width = (max(1, round(extent)) for extent in (height, width))
    rows = PIL.Image.fromarray(gray).resize((width, gray.shape[0]), BILINEAR)
    return np.asarray(rows.resize((width, height), BILINEAR))


def sliding_max(gray: np.ndarray, size: int) -> np.ndarray:
    """The maximum in a square window of odd size around each pixel: a dilation. In log2(size) steps per axis."""
    for _ in range(2):  # along columns, then along rows
        around = np.arange(-(size // 2), len(gray) + size // 2).clip(0, len(gray) - 1)
        gray, covered = gray[around], 1
        while covered < size:
            step = min(covered, size - covered)
            gray = np.maximum(gray[:-step], gray[step:])
            covered += step
        gray = np.ascontiguousarray(gray.T)
    return gray


def sliding_min(gray: np.ndarray, size: int) -> np.ndarray:
    return 255 - sliding_max(255 - gray, size)


def blur(gray: np.ndarray) -> np.ndarray:
    """Each pixel with its neighbors, weighted 1, 2, 1 along both axes."""
    sums = np.pad(gray, 1, mode="edge").astype(np.int32)
    sums = sums[:-2] + 2 * sums[1:-1] + sums[2:]
    sums = sums[:, :-2] + 2 * sums[:, 1:-1] + sums[:, 2:]
    return ((sums + 8) // 16).astype(np.uint8)


def percentile(values: np.ndarray, percent: int) -> int:
    rank = (values.size - 1) * percent // 100
    return int(np.partition(values, rank)[rank])


def find_candidates(gray: np.ndarray, dark: bool) -> Iterator[tuple[float, bool, np.ndarray, np.ndarray]]:
    """All that may be the digit, if the ink is darker than the paper, or lighter.

    Ink is what a closing adds: it fills whatever is narrower than its window, and keeps lamps, tables and most of a
    shadow (a black top-hat; Serra, 1982, "Image Analysis and Mathematical Morphology"). In parts of the brightness of
    the paper, ink is the same in shadows."""
    gray = gray if dark else 255 - gray
    is_small = max(gray.shape) < 64
    gray = gray if is_small else blur(gray)
    size = int(0.3 * max(gray.shape)) | 1
    paper = sliding_min(sliding_max(gray, size), size)
    ink = ((paper - gray).astype(np.int32) * 255 // (np.maximum(paper, 96) if dark else 255)).astype(np.uint8)
    ordered = np.sort(ink, axis=None)
    strongest = int(ordered[-20 if ink.size > 20_000 else -1])
    noise = int(ordered[(ink.size - 1) * 3 // 10])  # most of an image is paper
    levels = [max(level * strongest, noise) for level in LEVELS[is_small] if strongest >= LEAST_CONTRAST]
    for level in levels:
        for digit in find_digits(ink, ink > level):
            yield plausibility(gray, paper, ink, digit, levels[0]), dark, ink, digit


def plausibility(gray: np.ndarray, paper: np.ndarray, ink: np.ndarray, digit: np.ndarray, threshold: float) -> float:
    """How much a mask is like a digit of dark ink, as log-odds: a logistic regression on photographs made of MNIST's
    digits. Below 0, one of 300 is a digit."""
    top, bottom, left, right = bounds(digit)
    side, inside = max(bottom - top, right - left), ink[digit]
    area = inside.size
    box, near, wide = (
        (slice(max(0, top - margin), bottom + margin), slice(max(0, left - margin), right + margin))
        for margin in (0, side // 8, side // 2)
    )
    # It is dark, clean and of thin strokes, ...
    contrast = percentile(inside, 75) / 255
    clean = int(inside.sum(dtype=np.int64)) / int(ink[near][ink[near] > threshold].sum(dtype=np.int64))
    width = stroke_width(digit[box]) / side
    # ... little else around it is as dark: around the hole in a 0, for example, is paper, ...
    middle = (int(gray[digit].sum(dtype=np.int64)) + int(paper[digit].sum(dtype=np.int64))) / (2 * area)
    dark = (int((gray[wide] < middle).sum()) - area / 2) / (gray[wide].size - area / 2)
    # ... and it does not touch the border of the image, unless it fills the image.
    edge = 2 if max(gray.shape) >= 64 else 1
    borders = (digit[:edge].any(0), digit[-edge:].any(0), digit[:, :edge].any(1), digit[:, -edge:].any(1))
    contact = max(int(border.sum()) for border in borders) / side
    part = 1 - digit[box].size / digit.size if contact else 0
    score = 6 * contrast + 3 * clean - 1.3 * side / np.sqrt(area) - 18 * max(width - 0.15, 0)
    return float(score - 10 * dark - 5 * contact - 2.25 * part + 3.2)


def find_digits(ink: np.ndarray, mask: np.ndarray) -> Iterator[np.ndarray]:
    """The two components with the most ink, each with the parts near it, as masks. Components at the border of an
    image count little: they are shadows, lines or a table."""
    height, width = ink.shape
    row, start, end = find_runs(mask)
    part = label_runs(row, start, end)
    count = int(part.max(initial=-1)) + 1
    sums = np.concatenate([[0], ink.ravel().astype(np.int64).cumsum()])
    weight = np.zeros(count, np.int64)
    np.add.at(weight, part, sums[row * width + end] - sums[row * width + start])
    top, left = np.full(count, height), np.full(count, width)
    bottom, right = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.minimum.at(top, part, row)
    np.maximum.at(bottom, part, row + 1)
    np.minimum.at(left, part, start)
    np.maximum.at(right, part, end)
    edge = 1 if max(height, width) >= 64 else 0
    at_border = (top <= edge) | (left <= edge) | (bottom >= height - edge) | (right >= width - edge)
    size = np.maximum(bottom - top, right - left)

    for first in np.argsort(np.where(at_border, -3 * weight, -100 * weight), kind="stable")[:2]:
        chosen = np.arange(count) == first
        box = [int(edges[first]) for edges in (top, bottom, left, right)]
        while True:
            side = max(box[1] - box[0], box[3] - box[2])
            gap = np.max([box[0] - bottom, top - box[1], box[2] - right, left - box[3]], axis=0)
            more = ~chosen & (at_border[first] | ~at_border) & (10 * gap <= 3 * side)
            more &= (50 * weight >= weight[chosen].sum()) & (50 * size >= 3 * side)
            if not more.any():
                break
            chosen |= more
            box = [top[chosen].min(), bottom[chosen].max(), left[chosen].min(), right[chosen].max()]
        changes = np.zeros(mask.size + 1, np.int8)  # 1 where a run starts, -1 behind it
        belongs = chosen[part]
        changes[(row * width + start)[belongs]] += 1
        changes[(row * width + end)[belongs]] -= 1
        yield changes[:-1].cumsum(dtype=np.int8).reshape(mask.shape) > 0


def find_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column and last column + 1 of each horizontal run of the mask, in reading order."""
    changes = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (row, start), (_, end) = np.nonzero(changes == 1), np.nonzero(changes == -1)
    return row, start, end


def label_runs(row: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The number of the component of each run, by union-find. Runs that touch at a corner belong together."""
    parent = list(range(len(row)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    rows, starts, ends = row.tolist(), start.tolist(), end.tolist()
    above = 0
    for run in range(len(rows)):
        while rows[above] < rows[run] - 1 or (rows[above] == rows[run] - 1 and ends[above] < starts[run]):
            above += 1
        other = above
        while other < run and rows[other] == rows[run] - 1 and starts[other] <= ends[run]:
            first, second = sorted((root(other), root(run)))
            parent[second] = first
            other += 1
    return np.unique([root(run) for run in range(len(rows))], return_inverse=True)[1]


def magnify(ink: np.ndarray, digit: np.ndarray, contrast: int, length: int) -> np.ndarray:
    """The digit as a mask whose longer side has `length` pixels: where its ink has half of `contrast`."""
    top, bottom, left, right = bounds(digit)
    near = np.pad(ink * sliding_max(digit.astype(np.uint8), 3), 2)[top : bottom + 4, left : right + 4]
    soft = np.minimum(near.astype(np.int32) * 255 // contrast, 255).astype(np.uint8)
    scale = length / max(bottom - top, right - left)
    mask = resize(soft, soft.shape[0] * scale, soft.shape[1] * scale) > 127
    return crop(mask) if mask.any() else np.ones((1, 1), bool)


def crop(mask: np.ndarray) -> np.ndarray:
    top, bottom, left, right = bounds(mask)
    return mask[top:bottom, left:right]


def stroke_width(mask: np.ndarray) -> float:
    """Mean width of strokes, in pixels: twice the area over the perimeter, which is measured along four directions
    (Crofton's formula)."""
    padded = np.pad(mask, 1)
    straight = int((padded[1:] != padded[:-1]).sum()) + int((padded[:, 1:] != padded[:, :-1]).sum())
    diagonal = int((padded[1:, 1:] != padded[:-1, :-1]).sum()) + int((padded[1:, :-1] != padded[:-1, 1:]).sum())
    return 2 * int(mask.sum()) / (np.pi / 8 * (straight + diagonal / 2**0.5))


def set_stroke_width(mask: np.ndarray) -> np.ndarray:
    """The mask with strokes of the width [`STROKE`], dilated or eroded by a disk. That changes its size, so it is done
    up to three times."""
    for _ in range(3):
        side = max(mask.shape)
        radius = (STROKE * side - stroke_width(mask)) / (2 * (1 - STROKE))
        if abs(radius) < 0.5:
            break
        limit = min(int(abs(radius)) + 1, 40)
        padded = np.pad(mask, limit + 1)
        if radius > 0:
            changed = squared_distances(padded, limit) <= radius**2
        else:
            changed = squared_distances(~padded, limit) > radius**2
        if not changed.any():
            break
        mask = crop(changed)
    return mask


def squared_distances(mask: np.ndarray, limit: int) -> np.ndarray:
    """Squared distance of each pixel to the nearest one of the mask, exact up to `limit` pixels: at most 40."""
    squared = np.where(mask, 0, (limit + 1) ** 2).astype(np.int16)
    for _ in range(2):  # along columns, then along rows
        line = squared.copy()
        for step in range(1, limit + 1):
            np.minimum(squared[step:], line[:-step] + step**2, out=squared[step:])
            np.minimum(squared[:-step], line[step:] + step**2, out=squared[:-step])
        squared = np.ascontiguousarray(squared.T)
    return squared


def place(mask: np.ndarray, side: int, box: int) -> np.ndarray:
    """The mask in gray, scaled into `box` pixels, with its center of mass at the center of the frame."""
    scale = box / max(mask.shape)
    digit = resize(mask.astype(np.uint8) * 255, mask.shape[0] * scale, mask.shape[1] * scale).astype(np.int64)
    digit = digit * 255 // digit.max()
    height, width = digit.shape
    top, left = (
        min(max(round(side / 2 - middle), 0), side - extent)
        for middle, extent in zip(center_of_mass(digit), digit.shape, strict=True)
    )
    frame = np.zeros((side, side), np.uint8)
    frame[top : top + height, left : left + width] = digit
    return frame


def _why_no_digit(digit: np.ndarray, contrast: int, relative_width: float, plausibility: float) -> str | None:
    top, bottom, left, right = bounds(digit)
    height, width = digit.shape
    if plausibility < 0 and contrast < 3 * LEAST_CONTRAST:
        return "the image is blank"
    if max(bottom - top, right - left) < 0.04 * max(height, width):
        return "there are only specks"
    if relative_width > 0.42:
        return "there is only a dot"
    if (right - left >= 0.95 * width and bottom - top < 0.15 * height) or (
        bottom - top >= 0.95 * height and right - left < 0.15 * width
    ):
        return "there is only a line"
    return "the image is blank" if plausibility < 0 else None
