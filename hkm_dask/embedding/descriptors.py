"""Image descriptors that need no model weights: `Hog` of edges and colors, `Cells` of colors only.

`Hog` is for photographs: histograms of oriented gradients (Dalal and Triggs, CVPR 2005) on a grid of 4 × 4 cells, and
the mean colors of the same cells. Distances reflect what is visible at a glance: layout, texture, color. A learned
model captures the content better.

`Cells` is for patches that show little but color and its changes, such as those of satellite images: the colors of
8 × 8 cells, with contrast on a logarithmic scale. Plain patches are close together regardless of noise, and the
positions of edges matter less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hkm_dask.embedding.embed import Encoder
from hkm_dask.errors import InputError

HOG_SIDE = 64  # side in pixels of the square that every image is scaled to
_HOG_CELL = 16  # side of a cell in pixels
_HOG_CELLS = HOG_SIDE // _HOG_CELL
_ORIENTATIONS = 9  # bins of 20°; dark-to-light and light-to-dark edges share a bin
N_GRADIENTS = 4 * _ORIENTATIONS * (_HOG_CELLS - 1) ** 2
_N_COLORS = 3 * _HOG_CELLS**2
# On CIFAR-10, 0.2 to 0.3 is best for nearest-neighbor classification; the gradients of an image have length 1.
_COLOR_WEIGHT = 0.25
# Contrast at which a block's weight is 0.7: noise in a clear sky is not texture. Photographs have 0.02 to 0.1.
FAINT = 0.02
_IMAGES_AT_ONCE = 16  # images whose gradients fit in the cache together
_CLIP = 0.2  # maximum in a normalized block, as in Dalal and Triggs
_EPSILON = 1e-5
_SINES = np.sin(np.pi / _ORIENTATIONS * np.arange(1, _ORIENTATIONS)).astype(np.float32)
_COSINES = np.cos(np.pi / _ORIENTATIONS * np.arange(1, _ORIENTATIONS)).astype(np.float32)

CELLS = 8  # cells per side, each described by the mean color of its pixels
_NOISE = 2.0  # contrast, in gray levels, above which its scale is logarithmic
_PATTERN_WEIGHT = 1 / 64  # weight of a patch's pattern relative to its mean color


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"image={image.dtype}{image.shape} should be uint8 (height, width, 3); convert it")


# --- edges and colors -------------------------------------------------------------------------------------------------


class Hog(Encoder):
    """Encoder of images as 372 numbers: 324 of gradients, 48 of color.

    Accepts uint8 arrays of shape (height, width, 3) of any size. Images are described one by one in `prepare`, so that
    all threads share the work.

    >>> images = [np.zeros((20, 30, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)]
    >>> Hog()(images).shape
    (2, 372)
    """

    name = "hog"
    fingerprint = f"hog-1-{HOG_SIDE}-{_HOG_CELL}-{_ORIENTATIONS}-{_COLOR_WEIGHT}-{FAINT}"
    n_features = N_GRADIENTS + _N_COLORS

    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Compute the descriptors of images, a few at a time; see `describe_edges`."""
        pieces = (items[start : start + _IMAGES_AT_ONCE] for start in range(0, len(items), _IMAGES_AT_ONCE))
        return [row for piece in pieces for row in describe_edges(np.stack([squeeze(item) for item in piece]))]

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Stack the descriptors."""
        return np.stack(prepared)


def squeeze(image: np.ndarray) -> np.ndarray:
    """Resize an image, uint8 of shape (height, width, 3), to (HOG_SIDE, HOG_SIDE, 3), regardless of its aspect ratio.

    >>> squeeze(np.full((3, 200, 3), 7, np.uint8)).shape
    (64, 64, 3)
    """
    _check_image(image)
    if image.shape[:2] == (HOG_SIDE, HOG_SIDE):
        return image
    return np.asarray(Image.fromarray(image).resize((HOG_SIDE, HOG_SIDE), Image.Resampling.BILINEAR))


def describe_edges(images: np.ndarray) -> np.ndarray:
    """Compute descriptors, float32 of shape (n, 372), of images, uint8 of shape (n, HOG_SIDE, HOG_SIDE, 3).

    Gradients come first: 3 × 3 blocks of 2 × 2 cells in reading order, the cells of each block in reading order, and 9
    orientations per cell. A block has length n / √(n² + FAINT²) / 3, where n is the norm of its histograms. Then come
    mean red, green and blue of the 4 × 4 cells, from −0.5 to 0.5, times ``_COLOR_WEIGHT``.

    After Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005: square root of
    intensities, channel with the largest gradient, L2-Hys. Unlike theirs, faint blocks are shorter.

    >>> gray = describe_edges(np.full((1, HOG_SIDE, HOG_SIDE, 3), 255, np.uint8))
    >>> float(gray[0, :N_GRADIENTS].max()), float(gray[0, -1])
    (0.0, 0.125)
    """
    n = len(images)
    planes = np.ascontiguousarray(np.moveaxis(images, 3, 0), dtype=np.float32) / 255
    gradients = _blocks(_histograms(*_gradients(np.sqrt(planes)))).reshape(n, -1) / (_HOG_CELLS - 1)
    cells = planes.reshape(3, n, _HOG_CELLS, _HOG_CELL, _HOG_CELLS, _HOG_CELL).mean(axis=(3, 5))
    colors = cells.transpose(1, 2, 3, 0).reshape(n, -1) - 0.5
    return np.concatenate([gradients, _COLOR_WEIGHT * colors], axis=1)


def _gradients(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute magnitude and orientation of the channel with the largest gradient; each (n, HOG_SIDE, HOG_SIDE)."""
    down, right = np.zeros_like(planes), np.zeros_like(planes)
    np.subtract(planes[:, :, 2:], planes[:, :, :-2], out=down[:, :, 1:-1])
    np.subtract(planes[..., 2:], planes[..., :-2], out=right[..., 1:-1])
    square = down**2 + right**2
    strongest, dy, dx = square[0], down[0], right[0]
    for channel in (1, 2):
        stronger = square[channel] > strongest
        strongest = np.where(stronger, square[channel], strongest)
        dy, dx = np.where(stronger, down[channel], dy), np.where(stronger, right[channel], dx)
    # Rotate gradients that point up by half a turn, for angles in [0°, 180°).
    flip = np.where((dy < 0) | ((dy == 0) & (dx < 0)), np.float32(-1), np.float32(1))
    dy, dx = dy * flip, dx * flip
    orientation = np.zeros(dy.shape, dtype=np.int8)
    for sine, cosine in zip(_SINES, _COSINES, strict=True):
        orientation += dy * cosine >= dx * sine  # the angle is at least that of (cosine, sine)
    orientation[strongest == 0] = 0
    return np.sqrt(strongest), orientation


def _histograms(magnitude: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Compute the mean magnitude per orientation in every cell: (n, _HOG_CELLS, _HOG_CELLS, _ORIENTATIONS)."""
    n = len(magnitude)
    cell = np.arange(HOG_SIDE) // _HOG_CELL
    places = (np.arange(n)[:, None, None] * _HOG_CELLS + cell[:, None]) * _HOG_CELLS + cell
    places = places * _ORIENTATIONS + orientation
    sums = np.bincount(places.ravel(), magnitude.ravel(), minlength=n * _HOG_CELLS**2 * _ORIENTATIONS)
    return (sums / _HOG_CELL**2).astype(np.float32).reshape(n, _HOG_CELLS, _HOG_CELLS, _ORIENTATIONS)


def _blocks(histograms: np.ndarray) -> np.ndarray:
    """Concatenate blocks of 2 × 2 cells; normalize, clip and normalize them again: (n, 3, 3, 36)."""
    h = histograms
    blocks = np.concatenate([h[:, :-1, :-1], h[:, :-1, 1:], h[:, 1:, :-1], h[:, 1:, 1:]], axis=3)
    square = (blocks**2).sum(axis=3, keepdims=True)
    clipped = np.minimum(blocks / np.sqrt(square + _EPSILON**2), _CLIP)
    normalized = clipped / np.sqrt((clipped**2).sum(axis=3, keepdims=True) + _EPSILON**2)
    return normalized * np.sqrt(square / (square + FAINT**2))


# --- colors of cells --------------------------------------------------------------------------------------------------


class Cells(Encoder):
    """Encoder of images as 192 numbers: a thumbnail with strong contrasts compressed.

    Accepts uint8 arrays of shape (height, width, 3) of any size.

    >>> Cells()([np.zeros((16, 16, 3), np.uint8), np.full((20, 30, 3), 255, np.uint8)]).mean(axis=1).tolist()
    [0.0, 1.0]
    """

    name = "cells"
    fingerprint = f"cells-1-{CELLS}-{_NOISE}-{_PATTERN_WEIGHT}"
    n_features = 3 * CELLS**2

    def prepare(self, items: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Average images over their cells and compute the descriptors; see `describe_cells`."""
        embeddings, _, _ = describe_cells(np.stack([average_cells(item) for item in items]))
        return list(embeddings)

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        """Stack the descriptors."""
        return np.stack(prepared).astype(np.float32)


def average_cells(image: np.ndarray) -> NDArray[np.float64]:
    """Average an image, uint8 of shape (height, width, 3), over its cells: float64 of shape (CELLS * CELLS, 3).

    Pixels on a border between cells contribute to both in proportion.

    >>> average_cells(np.arange(12, dtype=np.uint8).reshape(1, 12, 1).repeat(3, axis=2))[:3, 0].round(2).tolist()
    [0.33, 1.67, 3.33]
    """
    _check_image(image)
    down, across = (_shares(n) for n in image.shape[:2])
    return np.einsum("ih,hwc,jw->ijc", down, image.astype(np.float64), across, optimize=True).reshape(-1, 3)


def _shares(n: int) -> NDArray[np.float64]:
    """Return the weight of each of `n` pixels in each cell: (CELLS, n), rows sum to 1."""
    edges = np.arange(CELLS + 1) * (n / CELLS)
    pixels = np.arange(n)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    return overlap.clip(0) * (CELLS / n)


def describe_cells(cells: NDArray[np.float64]) -> tuple[NDArray[np.float16], NDArray[np.float64], NDArray[np.float64]]:
    """Compute descriptors whose distances reflect color first, then the pattern on a logarithmic scale.

    Without the logarithm, the strongest edges alone would span the space, and foliage and tiles would be close.

    Takes the cells of each patch, shape (n_patches, CELLS * CELLS, 3), in gray levels. Returns embeddings (n_patches,
    192): the mean color, 0 to 1, plus the compressed deviations from it, a thumbnail still; the mean color (n_patches,
    3); and the contrast (n_patches,), the root mean square of the deviations, both in gray levels.

    >>> embeddings, color, contrast = describe_cells(np.full((1, CELLS * CELLS, 3), 255.0))
    >>> embeddings.shape, float(embeddings.max()), color.tolist(), contrast.tolist()
    ((1, 192), 1.0, [[255.0, 255.0, 255.0]], [0.0])
    """
    color = cells.mean(axis=1)
    pattern = cells - color[:, None]
    contrast = np.sqrt((pattern**2).mean(axis=(1, 2)))
    loudness = _PATTERN_WEIGHT * np.log1p(contrast / _NOISE)
    pattern *= (loudness / np.maximum(contrast, 1e-9))[:, None, None]
    embeddings = color[:, None] / 255 + pattern
    return embeddings.reshape(len(cells), -1).astype(np.float16), color, contrast
