"""Exact nearest centroid of many rows.

A matrix product proposes, direct float64 distances dispose. Rows and centroids are written so that one product gives,
for every pair, a lower bound on the squared distance (less the row's norm):

* *plain*: all coordinates, centred: the bound is the distance itself up to rounding;
* *pruned*: the first h coordinates along the principal directions and, as one more, the norm of all the others. By
  Cauchy-Schwarz (x_t - c_t)² ≥ (‖x_t‖ - ‖c_t‖)², so the product over h + 2 columns is a bound from below at h / d of
  the cost. The few pairs it does not exclude get the same bound with some more coordinates first.

Whatever the bounds cannot exclude is measured directly, so labels and distances do not depend on the form, on BLAS or
on how rows were cut into blocks. Rounding is bounded by the worst case, |fl(a·b) - a·b| ≤ γ_n ‖a‖‖b‖ for any order of
summation.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.memory import TILE_CENTROIDS, tile_rows
from hkm_dask.kmeans import kernels
from hkm_dask.kmeans.frame import Frame

_UNIT = 2.0**-24
#: Up to so many features, centroids sorted along one axis are searched faster than by products.
SWEEP_FEATURES = 3
#: Coordinates after the head that the second bound takes.
_MORE = 96
_NO_MORE = np.empty((0, 1), np.float32)


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
    matrix : ndarray of float32, shape (n_rows, n_columns)
    norms : ndarray of float64, shape (n_rows,)
        Squared norms of all columns but the last.
    errors : ndarray of float64, shape (n_rows,)
        Bound on the distance between a row here and the exact one.
    refined : ndarray of float32, shape (n_rows, n_more + 1)
        The coordinates after those of the product, and the norm of what is left; without rows in the plain form.
    tails : ndarray of float32, shape (n_rows,)
        Norms of all coordinates after those of the product; empty in the plain form.
    """

    matrix: NDArray[np.float32]
    norms: NDArray[np.float64]
    errors: NDArray[np.float64]
    refined: NDArray[np.float32]
    tails: NDArray[np.float32]

    @property
    def n_bytes(self) -> int:
        """Bytes it takes."""
        return self.matrix.nbytes + self.norms.nbytes + self.errors.nbytes + self.refined.nbytes + self.tails.nbytes


