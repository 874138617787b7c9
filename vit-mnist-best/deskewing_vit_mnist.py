"""Digits upright and of one size, by the moments of their ink. Needs NumPy only. Travels with every checkpoint, so it
imports nothing of this package. The page in `demo/web/frame.js` computes the same."""

import math

import numpy as np

# What [`deskew`] brings an image of 28x28 to, in pixels.
MOST_SLANT = 1.2  # columns per row that are taken back
ROW_DEVIATION = 7.4  # standard deviation of the rows of the ink
COLUMN_DEVIATION = 5.4  # that of its columns is halfway, geometrically, between the digit's own and this one
COLUMN_DEVIATIONS = (1.6, 6.0)  # the least and the most
LEAST_VARIANCE = 0.3  # of a dot or a line


def deskew(gray: np.ndarray) -> np.ndarray:
    """The digit upright and of one size by its second moments: sheared until rows and columns are uncorrelated (LeCun
    et al., 1998), and scaled to a common height and half way to a common width (Liu et al., 2004, "Handwritten digit
    recognition: investigation of normalization and feature extraction techniques"). An image of one gray level is
    returned as it is. Raises `ValueError` for an image that is no square.

    Args:
        gray (`np.ndarray` of shape `(side, side)`, uint8, or float32 in [0, 1], which is rounded to 256 levels): One
            digit, light on black.
    """
    if gray.ndim != 2 or len(gray) != gray.shape[1]:
        raise ValueError(f"Only square images can be deskewed, got one of shape {gray.shape}.")
    if gray.min() == gray.max():
        return gray
    if gray.dtype != np.uint8:
        return np.float32(deskew(np.round(255 * gray).astype(np.uint8))) / np.float32(255)
    side = len(gray)
    unit, middle, at = side / 28, (side - 1) / 2, np.arange(side)
    padded = np.zeros((side + 2, side + 2))  # black outside
    padded[1:-1, 1:-1] = mass = gray.astype(np.int64)
    rows, columns = mass.sum(1), mass.sum(0)
    # Moments are exact: Python's integers have no limit. `frame.js` computes the rest in the same order.
    total, row, column = int(rows.sum()), int(rows @ at), int(columns @ at)
    squared = total * total
    row_variance = max((total * int(rows @ at**2) - row * row) / squared, LEAST_VARIANCE * unit * unit)
    column_variance = (total * int(columns @ at**2) - column * column) / squared
    covariance = (total * int(mass @ at @ at) - row * column) / squared
    slant = min(max(covariance / row_variance, -MOST_SLANT), MOST_SLANT)
    column_variance = column_variance - 2 * slant * covariance + slant * slant * row_variance
    height, width = math.sqrt(row_variance), math.sqrt(max(column_variance, LEAST_VARIANCE * unit * unit))
    new_height = ROW_DEVIATION * unit
    new_width = math.sqrt(width * (new_height / height) * (COLUMN_DEVIATION * unit))
    new_width = min(max(new_width, COLUMN_DEVIATIONS[0] * unit), COLUMN_DEVIATIONS[1] * unit)
    down = (at - middle) * (height / new_height)
    across = column / total + (at - middle) * (width / new_width)
    first, after = _neighbors(row / total + down, side)
    lines = padded[first] * (1 - after)[:, None] + padded[first + 1] * after[:, None]
    first, after = _neighbors(across[None] + (slant * down)[:, None], side)
    left, right = (np.take_along_axis(lines, pixel, 1) for pixel in (first, first + 1))
    return np.round(left * (1 - after) + right * after).astype(np.uint8)


def _neighbors(position: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel before each position, counted in an image with a black border of one pixel, and the weight of the
    pixel after it."""
    position = np.minimum(np.maximum(position, -1), side) + 1
    first = np.minimum(position.astype(np.int64), side)
    return first, position - first
