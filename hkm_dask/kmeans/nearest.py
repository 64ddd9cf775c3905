"""Exact nearest centroid of many rows.

A matrix product proposes, direct float64 distances dispose. Rows and centroids are written so that one product gives,
for every pair, a lower bound on the squared distance (less the row's norm):

* *plain*: all coordinates, centred: the bound is the distance itself up to rounding;
* *pruned*: the first h coordinates along the principal directions and, as one more, the norm of all the others. By
  Cauchy-Schwarz (x_t - c_t)² ≥ (‖x_t‖ - ‖c_t‖)², so the product over h + 2 columns is a bound from below at h / d of
  the cost.

Whatever the bound cannot exclude is measured directly, so labels and distances do not depend on the form, on BLAS or
on how rows were cut into blocks. Rounding is bounded by the worst case, |fl(a·b) - a·b| ≤ γ_n ‖a‖‖b‖ for any order of
summation.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import worker_device
from hkm_dask.compute.memory import TILE_CENTROIDS, tile_rows
from hkm_dask.compute.shared import Shared
from hkm_dask.kmeans import kernels
from hkm_dask.kmeans.frame import Frame

_UNIT = 2.0**-24
#: Up to so many features, centroids sorted along one axis are searched faster than by products.
SWEEP_FEATURES = 3
#: Shares of the features tried as head, and the rows they are tried on.
_HEADS = (16, 32, 48, 64, 96, 128, 192, 256, 384)
TRIAL_ROWS = 256


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
    """

    matrix: NDArray[np.float32]
    norms: NDArray[np.float64]
    errors: NDArray[np.float64]

    @property
    def n_bytes(self) -> int:
        """Bytes it takes."""
        return self.matrix.nbytes + self.norms.nbytes + self.errors.nbytes


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
        return Operand(centred, norms, 2.0 * _UNIT * np.sqrt(norms))
    assert frame.basis is not None
    projected = np.ascontiguousarray(centred[:, :n_features] @ frame.basis.get()[:, :head])
    matrix = np.empty((n_rows, head + 2), np.float32)
    out_norms, errors = np.empty(n_rows), np.empty(n_rows)
    # A coordinate errs by γ_d ‖x‖, the basis by what it misses orthonormality.
    relative = frame.basis_error + _gamma(n_features) * float(np.sqrt(head)) * (1.0 + frame.basis_error)
    kernels.contract(projected, norms, relative, matrix, out_norms, errors)
    return Operand(matrix, out_norms, errors)


class Search:
    """A set of centroids made ready to be searched.

    Parameters
    ----------
    centroids : ndarray of float32, shape (n_clusters, n_features)
        Rows of NaN are slots without a centroid and are never found.
    frame : Frame
    head : int
        Principal coordinates kept; 0 for the plain form.
    only : ndarray of bool, shape (n_clusters,), optional
        The centroids to search, if not all.
    """

    def __init__(
        self,
        centroids: NDArray[np.float32],
        frame: Frame,
        head: int = 0,
        only: NDArray[np.bool_] | None = None,
    ) -> None:
        used = ~np.isnan(centroids[:, 0]) if only is None else only & ~np.isnan(centroids[:, 0])
        self._all = np.ascontiguousarray(centroids)
        self._numbers = np.flatnonzero(used).astype(np.int32)
        self.centroids = self._all if used.all() else self._all[used]
        self.frame, self.head = frame, head
        if self.is_swept:
            self._sort()
            return
        operand = make_operand(self.centroids, frame, head)
        weights = operand.matrix * np.float32(-2.0)
        weights[:, -1] = operand.norms
        self._weights = np.ascontiguousarray(weights.T)
        self._gamma = _gamma(weights.shape[1] + 2)
        self._largest = float(np.sqrt(operand.norms.max(initial=0.0))) * (1.0 + 1e-6)
        self._error = float(operand.errors.max(initial=0.0))

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
            form = self._form(rows, some, operand)
            for left in range(0, n_scores, TILE_CENTROIDS):
                right = min(left + TILE_CENTROIDS, n_scores)
                scores = buffer[: len(some) * (right - left)].reshape(len(some), right - left)
                np.dot(form.matrix, self._weights[:, left:right], out=scores)
                n_measured += kernels.finish_nearest(
                    scores, rows, some, self.centroids, numbers, left, form.norms, form.errors, self._error,
                    self._gamma, self._largest, labels, distances,
                )  # fmt: skip
        return n_measured

    def _form(self, rows: NDArray[np.float32], some: NDArray[np.int64], operand: Operand | None) -> Operand:
        """Some rows as the product takes them."""
        in_a_run = some[-1] - some[0] == len(some) - 1
        index = slice(int(some[0]), int(some[-1]) + 1) if in_a_run else some
        if operand is None:
            return make_operand(np.ascontiguousarray(rows[index]), self.frame, self.head)
        return Operand(operand.matrix[index], operand.norms[index], operand.errors[index])

    def label_distances(
        self, rows: NDArray[np.float32], labels: NDArray[np.int32], distances: NDArray[np.float64]
    ) -> None:
        """Write the squared distance of each row to the centroid `labels` names; infinity for -1.

        Labels are as for `nearest`, with ``first=0``; a label whose centroid is gone counts as -1.

        Parameters
        ----------
        rows : ndarray of float32, shape (n_rows, n_features)
        labels : ndarray of int32, shape (n_rows,)
        distances : ndarray of float64, shape (n_rows,)
            Written to.
        """
        kernels.label_distances(rows, self._all, labels, distances)


