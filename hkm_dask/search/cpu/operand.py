"""Operands of the CPU's matrix products, made from rows and centroids, with bounds on their quantization error.

In the plain form they are centered float32 rows; in the pruned form, principal coordinates on a 16-bit grid, with the
norm of the remaining coordinates after every 16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hkm_dask.compute.jit import kernel
from hkm_dask.compute.matmul import matmul
from hkm_dask.search.cpu.tally import count
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.int16_gemm import LARGEST

_UNIT = 2.0**-24
_NO_NORMS = np.empty((0, 1), np.float32)


@kernel("void(f4[:,::1], f4[::1], f4[:,::1], f8[::1])")
def _center(rows, mean, out, norms):  # type: ignore[no-untyped-def]
    """Write rows minus mean into the first columns of `out`, 1 into the next column, and the squared norms."""
    n_features = rows.shape[1]
    for i in range(rows.shape[0]):
        row, centered = rows[i], out[i]
        for j in range(n_features):
            centered[j] = row[j] - mean[j]
        centered[n_features] = 1.0
        norms[i] = _squares(centered, n_features)


# Sums for bounds may be reordered; a function inlined by numba itself would lose this permission.
@njit(fastmath={"reassoc", "contract", "nsz"})
def _squares(values, n):  # type: ignore[no-untyped-def]
    """Return the sum of the squares of the first n float32 values, in float64."""
    total = 0.0
    for j in range(n):
        total += np.float64(values[j]) * np.float64(values[j])
    return total


@njit(fastmath={"reassoc", "contract", "nsz"})
def _to_grid(values, inverse, out):  # type: ignore[no-untyped-def]
    """Round float32 values to grid steps; returns the sum of squares of the rounding errors, in steps, as float64."""
    lost = 0.0
    for j in range(values.shape[0]):
        scaled = values[j] * inverse
        steps = np.rint(scaled)
        out[j] = np.int16(np.int32(steps))
        off = np.float64(scaled - steps)
        lost += off * off
    return lost


@njit
def _squared_steps(values, first):  # type: ignore[no-untyped-def]
    """Return the sum of the squares of 16 integers."""
    total = np.int64(0)
    for j in range(16):
        total += np.int64(np.int32(values[first + j]) * np.int32(values[first + j]))
    return total


@kernel("void(f4[:,::1], f8[::1], f8, f8, b1, i2[:,::1], f4[:,::1], f8[::1], f8[::1])")
def _quantize(  # type: ignore[no-untyped-def]
    projected, norms, relative_error, step, is_whole, matrix, residual_norms, out_norms, errors
):
    """Write 16-bit principal coordinates, and the residual norms after every 16 of them, into an `Operand`.

    A row as written, its coordinates and its last residual norm, is within `errors` of the exact one. `norms` are
    squared norms of the whole rows; `relative_error` bounds the projection error as a share of the row's norm. `step`
    is the width of the 16-bit grid, a power of two; a row that exceeds the grid has an infinite error. With `is_whole`,
    the projected coordinates are all coordinates, so nothing remains after them.
    """
    n_columns = matrix.shape[1]
    inverse = np.float32(1.0 / step)
    for i in range(projected.shape[0]):
        norm = np.sqrt(norms[i])
        delta = relative_error * norm
        fits = norm + delta < LARGEST * step and np.isfinite(inverse) and inverse > np.float32(0.0)
        kept = _squares(projected[i], projected.shape[1])
        lost = kept
        matrix[i, :] = 0
        if fits:
            lost = _to_grid(projected[i], inverse, matrix[i]) * step * step
        left = 0.0
        off = 0.0
        if not is_whole:
            left = max(norms[i] - kept, 0.0)
            spread = delta * (2.0 * norm + delta)
            off = spread / np.sqrt(left) if left > spread else np.sqrt(spread)
        residual_norms[i, n_columns // 16] = np.float32(np.sqrt(left))
        for block in range(n_columns // 16 - 1, -1, -1):
            left += np.float64(_squared_steps(matrix[i], 16 * block)) * (step * step)
            residual_norms[i, block] = np.float32(np.sqrt(left))
        out_norms[i] = left
        errors[i] = delta + off + np.sqrt(lost) * (1.0 + 1e-6) + 4.0 * 2.0**-24 * norm if fits else np.inf


def gamma(n: int) -> float:
    """Return the bound on the relative error of a float32 sum of n products, in any order."""
    return n * _UNIT / (1.0 - n * _UNIT)


@dataclass(frozen=True)
class Operand:
    """Rows in the form of an operand of the matrix product."""

    #: (n_rows, n_columns), float32 or int16: centered rows and a column of ones, or in the pruned form, the first
    #: principal coordinates in steps of `Geometry.step`.
    matrix: NDArray[Any]
    norms: NDArray[np.float64]  # (n_rows,): squared norms of the rows as written
    #: (n_rows,): bound on the distance between a row as written and the exact one; infinite if it exceeds 16 bits.
    errors: NDArray[np.float64]
    #: (n_rows, n_columns // 16 + 1): norms of the rows without their first 0, 16, 32, … coordinates; empty if plain.
    residual_norms: NDArray[np.float32]

    def __getitem__(self, some: NDArray[np.int64]) -> Operand:
        """Return the operand of some of the rows."""
        norms = self.residual_norms[some] if len(self.residual_norms) else self.residual_norms
        return Operand(self.matrix[some], self.norms[some], self.errors[some], norms)

    @property
    def n_bytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.matrix.nbytes + self.norms.nbytes + self.errors.nbytes + self.residual_norms.nbytes


def operand_bytes(n_features: int) -> int:
    """Return the bytes of a row in the pruned form with all coordinates.

    >>> operand_bytes(384)
    884
    """
    n_columns = whole_columns(n_features)
    return 2 * n_columns + 4 * (n_columns // 16 + 1) + 16


def concatenated(operands: list[Operand]) -> Operand:
    """Concatenate operands."""
    parts = [(some.matrix, some.norms, some.errors, some.residual_norms) for some in operands]
    return Operand(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def gathered(spans: Iterable[tuple[tuple[int, int], Operand]], numbers: NDArray[np.int64]) -> Operand | None:
    """Gather rows by number from operands of row ranges ``(first, stop)``; None if any row is missing."""
    order = None if (numbers[1:] >= numbers[:-1]).all() else np.argsort(numbers, kind="stable")
    rising = numbers if order is None else numbers[order]
    pieces, n_found = [], 0
    for (start, stop), operand in spans:
        first, last = np.searchsorted(rising, (start, stop))
        if first <= n_found < last:
            pieces.append(operand[rising[n_found:last] - start])
            n_found = last
    if n_found < len(numbers) or not pieces:
        return None
    return concatenated(pieces) if order is None else concatenated(pieces)[np.argsort(order)]


def whole_columns(n: int) -> int:
    """Return the number of columns for n coordinates: the next multiple of 16."""
    return -(-n // 16) * 16


def make_operand(rows: NDArray[np.float32], geometry: Geometry, width: int) -> Operand:
    """Convert float32 rows to an operand.

    `width` is the number of principal coordinates kept, a multiple of 16 or all; 0 for the plain form.
    """
    n_rows, n_features = rows.shape
    centered = np.empty((n_rows, n_features + 1), np.float32)
    norms = np.empty(n_rows)
    _center(rows, geometry.origin, centered, norms)
    if width == 0:
        return Operand(centered, norms, 2.0 * _UNIT * np.sqrt(norms), _NO_NORMS)
    assert geometry.basis is not None
    width = min(width, n_features)
    count(projected=n_rows * n_features * width)
    projected = np.ascontiguousarray(matmul(centered[:, :n_features], geometry.basis.get()[:, :width]))
    n_columns = whole_columns(width)
    matrix = np.empty((n_rows, n_columns), np.int16)
    residual_norms = np.empty((n_rows, n_columns // 16 + 1), np.float32)
    out_norms, errors = np.empty(n_rows), np.empty(n_rows)
    # The error of a coordinate is at most γ_d ‖x‖, plus that of the basis.
    relative = geometry.basis_error + gamma(n_features) * float(np.sqrt(width)) * (1.0 + geometry.basis_error)
    _quantize(projected, norms, relative, geometry.step, width == n_features, matrix, residual_norms, out_norms, errors)
    return Operand(matrix, out_norms, errors, residual_norms)
