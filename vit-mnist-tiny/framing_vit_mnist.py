"""From a grayscale picture of a digit, drawn, scanned or photographed, to an image framed as MNIST's are. Travels
with every checkpoint, so it imports nothing of this package but `morphology_vit_mnist`.

MNIST's digits are light on black, scaled into 20x20 pixels, with their center of mass at the center of 28x28 (LeCun et
al., 1998, "Gradient-Based Learning Applied to Document Recognition"). Images are of integers, and the rest is computed
in the same order by the page in `demo/web/frame.js`, to the same pixels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .morphology_vit_mnist import (
    blur,
    bounds,
    center_of_mass,
    crop,
    darkness_around,
    drop_lines,
    enclose,
    fills_image,
    find_runs,
    find_sheet,
    is_two_level,
    label_runs,
    magnify,
    percentile,
    place,
    resize,
    set_stroke_width,
    sliding_max,
    sliding_min,
    stroke_width,
    unrepeat,
)

MNIST_BOX = 20 / 28  # MNIST's digits were scaled into 20x20 of the 28x28 pixels
WORKING_SIDE = 384  # pixels of the longer side of the image in which the digit is searched
LEAST_SIDE = 20  # of an image that is searched as it is
MAGNIFIED_SIDE = 40  # pixels that a smaller one is magnified to
FINE = 8  # pixels per pixel of the frame in which strokes are made thicker or thinner
STROKE = 2.9 / 20  # width of strokes after framing, in parts of the longer side of the digit
PLAUSIBLE = 3  # of a further digit, or of one in a single color; below it, ink is searched again
WINDOW = 0.3  # in parts of the longer side of the image: ink is narrower
NARROW = 0.1  # window for pale ink in soft shadows
WIDE = 0.45  # window for thick strokes that fill an image, and for drawings
THICKENING = 5  # pixels of the working image that hairlines are thickened to
THICKENED = 1.5  # how much more plausible a digit of thickened lines must be
SPECK = 0.04  # of the longer side of the image: smaller is no digit
LINED = 2.5  # how much more plausible a digit is without lines that touch it
FILLING = 8  # preference of a digit that fills the image, per part of the image beyond a quarter
HOLE = 2.6  # a digit that fills the image may be preferred to a small hole in it by so much less
SHEET = 2.4  # a digit on a sheet may be less plausible than the sheet by so much
LEVELS = ((0.15, 0.75), (0.2, 0.5))  # thresholds in parts of the strongest ink; of small images, with soft strokes
LEAST_CONTRAST = 16  # between paper and ink, of 255


class Candidate(NamedTuple):
    """What may be the digit, dark on light or light on dark, with its plausibility."""

    score: float
    dark: bool
    ink: np.ndarray
    digit: np.ndarray


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
        plausibility (`float`): How much it is like a digit, as log-odds, and more if it fills the image: the highest
            if it was framed already, the lowest if there is none.
    """

    image: np.ndarray
    problem: str | None = None
    is_framed: bool = False
    is_dark_on_light: bool | None = None
    ink: np.ndarray | None = None
    digit: np.ndarray | None = None
    stroke_width: float | None = None
    has_others: bool = False
    plausibility: float = -math.inf


def frame_digit(gray: np.ndarray, side: int = 28, crop_again: bool = True) -> Framing:
    """Find the digit in an image and frame it as MNIST does. An image of MNIST is returned as it is, or as it was if
    its pixels were repeated.

    Args:
        gray (`np.ndarray` of shape `(height, width)`, uint8): One digit, dark on light or light on dark.
        side (`int`): Height and width of the frame.
        crop_again (`bool`): Search once more around a digit that is small in a large image.
    """
    gray = unrepeat(gray)
    if side == 28 and is_framed_as_mnist(gray):
        return Framing(gray, is_framed=True, plausibility=math.inf)
    blank = np.zeros((side, side), np.uint8)
    longest = max(gray.shape)
    factor = longest / MAGNIFIED_SIDE if longest < LEAST_SIDE else max(1, longest / WORKING_SIDE)
    working = resize(gray, gray.shape[0] / factor, gray.shape[1] / factor) if factor != 1 else gray
    if min(*gray.shape, *working.shape) < 3:
        return Framing(blank, f"an image of {gray.shape[1]}x{gray.shape[0]} pixels is too small")
    candidates = [*find_candidates(working, True), *find_candidates(working, False)]
    if max(working.shape) >= 64:
        candidates += search_again(working, candidates)
    candidates = [*candidates, *leave_out_lines(working, candidates)]
    if not candidates:
        return Framing(blank, "the image is blank")
    best = choose(candidates)
    sheet = look_on_sheet(working, best.digit, not best.dark)
    if on_sheet := [candidate for candidate in sheet if candidate.score > best.score - SHEET]:
        candidates = [*on_sheet, *leave_out_lines(working, on_sheet)]
        best = choose(candidates)
    ink, digit = best.ink, best.digit
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
    problem = _why_no_digit(best, contrast, width)
    found = Framing(blank, problem, is_dark_on_light=best.dark, ink=ink, digit=digit, stroke_width=box * width)
    if found.problem is None:
        found.image, found.plausibility = place(set_stroke_width(mask, STROKE), side, box), preference(best)
        others = (other.digit for other in candidates if other.score > PLAUSIBLE and other.ink is ink)
        found.has_others = any(2 * max(crop(other).shape) >= length for other in others if not (other & digit).any())
    return found