def n_more(n_features: int, head: int) -> int:
    """Coordinates after the head that are looked at before a distance is measured.

    Parameters
    ----------
    n_features, head : int

    Returns
    -------
    int
        In whole vectors of 16.

    Examples
    --------
    >>> n_more(384, 96), n_more(64, 32)
    (96, 16)
    """
    return min(_MORE, (n_features - head) // 2) // 16 * 16


def make_operand(rows: NDArray[np.float32], frame: Frame, head: int) -> Operand:
    """Write rows for the product.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
    frame : Frame
    head : int
        Principal coordinates kept; 0 for the plain form.

    Returns
    -------
    Operand
    """
    n_rows, n_features = rows.shape
    centred = np.empty((n_rows, n_features + 1), np.float32)
    norms = np.empty(n_rows)
    kernels.centre(rows, frame.mean, centred, norms)
    if head == 0:
        return Operand(centred, norms, 2.0 * _UNIT * np.sqrt(norms), _NO_MORE, _NO_MORE[:, 0])
    assert frame.basis is not None
    width = head + n_more(n_features, head)
    projected = np.ascontiguousarray(centred[:, :n_features] @ frame.basis.get()[:, :width])
    matrix, refined = np.empty((n_rows, head + 2), np.float32), np.empty((n_rows, width - head + 1), np.float32)
    out_norms, errors = np.empty(n_rows), np.empty(n_rows)
    # A coordinate errs by γ_d ‖x‖, the basis by what it misses orthonormality.
    relative = frame.basis_error + _gamma(n_features) * float(np.sqrt(width)) * (1.0 + frame.basis_error)
    kernels.contract(projected, head, norms, relative, matrix, refined, out_norms, errors)
    return Operand(matrix, out_norms, errors, refined, np.ascontiguousarray(matrix[:, head]))


class Search:
    """A set of centroids made ready to be searched.

    Parameters
    ----------
    centroids : ndarray of float32, shape (n_clusters, n_features)
        Rows of NaN are slots without a centroid and are never found.
    frame : Frame
    head : int
        Principal coordinates kept; 0 for the plain form.
    """

    def __init__(self, centroids: NDArray[np.float32], frame: Frame, head: int = 0) -> None:
        used = ~np.isnan(centroids[:, 0])
        self._numbers = np.flatnonzero(used).astype(np.int32)
        self.centroids = np.ascontiguousarray(centroids if used.all() else centroids[used])
        self.frame, self.head = frame, head
        if self.is_swept:
            self._sort()
            return
        operand = make_operand(self.centroids, frame, head)
        weights = operand.matrix * np.float32(-2.0)
        weights[:, -1] = operand.norms
        self._weights = np.ascontiguousarray(weights.T)
        self._refined, self._tails = operand.refined, operand.tails
        self._gamma = _gamma(weights.shape[1] + 2)
        self._largest = float(np.sqrt(operand.norms.max(initial=0.0))) * (1.0 + 1e-6)
        self._error = float(operand.errors.max(initial=0.0))

    def only(self, chosen: NDArray[np.bool_]) -> Self:
        """Return a search among some of the centroids, under the numbers they have here.

        Parameters
        ----------
        chosen : ndarray of bool, shape (n_clusters,)
            For every centroid, also for slots without one.

        Returns
        -------
        Search
        """
        kept = chosen[self._numbers]
        part = copy.copy(self)
        part._numbers, part.centroids = self._numbers[kept], self.centroids[kept]
        if self.is_swept:
            part._sort()
            return part
        part._weights = np.ascontiguousarray(self._weights[:, kept])
        if self.head:
            part._refined, part._tails = self._refined[kept], self._tails[kept]
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
            `make_operand` of these rows, if it was kept.
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
                kernels.sweep_nearest(
                    rows, which, self.centroids, numbers, self._places, self._order, self._axis, labels, distances
                )
            )
        n_scores = len(self.centroids)
        height = min(tile_rows(n_scores), len(which))
        buffer = scratch("scores", height * min(n_scores, TILE_CENTROIDS))
        n_measured = 0
        for low in range(0, len(which), height):
            some = which[low : low + height]
            matrix, form, places = self._form(rows, some, operand)
            for left in range(0, n_scores, TILE_CENTROIDS):
                right = min(left + TILE_CENTROIDS, n_scores)
                scores = buffer[: len(some) * (right - left)].reshape(len(some), right - left)
                np.dot(matrix, self._weights[:, left:right], out=scores)
                n_measured += kernels.finish_nearest(
                    scores, rows, some, places, self.centroids, numbers, left, form.refined, form.tails,
                    self._refined, self._tails, form.norms, form.errors, self._error, self._gamma, self._largest,
                    labels, distances,
                )[1]  # fmt: skip
        return n_measured

    def _form(
        self, rows: NDArray[np.float32], some: NDArray[np.int64], operand: Operand | None
    ) -> tuple[NDArray[np.float32], Operand, NDArray[np.int64]]:
        """Some rows as the product takes them, an operand that holds them, and where it does."""
        in_a_run = some[-1] - some[0] == len(some) - 1
        run = slice(int(some[0]), int(some[-1]) + 1)
        if operand is None:
            made = make_operand(np.ascontiguousarray(rows[run if in_a_run else some]), self.frame, self.head)
            return made.matrix, made, np.arange(len(some))
        if in_a_run:
            return operand.matrix[run], operand, some
        width = operand.matrix.shape[1]
        matrix = scratch("matrix", len(some) * width).reshape(len(some), width)
        np.take(operand.matrix, some, axis=0, out=matrix, mode="clip")
        return matrix, operand, some
