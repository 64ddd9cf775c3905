"""Thinning: of an ordered list of candidates, accept each that is not too close to one accepted before.

Comparing every candidate with all those accepted before is a nearest-neighbor search (`CentroidIndex`), on the worker's
device if it has one. What remains is sequential: a run of candidates is halved, and its second half searched among
those accepted of the first, until a run is short enough to compare all its pairs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.threads import share_out
from hkm_dask.data.rows import Origin
from hkm_dask.search.engine import CentroidIndex, Engine
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import engine_for, worker_engine

#: Accepted candidates from which a separate index pays off.
_INDEXED = 1024
#: A label greater than all others.
_NONE = np.iinfo(np.int32).max
#: Least number of candidates per search thread.
_THREAD_ROWS = 64


def thin(
    vectors: NDArray[np.float32], limits: NDArray[np.float64], wanted: int, *, geometry: Geometry, n_threads: int = 1,
    origin: Origin | None = None,
) -> NDArray[np.int64]:  # fmt: skip
    """Accept the first `wanted` candidates that are not too close to those accepted before; returns their positions.

    `vectors`, float32 (n_candidates, n_features), are in the order of acceptance; a candidate's squared distance to
    every accepted one must exceed its limit, float64 (n_candidates,), >= 0. The geometry is that of the rows from which
    candidates were drawn, and `origin` says which rows they copy, so that cached data of these is reused. On a CPU, the
    search uses `n_threads`.

    >>> points = np.float32([[0.0], [1.0], [3.0], [2.5]])
    >>> thin(points, np.full(4, 2.0), 3, geometry=Geometry(points.mean(0), 3.0, 4)).tolist()
    [0, 2]
    """
    step = worker_engine().busy_rows * n_threads
    batches: list[_Batch] = []
    n_taken = 0
    candidates = _Candidates(vectors, limits, geometry, n_threads, origin)
    for low in range(0, len(limits), step):
        some = np.arange(low, min(low + step, len(limits)))
        for batch in batches:
            some = candidates.clear_of(batch, some)
        new = candidates.accepted(some)[: wanted - n_taken]
        n_taken += len(new)
        if n_taken == wanted:
            return np.concatenate([*(batch.numbers for batch in batches), new])
        if batches and len(batches[-1].numbers) < _INDEXED:
            new = np.concatenate([batches.pop().numbers, new])
        batches.append(_Batch(new))
    return np.concatenate([np.empty(0, np.int64), *(batch.numbers for batch in batches)])


class _Batch:
    """Accepted candidates, with an index of them for each engine that needs one."""

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self.numbers = numbers
        self.indexes: dict[Engine, CentroidIndex] = {}


class _Candidates:
    """All candidates, in the memory of each engine that searches them."""

    def __init__(
        self, vectors: NDArray[np.float32], limits: NDArray[np.float64], geometry: Geometry, n_threads: int,
        origin: Origin | None,
    ) -> None:  # fmt: skip
        self._vectors, self._geometry, self._n_threads = vectors, geometry, n_threads
        self._limits, self._origin = limits, origin
        self._sites: dict[Engine, _Site] = {}

    def accepted(self, some: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of `some` that are accepted, if no candidate accepted earlier rules them out."""
        engine = self._engine_for(len(some) ** 2 / 2)
        site = self._sites[engine]
        if len(some) <= engine.walked_rows(site.operand):
            return some[site.accepted(some)]
        first = self.accepted(some[: len(some) // 2])
        second = self.accepted(self.clear_of(_Batch(first), some[len(some) // 2 :]))
        return np.concatenate([first, second])

    def clear_of(self, batch: _Batch, some: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of `some` that are beyond their limit from all candidates of a batch."""
        if not len(some) or not len(batch.numbers):
            return some
        engine = self._engine_for(len(some) * len(batch.numbers))
        site = self._sites[engine]
        if engine not in batch.indexes:
            batch.indexes[engine] = site.index(batch.numbers)
        index = batch.indexes[engine]

        def search(piece: slice) -> None:
            index.nearest(site.rows, site.labels, site.distances, site.operand, which=engine.put(some[piece]))

        n_pieces = max(1, min(self._n_threads, len(some) // _THREAD_ROWS))
        cuts = (len(some) * np.arange(n_pieces + 1) // n_pieces).tolist()
        share_out(search, list(map(slice, cuts[:-1], cuts[1:])), n_pieces)
        return some[engine.host(site.labels[engine.put(some)]) == _NONE]

    def _engine_for(self, n_pairs: float) -> Engine:
        """Return the engine for this number of pairs, after copying all candidates to its memory."""
        engine = engine_for(2.0 * n_pairs * self._vectors.shape[1])
        if engine not in self._sites:
            self._sites[engine] = _Site(engine, self._vectors, self._limits, self._geometry, self._origin)
        return engine


class _Site:
    """All candidates in the memory of one engine; those too close to an accepted one carry its label."""

    def __init__(
        self, engine: Engine, vectors: NDArray[np.float32], limits: NDArray[np.float64], geometry: Geometry,
        origin: Origin | None,
    ) -> None:  # fmt: skip
        self._engine, self._geometry, self.rows = engine, geometry, engine.put(vectors)
        self.operand = engine.operand(self.rows, geometry, origin)
        # As if a point of the highest index lay at the limit: ties go to the lowest index, and limits must be exceeded.
        self.labels, self.distances = engine.xp.full(len(limits), _NONE, engine.xp.int32), engine.put(limits.copy())

    def accepted(self, some: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of `some` are accepted, if no candidate accepted earlier rules them out."""
        # A candidate that is ruled out has a distance other than its limit, and is not among `some`.
        return self._engine.accept_in_order(
            self.rows, self._engine.put(some), self.distances, self.operand, self._geometry
        )

    def index(self, numbers: NDArray[np.int64]) -> CentroidIndex:
        """Make an index of some candidates."""
        return self._engine.index_of_some(self.rows, self._engine.put(numbers), self.operand, self._geometry)