def is_framed_as_mnist(gray: np.ndarray) -> bool:
    """Whether an image of shape `(28, 28)`, uint8, is framed as all 70,000 of MNIST are."""
    if gray.shape != (28, 28) or gray.dtype != np.uint8 or gray.max() < 254:
        return False
    top, bottom, left, right = bounds(gray > 0)
    center = center_of_mass(gray)
    return max(bottom - top, right - left) in (19, 20) and all(13.48 <= middle <= 14.5 for middle in center)


def find_candidates(
    gray: np.ndarray, dark: bool, window: float = WINDOW, thickening: int = 0, lines: np.ndarray | None = None
) -> Iterator[Candidate]:
    """All that may be the digit, if the ink is darker than the paper, or lighter; after its lines are thickened to at
    least `thickening` pixels, or after `lines`, a mask, are painted over with paper.

    Ink is what a closing adds: it fills whatever is narrower than its window, which is a part of the longer side, and
    keeps lamps, tables and most of a shadow (a black top-hat; Serra, 1982, "Image Analysis and Mathematical
    Morphology"). In parts of the brightness of the paper, ink is the same in shadows."""
    is_small = max(gray.shape) < 64
    is_drawing = is_small or is_two_level(gray)
    gray = gray if dark else 255 - gray
    gray = sliding_min(gray, thickening) if thickening else gray
    gray = gray if is_small else blur(gray)
    size = int((WIDE if is_drawing else window) * max(gray.shape)) | 1
    paper = sliding_min(sliding_max(gray, size), size)
    gray = gray if lines is None else np.where(lines, paper, gray)
    ink = ((paper - gray).astype(np.int32) * 255 // (np.maximum(paper, 96) if dark else 255)).astype(np.uint8)
    ordered = np.sort(ink, axis=None, kind="stable")  # a radix sort: many times as fast as the default
    strongest = int(ordered[-20 if ink.size > 20_000 else -1])
    noise = int(ordered[(ink.size - 1) * 3 // 10])  # most of an image is paper
    levels = [max(level * strongest, noise) for level in LEVELS[is_small] if strongest >= LEAST_CONTRAST]
    masks = (mask for level in levels[: 1 if thickening else 2] for mask in find_digits(ink, ink > level))
    for digit in {mask.tobytes(): mask for mask in masks}.values():  # often the same for both levels
        yield Candidate(plausibility(gray, paper, ink, digit, levels[0], is_drawing), dark, ink, digit)


def search_again(gray: np.ndarray, candidates: list[Candidate]) -> Iterator[Candidate]:
    """Further candidates: thick strokes, if anything fills the image; pale ink in soft shadows and hairlines that have
    broken into pieces, if nothing is plausible."""
    if any(fills_image(candidate.digit) for candidate in candidates) and not is_two_level(gray):
        thick = [candidate for dark in (True, False) for candidate in find_candidates(gray, dark, WIDE)]
        candidates = [*candidates, *thick]
        yield from thick
    if any(candidate.score >= PLAUSIBLE for candidate in candidates):
        return
    strongest = max((int(candidate.ink.max()) for candidate in candidates), default=0)
    for dark in (True, False):
        for found in find_candidates(gray, dark, NARROW):
            # A dot wider than the window leaves a small cross, and a blur a weak one.
            if 4 * max(crop(found.digit).shape) >= max(gray.shape) and 2 * int(found.ink.max()) >= strongest:
                yield found
        for found in find_candidates(gray, dark, thickening=THICKENING):
            yield found._replace(score=found.score - THICKENED)


def preference(candidate: Candidate) -> float:
    """The plausibility of a candidate, and more if it fills the image: the paper between thick strokes is thin and
    clean like a digit. Below 0, it is taken for no digit."""
    filling = FILLING * max(float(candidate.digit.mean()) - 0.25, 0) if fills_image(candidate.digit) else 0
    return candidate.score + filling


def choose(candidates: list[Candidate]) -> Candidate:
    """The preferred one. If it is small, it may be a hole in a digit that fills the image: then that digit."""
    best = max(candidates, key=preference)
    if 10 * max(crop(best.digit).shape) >= 3 * max(best.digit.shape):
        return best
    others = [other for other in candidates if other.dark != best.dark and fills_image(other.digit)]
    around = max(others, key=preference, default=best)
    return around if preference(around) > max(preference(best) - HOLE, 0) else best


def leave_out_lines(gray: np.ndarray, candidates: list[Candidate]) -> Iterator[Candidate]:
    """Further candidates: the best of darker and of lighter ink, without the lines of a form that touch them. If one
    of the best two is not plausible with its lines, and their ink is stronger than that of the rest, the lines are
    painted over, and the digit is searched again."""
    if max(gray.shape) < 64:
        return
    for dark in (True, False):
        same = sorted((other for other in candidates if other.dark == dark), key=preference, reverse=True)
        for rank, lined in enumerate(same[:2]):
            is_plausible = lined.score > PLAUSIBLE
            if lined.score <= 0 or (rank == 1 and is_plausible) or (rest := drop_lines(lined.digit)) is lined.digit:
                continue
            gone = lined.digit & ~rest
            if is_plausible:
                yield lined._replace(score=lined.score + LINED, digit=rest)
            elif 5 * percentile(lined.ink[gone], 75) >= 6 * percentile(lined.ink[rest], 75):
                lines = (sliding_max(gone.astype(np.uint8), 3) > 0) & ~rest
                for found in find_candidates(gray, dark, lines=lines):
                    if found.score > PLAUSIBLE and 2 * np.count_nonzero(found.digit & rest) > np.count_nonzero(rest):
                        yield found


def plausibility(
    gray: np.ndarray, paper: np.ndarray, ink: np.ndarray, digit: np.ndarray, threshold: float, is_drawing: bool
) -> float:  # fmt: skip
    """How much a mask is like a digit of dark ink, as log-odds: a logistic regression on photographs made of MNIST's
    digits."""
    top, bottom, left, right = bounds(digit)
    side, inside = max(bottom - top, right - left), ink[digit]
    box, near = (
        (slice(max(0, top - margin), bottom + margin), slice(max(0, left - margin), right + margin))
        for margin in (0, side // 8)
    )
    # It is dark, clean and of thin strokes, ...
    contrast = percentile(inside, 75) / 255
    clean = int(inside.sum(dtype=np.int64)) / int(ink[near][ink[near] > threshold].sum(dtype=np.int64))
    width = stroke_width(digit[box]) / side
    # ... little else around it is as dark: around the hole in a 0, for example, is paper, ...
    dark = darkness_around(gray, paper, digit)
    # ... it is no speck, ...
    speck = 3 * (side < SPECK * max(gray.shape))
    # ... and it does not touch the border of the image, unless it fills the image.
    edge, weight = (2, 5) if max(gray.shape) >= 64 else (1, 3)
    borders = (digit[:edge].any(0), digit[-edge:].any(0), digit[:, :edge].any(1), digit[:, -edge:].any(1))
    contact = max(np.count_nonzero(border) for border in borders) / side
    border = weight * contact
    if is_drawing:  # it is often cropped tightly, with paper left at the corners
        middle = (int(gray[digit].sum(dtype=np.int64)) + int(paper[digit].sum(dtype=np.int64))) / (2 * inside.size)
        first = min(gray.shape) // 32  # not in a line along the border
        ends = [first, -1 - first]
        border += np.count_nonzero(gray[ends][:, ends] < middle)
    elif contact:
        border += 2.25 * (1 - digit[box].size / digit.size)
    score = 6 * contrast + 3 * clean - 1.3 * side / np.sqrt(inside.size) - 18 * max(width - 0.15, 0)
    return float(score - 10 * dark - speck - border + 3.2)


def look_on_sheet(gray: np.ndarray, mask: np.ndarray, dark: bool) -> Iterator[Candidate]:
    """All that may be the digit, if the mask is a sheet of paper or a board in a large image: a parallelogram with
    something in it."""
    if max(mask.shape) >= 64 and (sheet := find_sheet(gray, mask, dark)) is not None:
        inside = sliding_min(sheet.astype(np.uint8), 5) > 0
        yield from find_candidates(np.where(inside, gray, percentile(gray[mask], 50)).astype(np.uint8), dark)


def find_digits(ink: np.ndarray, mask: np.ndarray) -> Iterator[np.ndarray]:
    """The two components with the most ink, each with the parts near it, as masks. Components at the border of an
    image count little: they are shadows or lines. So do flat ones, which are lines on the paper. If a box, a ring or a
    table is drawn around components, even with a gap, only these are searched."""
    height, width = ink.shape
    row, start, end = find_runs(mask)
    part = label_runs(row, start, end)
    count = int(part.max(initial=-1)) + 1
    part_of_pixel = np.repeat(part, end - start)
    weight = np.bincount(part_of_pixel, ink[mask], count).astype(np.int64)
    top, left = np.full(count, height), np.full(count, width)
    bottom, right = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.minimum.at(top, part, row)
    np.maximum.at(bottom, part, row + 1)
    np.minimum.at(left, part, start)
    np.maximum.at(right, part, end)
    edge = 1 if max(height, width) >= 64 else 0
    at_border = (top <= edge) | (left <= edge) | (bottom >= height - edge) | (right >= width - edge)
    size = np.maximum(bottom - top, right - left)
    is_flat = 8 * (bottom - top) <= right - left

    def draw(chosen: np.ndarray) -> np.ndarray:
        drawn = np.zeros_like(mask)
        drawn[mask] = chosen[part_of_pixel]
        return drawn

    for outer in np.argsort(-size, kind="stable")[:3]:
        inner = (top > top[outer]) & (bottom < bottom[outer]) & (left > left[outer]) & (right < right[outer])
        if 10 * (largest := size[inner].max(initial=0)) < size[outer]:
            continue
        outline, inside = draw(np.arange(count) == outer), draw(inner)
        filled = enclose(outline)
        area = np.count_nonzero(filled)  # of what is thin and round or square, not the outline of a digit
        least = 7 if 10 * largest > 3 * size[outer] else 9  # a table: it is square, and no 0 with a speck in it
        is_frame = 2 * np.count_nonzero(outline) < area and 10 * area > least * crop(outline).size
        if is_frame and 10 * np.count_nonzero(inside & filled) > 9 * np.count_nonzero(inside):
            yield from find_digits(ink, inside)
            return

    for first in np.argsort(-weight * np.where(at_border | is_flat, 3, 100), kind="stable")[:2]:
        chosen = np.arange(count) == first
        box = [int(edges[first]) for edges in (top, bottom, left, right)]
        while not is_flat[first]:
            side = max(box[1] - box[0], box[3] - box[2])
            gap = np.maximum(np.maximum(box[0] - bottom, top - box[1]), np.maximum(box[2] - right, left - box[3]))
            more = ~chosen & (at_border[first] | ~at_border) & (10 * gap <= 3 * side)
            more &= (50 * weight >= weight[chosen].sum()) & (50 * size >= 3 * side)
            more &= ~is_flat | (right - left <= box[3] - box[2])  # not a longer line under it
            if not more.any():
                break
            chosen |= more
            box = [top[chosen].min(), bottom[chosen].max(), left[chosen].min(), right[chosen].max()]
        yield draw(chosen)


def _why_no_digit(candidate: Candidate, contrast: int, relative_width: float) -> str | None:
    (top, bottom, left, right), (height, width) = bounds(candidate.digit), candidate.digit.shape
    if candidate.score < 0 and contrast < 3 * LEAST_CONTRAST:
        return "the image is blank"
    if max(bottom - top, right - left) < SPECK * max(height, width):
        return "there are only specks"
    if relative_width > 0.42:
        return "there is only a dot"
    if (right - left >= 0.95 * width and bottom - top < 0.15 * height) or (
        bottom - top >= 0.95 * height and right - left < 0.15 * width
    ):
        return "there is only a line"
    return "the image is blank" if preference(candidate) < 0 else None