_searches: dict[tuple[object, ...], tuple[Search, np.ndarray | None]] = {}
_making = threading.Lock()


def search_for(centroids: Shared, frame: Frame, head: int, before: Shared | None = None) -> Search:
    """Return a `Search` for shared centroids, made once per process and kept while it is in use.

    Parameters
    ----------
    centroids : Shared
    frame : Frame
    head : int
    before : Shared, optional
        Search only the centroids that have moved from where they were here.
    """
    key = (centroids.name, frame.name, head, before and before.name)
    with _making:
        search, source = _searches.get(key, (None, None))
        if search is None or source is not centroids.array:  # an id may be used again
            now = centroids.get()
            moved = None if before is None else (now != before.get()).any(axis=1)
            search = _search_class()(now, frame, head, moved)
            while len(_searches) >= 3:
                _searches.pop(next(iter(_searches)))
            _searches[key] = (search, centroids.array)
        return search


def _search_class() -> type[Search]:
    if worker_device() == "cuda":
        from hkm_dask.kmeans.nearest_cuda import CudaSearch

        return CudaSearch
    return Search


def choose_head(
    rows: NDArray[np.float32], distances: NDArray[np.float64], centroids: Shared, frame: Frame, *, kept: bool
) -> int:
    """Measure which form of the product finds these rows' centroids soonest.

    Parameters
    ----------
    rows : ndarray of float32, shape (n_rows, n_features)
        A sample; the first few hundred are used.
    distances : ndarray of float64
        Upper bounds on their squared distances, infinity for nothing known.
    centroids : Shared
    frame : Frame
    kept : bool
        Whether rotated rows are kept from pass to pass, so that making them does not count.

    Returns
    -------
    int
        Coordinates to keep; 0 for the plain form.
    """
    n_features = rows.shape[1]
    if frame.basis is None or len(rows) < 32:
        return 0
    rows, distances = rows[:TRIAL_ROWS], distances[:TRIAL_ROWS]
    best_head, best_time, worse = 0, np.inf, 0
    for head in (0, *(h for h in reversed(_HEADS) if h <= 0.6 * n_features)):
        search = Search(centroids.get(), frame, head)
        taken = min(_trial(search, rows, distances, kept) for _ in range(3))
        if taken < best_time:
            best_head, best_time, worse = head, taken, 0
        elif head and (worse := worse + 1) == 2:
            break
    return best_head


def _trial(search: Search, rows: NDArray[np.float32], distances: NDArray[np.float64], kept: bool) -> float:
    operand = make_operand(rows, search.frame, search.head) if kept and search.head else None
    labels, distances = np.full(len(rows), -1, np.int32), distances.copy()
    begin = time.perf_counter()
    search.nearest(rows, labels, distances, operand)
    return time.perf_counter() - begin
