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
    """

    def __init__(self, centroids: NDArray[np.float32], frame: Frame, head: int = 0) -> None:
        used = ~np.isnan(centroids[:, 0])
        self._index = None if used.all() else np.flatnonzero(used).astype(np.int32)
        self.centroids = np.ascontiguousarray(centroids if self._index is None else centroids[used])
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

        Returns
        -------
        int
            Distances that had to be measured directly.
        """
        if self.is_swept:
            return self._sweep(rows, labels, distances, first)
        n_scores = len(self.centroids)
        width = min(n_scores, TILE_CENTROIDS)
        height = min(tile_rows(n_scores), len(rows))
        buffer = scratch("scores", height * width)
        found = np.empty(height, np.int32)
        n_measured = 0
        for low in range(0, len(rows), max(height, 1)):
            high = min(low + height, len(rows))
            tile = rows[low:high]
            form = make_operand(tile, self.frame, self.head) if operand is None else _cut(operand, low, high)
            best = distances[low:high]
            local = found[: high - low]
            self._to_local(labels[low:high], local, first)
            for left in range(0, n_scores, TILE_CENTROIDS):
                right = min(left + TILE_CENTROIDS, n_scores)
                scores = buffer[: (high - low) * (right - left)].reshape(high - low, right - left)
                np.dot(form.matrix, self._weights[:, left:right], out=scores)
                n_measured += kernels.finish_nearest(
                    scores, tile, self.centroids, left, form.norms, form.errors, self._error, self._gamma,
                    self._largest, local, best,
                )  # fmt: skip
            self._to_caller(local, labels[low:high], first)
        return n_measured

    def _sweep(
        self, rows: NDArray[np.float32], labels: NDArray[np.int32], distances: NDArray[np.float64], first: int
    ) -> int:
        local = np.empty(len(rows), np.int32)
        self._to_local(labels, local, first)
        n_measured = kernels.sweep_nearest(
            rows, self.centroids, self._places, self._order, self._axis, local, distances
        )
        self._to_caller(local, labels, first)
        return int(n_measured)

    def _to_local(self, labels: NDArray[np.int32], local: NDArray[np.int32], first: int) -> None:
        # A best that is not ours (an earlier batch, or none) keeps a negative code, so that ties still prefer it.
        local[:] = labels - first
        if self._index is not None:
            at = np.searchsorted(self._index, local).clip(max=len(self._index) - 1)
            local[:] = np.where((local >= 0) & (self._index[at] == local), at, -1)
        np.maximum(local, -1, out=local)

    def _to_caller(self, local: NDArray[np.int32], labels: NDArray[np.int32], first: int) -> None:
        new = local >= 0
        ours = local[new] if self._index is None else self._index[local[new]]
        labels[new] = ours + first

    def label_distances(
        self, rows: NDArray[np.float32], labels: NDArray[np.int32], distances: NDArray[np.float64]
    ) -> None:
        """Write the squared distance of each row to the centroid `labels` names; infinity for -1.

        Labels are as for `nearest`, with ``first=0``; a label whose centroid is gone counts as -1.
        """
        local = np.empty(len(labels), np.int32)
        self._to_local(labels, local, 0)
        kernels.label_distances(rows, self.centroids, local, distances)


def _cut(operand: Operand, low: int, high: int) -> Operand:
    return Operand(operand.matrix[low:high], operand.norms[low:high], operand.errors[low:high])


_searches: dict[tuple[object, str, int], tuple[Search, np.ndarray | None]] = {}
_making = threading.Lock()


def search_for(centroids: Shared, frame: Frame, head: int) -> Search:
    """Return a `Search` for shared centroids, made once per process and kept while it is in use."""
    key = (centroids.path or id(centroids.array), frame.name, head)
    with _making:
        search, source = _searches.get(key, (None, None))
        if search is None or source is not centroids.array:  # an id may be used again
            search = _search_class()(centroids.get(), frame, head)
            while len(_searches) >= 2:
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
