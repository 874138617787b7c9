"""Operations on grayscale images (uint8) and masks (bool) that find and frame a digit. Needs Pillow and NumPy only.
Travels with every checkpoint, so it imports nothing of this package. `demo/web/frame.js` computes the same."""

import math

import numpy as np
import PIL.Image

BILINEAR = PIL.Image.Resampling.BILINEAR


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """First row, last row + 1, first column and last column + 1 that hold a pixel of the mask."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def pad(image: np.ndarray, margin: int) -> np.ndarray:
    """The image with a margin of zeros. For 28x28 pixels `np.pad` takes 14 µs, this takes 1."""
    padded = np.zeros((image.shape[0] + 2 * margin, image.shape[1] + 2 * margin), image.dtype)
    padded[margin:-margin, margin:-margin] = image
    return padded


def crop(mask: np.ndarray) -> np.ndarray:
    top, bottom, left, right = bounds(mask)
    return mask[top:bottom, left:right]


def fills_image(mask: np.ndarray) -> bool:
    return 10 * crop(mask).size >= 7 * mask.size


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


def unrepeat(gray: np.ndarray) -> np.ndarray:
    """The image without the repetitions of its pixels, if each of them was repeated to magnify it."""
    size = math.gcd(*gray.shape)
    for line in (*gray, *gray.T):
        if size == 1:
            break
        size = math.gcd(size, *(np.flatnonzero(line[1:] != line[:-1]) + 1).tolist())
    return gray[::size, ::size] if size > 1 and min(gray.shape) >= 3 * size else gray


def sliding_max(gray: np.ndarray, size: int) -> np.ndarray:
    """The maximum in a square window of odd size around each pixel: a dilation. In log2(size) steps per axis."""
    for _ in range(2):  # along columns, then along rows
        around = np.arange(-(size // 2), len(gray) + size // 2).clip(0, len(gray) - 1)
        gray, covered = gray[around], 1
        while covered < size:
            step = min(covered, size - covered)
            gray = np.maximum(gray[:-step], gray[step:])
            covered += step
        gray = gray.T
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


def is_two_level(gray: np.ndarray) -> bool:
    """Whether less than a fifth of an image is far from its darkest and its lightest level: a drawing or a scan, no
    photograph."""
    darkest, lightest = int(gray.min()), int(gray.max())
    distance = np.minimum(gray - darkest, lightest - gray)
    return 5 * np.count_nonzero(distance > (lightest - darkest) // 8) < gray.size


def find_runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column and last column + 1 of each horizontal run of the mask, in reading order."""
    padded = pad(mask, 1).ravel()
    row, column = np.divmod((padded[1:] != padded[:-1]).nonzero()[0], mask.shape[1] + 2)
    return row[::2] - 1, column[::2], column[1::2]


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
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(run), len(numbers)) for run in range(len(rows))], np.int64)


def stroke_width(mask: np.ndarray) -> float:
    """Mean width of strokes, in pixels: twice the area over the perimeter, which is measured along four directions
    (Crofton's formula)."""
    padded = pad(mask, 1)
    count = np.count_nonzero
    straight = count(padded[1:] != padded[:-1]) + count(padded[:, 1:] != padded[:, :-1])
    diagonal = count(padded[1:, 1:] != padded[:-1, :-1]) + count(padded[1:, :-1] != padded[:-1, 1:])
    return 2 * count(mask) / (np.pi / 8 * (straight + diagonal / 2**0.5))


