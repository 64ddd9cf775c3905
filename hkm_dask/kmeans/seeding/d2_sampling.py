"""D² sampling: rows drawn with probability proportional to the squared distance from the rows drawn before.

(`random_rows` draws uniformly.) k-means++ draws one center after another, each with probability proportional to D², the
squared distance to the nearest center so far, in k passes. Drawing in batches by thinning is exact as well: draw
candidates by the D² of the last pass, take them in order, and accept each with probability D²_now / D²_then, where
D²_now accounts for the candidates accepted since. Every accepted candidate is thus a draw by its current D². As batches
grow with the number of centers, a handful of passes suffice. *k-means||* draws independently in five rounds, each by
the D² of the previous round (Bahmani et al., arXiv:1203.6402).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module
from hkm_dask.compute.keyed_random import random_uniform, stream_key
from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.partition import Part
from hkm_dask.compute.resident import take
from hkm_dask.compute.runner import Report, Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore
from hkm_dask.compute.stepwise import MapReduce, Outcome, Steps, stepwise
from hkm_dask.data.rows import Rows
from hkm_dask.kmeans.seeding.random_rows import random_rows
from hkm_dask.kmeans.seeding.thinning import thin
from hkm_dask.search.engine import Engine, RowTile, fold
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import worker_engine

#: Rounds of k-means||, each of which draws twice as many centers as clusters.
PARALLEL_ROUNDS = 5


class Drawn(NamedTuple):
    """Candidates: arrival times, row numbers, D² when drawn, and the rows themselves; each of length n_candidates."""

    times: NDArray[np.float64]
    rows: NDArray[np.int64]
    squared: NDArray[np.float64]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Candidates(Outcome):
    """Totals of one pass, and the candidates of each part; these are concatenated only once, at the end."""

    potential: int  # fixed-point sum of D²
    drawn: tuple[Drawn, ...] = ()
    #: Fixed-point sums and sizes of the cells, on the last pass.
    sums: NDArray[np.int64] | None = None
    counts: NDArray[np.int64] | None = None

    def __add__(self, other: Candidates) -> Candidates:
        has_sums = self.sums is not None and other.sums is not None
        return Candidates(
            self.potential + other.potential,
            self.drawn + other.drawn,
            self.sums + other.sums if has_sums else None,  # type: ignore[operator]
            self.counts + other.counts if has_sums else None,  # type: ignore[operator]
        )


@dataclass(frozen=True)
class UpdateAndSample:
    """Task: update D² with the centers accepted since the last pass, and draw the next candidates.

    Each row is a Poisson process of rate D² up to a common `horizon`, so draws are exact, depend on the row only and
    can be merged over blocks.
    """

    batches: tuple[SharedArray, ...]  # all centers so far, in order of acceptance
    geometry: Geometry
    run: str  # name of the k-means, under which parts cache D² and the nearest center
    key: int  # of this pass, from `stream_key`
    horizon: float  # time up to which candidates arrive: the number expected over the sum of D²; 0 to draw none
    with_sums: bool = False  # whether to sum the cells, on the last pass
    #: int64 (n_rows,): a row counts, and is drawn, as that many copies of it would be together.
    weights: SharedArray | None = None

    def __call__(self, part: Part) -> Candidates:
        """Update and sample one part."""
        engine = worker_engine()
        n_searched, assignment = engine.pop(part, "seeding", self.run) or (0, engine.unknown(part.stop - part.start))
        if n_searched > len(self.batches):  # a task repeated after the next round must draw what it drew before
            n_searched, assignment = 0, engine.unknown(part.stop - part.start)
        firsts = np.cumsum([0, *(len(batch.get()) for batch in self.batches)])
        n_centers, n_features = int(firsts[-1]), part.rows.n_features
        units = self.geometry.units
        cells = (
            (engine.zeros(n_centers, units.n_columns(n_features)), engine.zeros(n_centers)) if self.with_sums else None
        )
        search = engine.search(part, self.geometry, "seed", assignment)
        drawn: list[Drawn] = []

        def label(tile: RowTile) -> None:
            for batch, first in zip(self.batches[n_searched:], firsts[n_searched:-1], strict=True):
                search.nearest(tile, batch, int(first))

        def draw(tile: RowTile) -> None:
            if cells is not None:
                units.add_rows(engine, tile.rows, tile.labels, tile.weights, *cells)
            if self.horizon > 0:
                drawn.append(self._arrivals(tile, engine))

        potential = fold(part, engine, assignment, label, draw, geometry=self.geometry, weights=self.weights).total()
        if self.with_sums:
            engine.keep(part, "cells", self.run, assignment, assignment.n_bytes)
        else:
            engine.keep(part, "seeding", self.run, (len(self.batches), assignment), assignment.n_bytes)
        of_part = (Drawn(*map(np.concatenate, zip(*drawn, strict=True))),) if drawn else ()
        sums, counts = (None, None) if cells is None else map(engine.host, cells)
        return Candidates(potential, of_part, sums, counts)

    def _arrivals(self, tile: RowTile, engine: Engine) -> Drawn:
        """Return the tile's candidates, on the host."""
        rates = tile.distances * tile.weights if len(tile.weights) else tile.distances
        times, places = arrivals(self.key, tile.start, rates, self.horizon, engine)
        chosen = engine.put(places)
        vectors = engine.host(tile.rows[chosen]).astype(np.float32)
        return Drawn(times, tile.start + places, engine.host(tile.distances[chosen]), vectors)


