"""Exact nearest centroid of many rows.

A matrix product proposes, direct float64 distances dispose. Rows and centroids are written so that one product gives,
for every pair, a lower bound on the squared distance (less the row's norm):

* *plain*: all coordinates, centered, in float32: the bound is the distance itself up to rounding;
* *pruned*: the first h coordinates along the principal directions, in 16 bits, and as one more the norm of all the
  others. By Cauchy-Schwarz (x_t - c_t)² ≥ (‖x_t‖ - ‖c_t‖)², so the product over h + 1 columns is a bound from below at
  h / d of the cost. The few pairs it does not exclude get the same bound with some more coordinates first.

Whatever the bounds cannot exclude is measured directly, so labels and distances do not depend on the form, on BLAS or
on how rows were cut into blocks. Rounding is bounded by the worst case, |fl(a·b) - a·b| ≤ γ_n ‖a‖‖b‖ for any order of
summation; how far 16 bits are off is measured for every row.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.memory import TILE_CENTROIDS, tile_rows
from hkm_dask.kmeans.search import cpu_kernels, int16_gemm, quantize
from hkm_dask.kmeans.search.geometry import Geometry

_UNIT = 2.0**-24
#: Up to so many features, centroids sorted along one axis are searched faster than by products.
SWEEP_FEATURES = 3
#: Coordinates after the head that the second bound takes.
_MORE = 96
_NO_TAILS, _NO_COLUMNS = np.empty((0, 1), np.float32), np.empty((0, 0), np.int16)


_own = threading.local()


def scratch(name: str, n: int) -> NDArray[np.float32]:
    """Return `n` float32 of this thread's memory, kept from call to call: fresh pages cost as much as their use.

    Parameters
    ----------
    name : str
        Two uses at once have two names.
    n : int

    Returns
    -------
    ndarray of float32, shape (n,)
        Holding anything.
    """
    kept: NDArray[np.float32] | None = getattr(_own, name, None)
    if kept is None or not n <= len(kept) <= 4 * max(n, 1 << 16):
        kept = np.empty(max(n, 1), np.float32)
        setattr(_own, name, kept)
    return kept[:n]


def _gamma(n: int) -> float:
    return n * _UNIT / (1.0 - n * _UNIT)


@dataclass(frozen=True)
class Operand:
    """Rows as the matrix product takes them.

    Attributes
    ----------
    matrix : ndarray of float32 or int16, shape (n_rows, n_columns)
        Centered rows and a column of ones; or, pruned, the first principal coordinates in steps of `Geometry.step`.
    norms : ndarray of float64, shape (n_rows,)
        Squared norms of the rows as written.
    errors : ndarray of float64, shape (n_rows,)
        Bound on the distance between a row as written and the exact one; infinite where 16 bits do not hold it.
    tails : ndarray of float32, shape (n_rows, n_columns // 16 + 1)
        Norms of the rows less their first 0, 16, 32, … coordinates; without rows in the plain form.
    """

    matrix: NDArray[Any]
    norms: NDArray[np.float64]
    errors: NDArray[np.float64]
    tails: NDArray[np.float32]

    @property
    def n_bytes(self) -> int:
        """Bytes it takes."""
        return self.matrix.nbytes + self.norms.nbytes + self.errors.nbytes + self.tails.nbytes


def operand_bytes(n_features: int) -> int:
    """Bytes of a row in the pruned form, with all coordinates.

    Parameters
    ----------
    n_features : int

    Returns
    -------
    int

    Examples
    --------
    >>> operand_bytes(384)
    884
    """
    n_columns = _whole(n_features)
    return 2 * n_columns + 4 * (n_columns // 16 + 1) + 16


def _whole(n: int) -> int:
    """Columns for so many coordinates: the next multiple of 16."""
    return -(-n // 16) * 16


def make_operand(rows: NDArray[np.float32], geometry: Geometry, width: int) -> Operand:
    """Write rows for the product.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    geometry : Geometry
    width : int
        Principal coordinates kept, a multiple of 16 or all; 0 for the plain form.

    Returns
    -------
    Operand
    """
    n_rows, n_features = rows.shape
    centered = np.empty((n_rows, n_features + 1), np.float32)
    norms = np.empty(n_rows)
    quantize.center(rows, geometry.origin, centered, norms)
    if width == 0:
        return Operand(centered, norms, 2.0 * _UNIT * np.sqrt(norms), _NO_TAILS)
    assert geometry.basis is not None
    width = min(width, n_features)
    projected = np.ascontiguousarray(centered[:, :n_features] @ geometry.basis.get()[:, :width])
    n_columns = _whole(width)
    matrix, tails = np.empty((n_rows, n_columns), np.int16), np.empty((n_rows, n_columns // 16 + 1), np.float32)
    out_norms, errors = np.empty(n_rows), np.empty(n_rows)
    # A coordinate errs by γ_d ‖x‖, the basis by what it misses orthonormality.
    relative = geometry.basis_error + _gamma(n_features) * float(np.sqrt(width)) * (1.0 + geometry.basis_error)
    quantize.quantize(
        projected, norms, relative, geometry.step, width == n_features, matrix, tails, out_norms, errors
    )  # fmt: skip
    return Operand(matrix, out_norms, errors, tails)


class CentroidIndex:
    """A set of centroids made ready to be searched.

    Parameters
    ----------
    centroids : ndarray of float32, shape (n_clusters, n_features)
        Rows of NaN are slots without a centroid and are never found.
    geometry : Geometry
    head : int
        Principal coordinates in the product, a multiple of 16 or all; 0 for the plain form.
    """

    def __init__(self, centroids: NDArray[np.float32], geometry: Geometry, head: int = 0) -> None:
        used = ~np.isnan(centroids[:, 0])
        self._numbers = np.flatnonzero(used).astype(np.int32)
        self.centroids = np.ascontiguousarray(centroids if used.all() else centroids[used])
        n_features = self.centroids.shape[1]
        self.geometry, self.head = geometry, _whole(min(head, n_features))
        #: Coordinates looked at before a distance is measured.
        self.more = min(self.head + _MORE, _whole(n_features)) if head else 0
        self._matrix, self._tails = _NO_COLUMNS, _NO_TAILS
        if self.is_swept:
            self._sort()
            return
        self._operand = operand = make_operand(self.centroids, geometry, self.more)
        within = np.isfinite(operand.errors)
        self._largest = float(np.sqrt(operand.norms[within].max(initial=0.0))) * (1.0 + 1e-6)
        self._error = float(operand.errors[within].max(initial=0.0))
        self._gamma = _gamma(8 if head else n_features + 3)
        self._pack(np.arange(len(self.centroids)))

    def _pack(self, chosen: NDArray[np.int64]) -> None:
        """Make the chosen centroids ready for the product."""
        form = self._operand
        if not self.head:
            weights = form.matrix[chosen] * np.float32(-2.0)
            weights[:, -1] = form.norms[chosen]
            self._weights = np.ascontiguousarray(weights.T)
            return
        self._matrix, self._tails = form.matrix[chosen], form.tails[chosen]
        self._panels = int16_gemm.pack(form.matrix, self.head, chosen)
        width = int16_gemm.padded(len(chosen))
        self._constants, self._slopes = np.full(width, np.inf, np.float32), np.zeros(width, np.float32)
        # A centroid that 16 bits do not hold is excluded by no score.
        norms = np.where(np.isfinite(form.errors[chosen]), form.norms[chosen], -np.inf)
        self._constants[: len(chosen)] = norms
        self._slopes[: len(chosen)] = -2.0 * self._tails[:, self.head // 16]

    def only(self, chosen: NDArray[np.bool_]) -> Self:
        """Return a search among some of the centroids, under the numbers they have here.

        Parameters
        ----------
        chosen : ndarray of bool, shape (n_clusters,)
            For every centroid, also for slots without one.

        Returns
        -------
        CentroidIndex
        """
        kept = chosen[self._numbers]
        part = copy.copy(self)
        part._numbers, part.centroids = self._numbers[kept], self.centroids[kept]
        if self.is_swept:
            part._sort()
            return part
        part._pack(np.flatnonzero(kept))
        return part

    @property
    def is_swept(self) -> bool:
        """Whether rows have so few features that centroids are searched along one axis."""
        return self.centroids.shape[1] <= SWEEP_FEATURES

    def _sort(self) -> None:
        spread = np.ptp(self.centroids, axis=0) if len(self.centroids) else np.zeros(self.centroids.shape[1])
        self._axis = int(spread.argmax())
        self._order = np.argsort(self.centroids[:, self._axis], kind="stable")
        self._places = np.ascontiguousarray(self.centroids[self._order, self._axis])

    def nearest(
        self,
        rows: NDArray[np.float32],
        labels: NDArray[np.int32],
        distances: NDArray[np.float64],
        operand: Operand | None = None,
        first: int = 0,
        which: NDArray[np.int64] | None = None,
    ) -> int:
        """Bring `labels` and `distances` up to date with these centroids.

        Parameters
        ----------
        rows : ndarray of float32, shape (n_rows, n_features)
        labels : ndarray of int32, shape (n_rows,)
            Best centroid so far, in the numbering of the caller: centroid j here is ``first + j`` there.
        distances : ndarray of float64, shape (n_rows,)
            Squared L2 distance to it; infinity where there is none yet. A lower one is an upper bound on the answer.
        operand : Operand, optional
            `make_operand` of these rows, if it was kept: `more` coordinates wide or wider.
        first : int
            Number of the first centroid.
        which : ndarray of int64, optional
            The rows to look at, if not all.

        Returns
        -------
        int
            Distances that had to be measured directly.
        """
        which = np.arange(len(rows)) if which is None else which
        if not len(self.centroids) or not len(which):
            return 0
        numbers = self._numbers + np.int32(first)
        if self.is_swept:
            return int(
                cpu_kernels.sweep_nearest(
                    rows, which, self.centroids, numbers, self._places, self._order, self._axis, labels, distances
                )
            )
        height = min(tile_rows(len(self.centroids)), len(which))
        n_measured = 0
        for low in range(0, len(which), height):
            some = which[low : low + height]
            form, places = (operand, some) if operand is not None else self._form(rows, some)
            for left, n_scores, scores in self._scores(form, places):
                n_measured += cpu_kernels.finish_nearest(
                    scores, n_scores, rows, some, places, self.centroids, numbers, left,
                    form.matrix if self.head else _NO_COLUMNS, form.tails, self._matrix, self._tails,
                    self.head, self.more, self.geometry.step, form.norms, form.errors,
                    self._error, self._gamma, self._largest, labels, distances,
                )[1]  # fmt: skip
        return n_measured

    def _form(self, rows: NDArray[np.float32], some: NDArray[np.int64]) -> tuple[Operand, NDArray[np.int64]]:
        """Some rows as the product takes them, and their places there."""
        chosen = rows[_as_slice(some)]
        return make_operand(np.ascontiguousarray(chosen), self.geometry, self.more), np.arange(len(some))

    def _scores(self, form: Operand, places: NDArray[np.int64]) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
        """Scores of some rows, a number of centroids at a time: the first, how many, and a line for each row."""
        n_clusters, n_lines = len(self.centroids), len(places)
        for left in range(0, n_clusters, TILE_CENTROIDS):
            n_scores = min(TILE_CENTROIDS, n_clusters - left)
            if self.head == 0:
                scores = scratch("scores", n_lines * n_scores).reshape(n_lines, n_scores)
                np.dot(form.matrix[_as_slice(places)], self._weights[:, left : left + n_scores], out=scores)
            else:
                # Lines a power of two apart would meet in the same few places of the cache.
                n_panels = int16_gemm.padded(n_scores) // int16_gemm.PANEL
                shape = -(-n_lines // int16_gemm.BLOCK_ROWS) * int16_gemm.BLOCK_ROWS, n_panels * int16_gemm.PANEL + 16
                scores = scratch("scores", shape[0] * shape[1]).reshape(shape)
                int16_gemm.score(
                    form.matrix, self.head, places, form.tails, self._panels, self._constants, self._slopes,
                    np.float32(-2.0 * self.geometry.step**2), left // int16_gemm.PANEL, n_panels, scores,
                )  # fmt: skip
            yield left, n_scores, scores


def _as_slice(some: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """A run of indices as a slice, which copies nothing."""
    in_a_run = some[-1] - some[0] == len(some) - 1
    return slice(int(some[0]), int(some[-1]) + 1) if in_a_run else some