def magnify(ink: np.ndarray, digit: np.ndarray, contrast: int, length: int) -> np.ndarray:
    """The digit as a mask whose longer side has `length` pixels: where its ink has half of `contrast`."""
    top, bottom, left, right = bounds(digit)
    near = pad(ink * sliding_max(digit.astype(np.uint8), 3), 2)[top : bottom + 4, left : right + 4]
    soft = np.minimum(near.astype(np.int32) * 255 // contrast, 255).astype(np.uint8)
    scale = length / max(bottom - top, right - left)
    mask = resize(soft, soft.shape[0] * scale, soft.shape[1] * scale) > 127
    return crop(mask) if mask.any() else np.ones((1, 1), bool)


def set_stroke_width(mask: np.ndarray, width: float) -> np.ndarray:
    """The mask with strokes of a width in parts of its longer side, dilated or eroded by a disk. As that changes its
    size, it is done up to three times."""
    for _ in range(3):
        side = max(mask.shape)
        radius = (width * side - stroke_width(mask)) / (2 * (1 - width))
        if abs(radius) < 0.5:
            break
        limit = min(int(abs(radius)) + 1, 40)
        padded = pad(mask, limit + 1)
        if radius > 0:
            changed = squared_distances(padded, limit) <= radius**2
        else:
            changed = squared_distances(~padded, limit) > radius**2
        if not changed.any():
            break
        mask = crop(changed)
    return mask


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


def darkness_around(gray: np.ndarray, paper: np.ndarray, digit: np.ndarray) -> float:
    """The fraction of the pixels around a mask that are closer to its ink than to its paper. Each ninth of its
    bounding box has its own levels of both, since the edge of a shadow may cross it."""
    top, bottom, left, right = bounds(digit)
    margin = max(bottom - top, right - left) // 2
    first_row, first_column = max(0, top - margin), max(0, left - margin)
    wide = slice(first_row, bottom + margin), slice(first_column, right + margin)
    gray, paper, digit = gray[wide], paper[wide], digit[wide]
    down = 3 * (np.arange(gray.shape[0]) + first_row - top) // (bottom - top)
    across = 3 * (np.arange(gray.shape[1]) + first_column - left) // (right - left)
    ninth = 3 * down.clip(0, 2)[:, None] + across.clip(0, 2)  # those at the rim reach up to the margin
    middle = (gray[digit].astype(np.int64) + paper[digit]) / 2
    area = np.bincount(ninth[digit], minlength=9)
    level = np.bincount(ninth[digit], middle, minlength=9) / np.maximum(area, 1)
    level[area == 0] = middle.mean()
    half = middle.size / 2  # of the digit itself, about half is counted
    return (np.count_nonzero(gray < level[ninth]) - half) / (gray.size - half)


def drop_lines(mask: np.ndarray) -> np.ndarray:
    """The mask without the straight lines of a form: the same mask if it has none. Lines are taken away one by one.
    They are lines of a form if all are at most about half as wide as the strokes of the rest, and one is long enough
    for its width."""
    top, bottom, left, right = bounds(mask)
    rest, found, lines = mask[top:bottom, left:right], mask, []
    for _ in range(40):  # squared paper has many
        line, turned = drop_line(rest), drop_line(rest.T)
        is_turned = turned[0] * line[1] > line[0] * turned[1]  # the more slender one
        length, width, rest = turned if is_turned else line
        if not length:
            break
        rest = rest.T if is_turned else rest
        lines.append((length, width))
        large = drop_small(rest)
        side, stroke = max(crop(large).shape), stroke_width(large)
        # The wider a line, the longer it must be: a digit has straight strokes of its own.
        is_long = any(length * stroke > 2 * side * width and 5 * length > 3 * side for length, width in lines)
        is_thin = all(20 * width < 11 * stroke and 10 * length > 3 * side for length, width in lines)
        if is_long and is_thin and 10 * stroke < 3 * side:  # wider, it is a blot where thin strokes cross
            found = np.pad(large, ((top, mask.shape[0] - bottom), (left, mask.shape[1] - right)))
    return found


def drop_line(mask: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Length and width of the line, at most 18° from the rows, on which most of the thin vertical runs lie, and the
    rest of the mask, with what crosses the line (a Hough transform; Duda and Hart, 1972, "Use of the Hough
    Transformation to Detect Lines and Curves in Pictures"). A length of 0 and the same mask if there is none."""
    height, width = mask.shape
    column, start, end = find_runs(mask.T)
    tall, middle = end - start, start + end - 1  # twice the row
    thin = tall <= max(3, max(mask.shape) // 12)
    rises = 2 * np.arange(-(width // 6), width // 6 + 1)  # in pixels, from the first column to the last
    lowest, bins = -(width // 3) - 1, height + 2 * (width // 3) + 4
    first_row = (middle[thin, None] * width - 2 * rises * column[thin, None]) // (2 * width) - lowest
    votes = np.bincount((first_row + bins * np.arange(len(rises))).ravel(), minlength=bins * len(rises))
    votes = votes.reshape(len(rises), bins)
    rise, row = divmod(int((votes[:, :-1] + votes[:, 1:]).argmax()), bins - 1)
    columns = np.arange(width)
    rows = row + lowest + 1 + rises[rise] * columns // width
    off = np.abs(middle - 2 * rows[column])
    on_line = thin & (off <= 3)
    near = (rows + np.arange(-1, 2)[:, None]).clip(0, height - 1)
    _, first, last = find_runs((mask[near, columns].any(0) & (rows >= 0) & (rows < height))[None])
    if not on_line.any() or not len(first):
        return 0, 1, mask
    longest = (last - first).argmax()
    line_width, length = percentile(tall[on_line], 50), int(last[longest] - first[longest])
    gone = (2 * tall <= 3 * line_width + 2) & (off <= line_width + 3)
    gone &= (first[longest] <= column) & (column < last[longest])
    if 4 * len(np.unique(column[gone])) < length or gone.all():  # most of it is in strokes, or it is all that there is
        return 0, 1, mask
    rest = mask.T.copy()
    rest[rest] = np.repeat(~gone, tall)
    return length, line_width, rest.T


def drop_small(mask: np.ndarray) -> np.ndarray:
    """The components whose bounding box has at least 0.15 of the longest side of any."""
    row, start, end = find_runs(mask)
    part = label_runs(row, start, end)
    components = [part == number for number in range(part.max() + 1)]
    sides = np.array([max(np.ptp(row[runs]) + 1, end[runs].max() - start[runs].min()) for runs in components])
    large = np.zeros_like(mask)
    large[mask] = np.repeat((20 * sides >= 3 * sides.max())[part], end - start)
    return large


def find_sheet(gray: np.ndarray, mask: np.ndarray, dark: bool) -> np.ndarray | None:
    """The sheet of paper, or the board, that a mask is a part of, as a filled mask: a parallelogram with something in
    it, which is dark or light. `None` if there is none."""
    # Wide parts of a sheet are no ink: the mask lacks them.
    middle = (
        percentile(gray[mask], 50) + percentile(gray[(sliding_max(mask.astype(np.uint8), 7) > 0) & ~mask], 50)
    ) / 2
    top, bottom, left, right = bounds(mask)
    sheet = np.zeros_like(mask)
    sheet[top:bottom, left:right] = (gray > middle if dark else gray < middle)[top:bottom, left:right]
    filled = fill_spans(sheet)
    area = np.count_nonzero(filled)
    return filled if area - np.count_nonzero(sheet) > 0.03 * area and is_parallelogram(filled) else None


def fill_spans(mask: np.ndarray) -> np.ndarray:
    """The pixels that lie between pixels of the mask both in their row and in their column."""

    def along_rows(mask: np.ndarray) -> np.ndarray:
        column, width = np.arange(mask.shape[1]), mask.shape[1]
        first, last = mask.argmax(1)[:, None], width - 1 - mask[:, ::-1].argmax(1)[:, None]
        return mask.any(axis=1, keepdims=True) & (first <= column) & (column <= last)

    return along_rows(mask) & along_rows(mask.T).T


def enclose(mask: np.ndarray) -> np.ndarray:
    """The mask, and the pixels that have it on at least three sides: to the left, to the right, above and below."""
    sides = np.zeros(mask.shape, np.int8)
    for _ in range(4):
        sides += np.logical_or.accumulate(mask)
        mask, sides = np.rot90(mask), np.rot90(sides)
    return mask | (sides >= 3)


def is_parallelogram(mask: np.ndarray) -> bool:
    """Whether the second moments of a mask are those of a parallelogram of its area, and it reaches into the corners.
    In units of the standard deviation along each direction, a parallelogram is a square with 3.8 % of its area further
    than the root of 4.5 from its center, and an ellipse is a circle that lies within."""
    row, column = np.nonzero(mask)
    area, middle_row, middle_column = len(row), int(row.sum()) / len(row), int(column.sum()) / len(row)
    pixel = 1 / 12  # the variance of a pixel's own area
    rows = int((row * row).sum()) / area - middle_row * middle_row + pixel
    columns = int((column * column).sum()) / area - middle_column * middle_column + pixel
    both = int((row * column).sum()) / area - middle_row * middle_column
    determinant = rows * columns - both * both
    down, across = row - middle_row, column - middle_column
    squared = (columns * down * down - 2 * both * down * across + rows * across * across) / determinant
    corners = int((squared > 4.5).sum())
    return abs(area / (12 * math.sqrt(determinant)) - 1) < 0.012 and corners > 0.035 * area