def arrivals(
    key: int, start: int, rates: Any, horizon: float, engine: Engine
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return arrival times up to `horizon` of Poisson processes, and their indices in `rates`, on the host.

    `key` is from `stream_key`; random numbers are keyed by row number, and the first row has number `start`. A device's
    logarithm may differ in the last bit, but only preselects rows, with a margin, whose times are then computed.
    """
    alive = engine.xp.flatnonzero(rates > 0)
    first = random_uniform(stream_key(key, "arrival", 0), start + alive)
    alive = alive[may_arrive(first, rates[alive], horizon)]
    places = engine.host(alive)
    times, which = arrival_times(key, start + places, engine.host(rates[alive]), horizon)
    return times, places[which]


def may_arrive(first: Any, rates: Any, horizon: Any) -> Any:
    """Tell from their first random numbers which rows may arrive in time, with a margin for rounding."""
    return -array_module(first).log(first) <= horizon * (1.0 + 1e-9) * rates


def arrival_times(
    key: int, rows: NDArray[np.int64], rates: NDArray[np.float64], horizon: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return arrival times up to `horizon` of Poisson processes of positive rates, and their positions in `rows`.

    `key` is from `stream_key`; random numbers are keyed by the row numbers `rows`.
    """
    times, which = [np.empty(0)], [np.empty(0, np.int64)]
    alive, clock = np.arange(len(rows)), np.zeros(len(rows))
    for nth in range(1 << 30):
        clock = clock - np.log(random_uniform(stream_key(key, "arrival", nth), rows[alive])) / rates[alive]
        in_time = clock <= horizon
        alive, clock = alive[in_time], clock[in_time]
        if not len(alive):
            break
        times.append(clock)
        which.append(alive)
    return np.concatenate(times), np.concatenate(which)


@dataclass(frozen=True)
class ThinCandidates:
    """Task: thin the candidates to at most `wanted` exact draws, or take each distinct one if `wanted` is None.

    Random numbers are keyed by `key`, from `stream_key`; the accepted rows are stored under `name`. The task may use
    `n_threads` of the worker. `rows_key` identifies the rows from which the candidates are drawn.
    """

    geometry: Geometry
    key: int
    wanted: int | None
    array_store: SharedArrayStore
    name: str
    rows_key: tuple[Hashable, ...]
    n_threads: int = 1

    def __call__(self, candidates: Candidates) -> tuple[int, SharedArray | None, int]:
        """Return the potential, the accepted vectors and their number."""
        if not candidates.drawn:
            return candidates.potential, None, 0
        *facts, pieces = zip(*candidates.drawn, strict=True)
        times, rows, squared = map(np.concatenate, facts)
        if self.wanted is None:
            taken = np.concatenate(pieces)[np.unique(rows, return_index=True)[1]]
        else:
            taken = self._thinned(times, rows, squared, pieces, self.wanted)
        batch = self.array_store.put(self.name, taken) if len(taken) else None
        return candidates.potential, batch, len(taken)

    def _thinned(
        self, times: NDArray[np.float64], rows: NDArray[np.int64], squared: NDArray[np.float64],
        pieces: Sequence[NDArray[np.float32]], wanted: int,
    ) -> NDArray[np.float32]:  # fmt: skip
        order = np.lexsort((rows, times))
        chances = random_uniform(stream_key(self.key, "thinning"), np.arange(len(order)))
        # A candidate is rejected if its D² has dropped to this random share of its value when drawn, or below.
        vectors, limits = _in_order(pieces, order), chances * squared[order]
        origin = self.rows_key, rows[order]
        taken = thin(vectors, limits, wanted, geometry=self.geometry, n_threads=self.n_threads, origin=origin)
        return vectors[taken]


def _in_order(pieces: Sequence[NDArray[np.float32]], order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Reorder the rows of all pieces, numbered consecutively, copying each once.

    >>> _in_order([np.float32([[3], [1]]), np.float32([[2]])], np.array([1, 2, 0])).ravel().tolist()
    [1.0, 2.0, 3.0]
    """
    out = np.empty((len(order), pieces[0].shape[1]), np.float32)
    places, end = np.argsort(order), 0
    for piece in pieces:
        out[places[end : end + len(piece)]] = piece
        end += len(piece)
    return out


class _Sampling:
    """Centers drawn in rounds, the first one uniformly, as there is no distance yet."""

    def __init__(
        self, rows: Rows, n: int, geometry: Geometry, key: int, run: str, runner: Runner, report: Report | None,
        weights: SharedArray | None, stage: StageBytes | None,
    ) -> None:  # fmt: skip
        self.n, self.geometry, self.key, self.run, self.runner = n, geometry, key, run, runner
        self._report, self.weights, self.parts = report, weights, runner.split(rows, n, stage=stage)
        first = take(rows, random_rows(rows, 1, key=stream_key(key, "first"), runner=runner, weights=weights))
        self.rows_key = rows.key
        self.batches = [runner.array_store.put(f"seeds-{run}-0", np.ascontiguousarray(first, np.float32))]
        self.n_drawn = 1

    def report(self) -> None:
        if self._report is not None:
            self._report(self.n_drawn, self.n)

    def draw(self, round_: int, horizon: float, wanted: int | None = None) -> Steps[tuple[int, int]]:
        """Draw a batch by D²; returns the fixed-point sum of D² before it, and the number of its centers."""
        key, store = stream_key(self.key, round_), self.runner.array_store
        name = f"seeds-{self.run}-{len(self.batches)}"
        potential, batch, n_new = yield MapReduce(
            UpdateAndSample(tuple(self.batches), self.geometry, self.run, key, horizon, weights=self.weights),
            self.parts,
            Candidates.__add__,
            ThinCandidates(self.geometry, key, wanted, store, name, self.rows_key, self.runner.threads_per_worker),
            f"draw-round{len(self.batches)}",
        )
        if potential and batch is not None:
            self.batches.append(batch)
            self.n_drawn += n_new
        return potential, n_new


@stepwise
def sample_by_distance(
    rows: Rows, n: int, *, geometry: Geometry, key: int, run: str, runner: Runner, report: Report | None = None,
    weights: SharedArray | None = None, stage: StageBytes | None = None,
) -> Steps[list[SharedArray]]:  # fmt: skip
    """Draw `n` centers as k-means++ does, in batches; fewer where there are fewer distinct rows.

    `key` is from `stream_key`, and `run` the name under which each part caches D² and the nearest center. `report` gets
    the number of centers so far, and `n`. `weights` are int64 (n_rows,), positive; `stage` is the memory of the passes.
    """
    sampling = _Sampling(rows, n, geometry, key, run, runner, report, weights, stage)
    potential, n_dry = None, 0
    for round_ in range(1, 1 << 20):
        sampling.report()
        wanted = n - sampling.n_drawn
        if not wanted:
            break
        horizon = 0.0
        if potential is not None:
            expected = min(max(4.0 * sampling.n_drawn, 32.0), 2.5 * wanted + 32.0)
            horizon = 1.3 * expected / (potential / geometry.distance_scale)
        potential, n_new = yield from sampling.draw(round_, horizon, wanted)
        n_dry = 0 if n_new or horizon == 0 else n_dry + 1
        # If nothing arrives for long, the remaining D² is below the resolution of its fixed-point sum.
        if potential == 0 or n_dry == 64:
            break
    return sampling.batches


@stepwise
def sample_in_rounds(
    rows: Rows, n_per_round: int, *, geometry: Geometry, key: int, run: str, runner: Runner,
    report: Report | None = None, weights: SharedArray | None = None, stage: StageBytes | None = None,
) -> Steps[list[SharedArray]]:  # fmt: skip
    """Draw centers as k-means|| does: in a few rounds, each by the D² at its beginning (arXiv:1203.6402).

    About `n_per_round` are drawn in each; the other parameters are those of `sample_by_distance`.
    """
    sampling = _Sampling(rows, PARALLEL_ROUNDS * n_per_round, geometry, key, run, runner, report, weights, stage)
    potential = 0
    # Two passes a round: the first measures the sum of D², the second draws by it and searches nothing.
    for pass_ in range(2 * PARALLEL_ROUNDS):
        sampling.report()
        horizon = n_per_round * geometry.distance_scale / potential if pass_ % 2 else 0.0
        potential, _ = yield from sampling.draw(pass_, horizon)
        if potential == 0:
            break
    return sampling.batches
