"""From a grayscale picture of a digit, drawn, scanned or photographed, to an image framed as MNIST's are. Needs Pillow
and NumPy only. Travels with every checkpoint, so it imports nothing of this package.

MNIST's digits are light on black, scaled into 20x20 pixels, with their center of mass at the center of 28x28 (LeCun et
al., 1998, "Gradient-Based Learning Applied to Document Recognition"). All steps are in integers, so that the page in
`demo/web/frame.js` computes the same."""

from dataclasses import dataclass

import numpy as np
import PIL.Image

BILINEAR = PIL.Image.Resampling.BILINEAR
# MNIST's digits were scaled into 20x20 of the 28x28 pixels.
MNIST_BOX = 20 / 28
WORKING_SIDE = 384  # pixels of the longer side of the image in which the digit is searched
FINE = 8  # pixels per pixel of the frame in which strokes are made thicker or thinner
STROKE = 2.9 / 20  # width of strokes after framing, in parts of the longer side of the digit
LEAST_CONTRAST = 16  # gray levels between paper and ink


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
        has_others (`bool`): Whether there is more ink of the size of the digit: another digit, for example.
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
    dark = is_dark_on_light(working)
    ink = measure_ink(working, dark)
    found = Framing(blank, is_dark_on_light=dark, ink=ink)
    strongest = int(np.partition(ink.ravel(), -20)[-20]) if ink.size > 20_000 else int(ink.max())
    noise = int(np.percentile(ink, 30, method="lower"))  # most of an image is paper
    if strongest < max(LEAST_CONTRAST, 3 * (noise + 1)):
        found.problem = "the image is blank"
        return found
    threshold = max(min(otsu_threshold(ink), 0.35 * strongest), 0.15 * strongest, noise)
    found.digit, found.has_others = find_digit(ink, ink > threshold)
    top, bottom, left, right = bounds(found.digit)
    length = max(bottom - top, right - left)
    if crop_again and factor > 1.5 and length < WORKING_SIDE / 4:
        rows = slice(max(0, int((top - length) * factor)), int((bottom + length) * factor))
        columns = slice(max(0, int((left - length) * factor)), int((right + length) * factor))
        return frame_digit(gray[rows, columns], side, crop_again=False)
    box = round(side * MNIST_BOX)
    contrast = int(np.percentile(ink[found.digit], 75, method="lower"))
    mask = magnify(ink, found.digit, contrast, box * FINE)
    width = stroke_width(mask)
    found.stroke_width = box * width / max(mask.shape)
    found.problem = _why_no_digit(found.digit, contrast, width / max(mask.shape))
    if found.problem is None:
        found.image = place(set_stroke_width(mask), side, box)
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
    for axis in (0, 1):
        padding = [(0, 0), (0, 0)]
        padding[axis] = (size // 2, size // 2)
        gray, covered = np.pad(gray, padding, mode="edge"), 1
        while covered < size:
            step = min(covered, size - covered)
            first, second = (slice(None, -step), slice(step, None))
            gray = np.maximum(gray[first], gray[second]) if axis == 0 else np.maximum(gray[:, first], gray[:, second])
            covered += step
    return gray


def sliding_min(gray: np.ndarray, size: int) -> np.ndarray:
    return 255 - sliding_max(255 - gray, size)


def blur(gray: np.ndarray) -> np.ndarray:
    """Each pixel with its neighbors, weighted 1, 2, 1 along both axes."""
    sums = np.pad(gray, 1, mode="edge").astype(np.int32)
    sums = sums[:-2] + 2 * sums[1:-1] + sums[2:]
    sums = sums[:, :-2] + 2 * sums[:, 1:-1] + sums[:, 2:]
    return ((sums + 8) // 16).astype(np.uint8)


def is_dark_on_light(gray: np.ndarray) -> bool:
    """Whether the ink is darker than the paper. A window of the size of a stroke or a digit holds more paper than ink,
    whatever the light, and the border shows paper."""
    factor = max(1, max(gray.shape) / 128)
    blurred = blur(resize(gray, gray.shape[0] / factor, gray.shape[1] / factor) if factor > 1 else gray)
    votes = sum(_vote(blurred, int(share * max(blurred.shape)) | 1) for share in (0.15, 0.3))
    low, high = int(blurred.min()), int(blurred.max())
    border = np.concatenate([blurred[0], blurred[-1], blurred[1:-1, 0], blurred[1:-1, -1]])
    return votes + (float(np.median(border)) - low) / max(high - low, 1) > 0.5


def _vote(gray: np.ndarray, size: int) -> float:
    """From -1 to 1: whether pixels are nearer to the brightest or the darkest one in a window around them, weighted by
    the contrast of the window. Edges of shadows have as many of the one as of the other."""
    lowest, highest = (extreme(gray, size).astype(np.int32) for extreme in (sliding_min, sliding_max))
    contrast = highest - lowest
    weight = np.where(5 * contrast > 2 * contrast.max(), contrast, 0)
    return float((weight * np.sign(2 * gray.astype(np.int32) - lowest - highest)).sum() / max(int(weight.sum()), 1))


def measure_ink(gray: np.ndarray, dark: bool) -> np.ndarray:
    """The contrast of each pixel to its paper: what a closing adds, which fills whatever is narrower than its window
    and keeps shadows, lamps and dark borders (a black top-hat; Serra, 1982, "Image Analysis and Mathematical
    Morphology")."""
    gray = gray if dark else 255 - gray
    if max(gray.shape) >= 64:
        gray = blur(gray)
    size = int(0.3 * max(gray.shape)) | 1
    return sliding_min(sliding_max(gray, size), size) - gray


def otsu_threshold(gray: np.ndarray) -> int:
    """The level that best separates two classes of pixels (Otsu, 1979)."""
    histogram = np.bincount(gray.ravel(), minlength=256)
    count, total = histogram.cumsum(), (histogram * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (total[-1] * count / count[-1] - total) ** 2 / (count * (count[-1] - count))
    return int(np.nan_to_num(variance, nan=0, posinf=0).argmax())


def find_digit(ink: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """The component of the mask with the most ink and the parts near it, as a mask; and whether there is as large a
    component besides. Components at the border of the image count little: they are shadows, lines or a table."""
    height, width = ink.shape
    row, start, end = find_runs(mask)
    part = label_runs(row, start, end)
    count = int(part.max()) + 1
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

    first = int(np.where(at_border, 3 * weight, 100 * weight).argmax())
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
        box = [int(top[chosen].min()), int(bottom[chosen].max()), int(left[chosen].min()), int(right[chosen].max())]
    others = ~chosen & ~at_border & (2 * size >= side) & (4 * weight >= weight[chosen].sum())
    digit = np.zeros(mask.shape, bool)
    belongs = chosen[part]
    for line, first_column, last_column in zip(row[belongs], start[belongs], end[belongs], strict=True):
        digit[line, first_column:last_column] = True
    return digit, bool(others.any())


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
    """Squared distance of each pixel to the nearest one of the mask, exact up to `limit` pixels."""
    column = np.where(mask, 0, limit + 1).astype(np.int32)  # along columns
    for row in range(1, len(column)):
        np.minimum(column[row], column[row - 1] + 1, out=column[row])
    for row in range(len(column) - 2, -1, -1):
        np.minimum(column[row], column[row + 1] + 1, out=column[row])
    column *= column
    squared = column.copy()
    for step in range(1, limit + 1):
        np.minimum(squared[:, step:], column[:, :-step] + step**2, out=squared[:, step:])
        np.minimum(squared[:, :-step], column[:, step:] + step**2, out=squared[:, :-step])
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


def _why_no_digit(digit: np.ndarray, contrast: int, relative_width: float) -> str | None:
    top, bottom, left, right = bounds(digit)
    height, width = digit.shape
    if contrast < 3 * LEAST_CONTRAST and (min(top, left) <= 1 or bottom >= height - 1 or right >= width - 1):
        return "the image is blank"  # shading at its border looks like pale ink
    if max(bottom - top, right - left) < 0.04 * max(height, width):
        return "there are only specks"
    if relative_width > 0.42:
        return "there is only a dot"
    if (right - left >= 0.95 * width and bottom - top < 0.15 * height) or (
        bottom - top >= 0.95 * height and right - left < 0.15 * width
    ):
        return "there is only a line"
    return None
