"""Rows drawn at random by their distance from those drawn before; see `random_rows` for any as likely as another.

k-means++ draws centers one after the other with probability proportional to D², the squared distance to the nearest
center so far: k passes. Drawing them in batches is exact as well (thinning): draw candidates by the D² of the last
pass, walk through them in order, and accept one with probability D²_now / D²_then, where D²_now counts what was
accepted since. Every accepted candidate is a draw by the D² of its moment. With batches that grow with the centers, a
handful of passes suffice. *k-means||* draws independently in five rounds, each by the D² of the round before (Bahmani
et al., arXiv:1203.6402).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import array_module
from hkm_dask.compute.keyed_random import random_uniform, stream_key
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore
from hkm_dask.compute.stepwise import MapReduce, Steps, stepwise
from hkm_dask.data.rows import Rows
from hkm_dask.kmeans.search import cpu_kernels
from hkm_dask.kmeans.search.cpu import CpuIndex
from hkm_dask.kmeans.search.engine import Engine, RowTile, fold, worker_engine
from hkm_dask.kmeans.search.geometry import Geometry
from hkm_dask.kmeans.seeding.random_rows import random_rows

#: Rounds of k-means||, each of which draws twice as many centers as clusters.
PARALLEL_ROUNDS = 5
#: Candidates thinned at once, and accepted ones searched at once.
_CHUNK, _SETTLED = 256, 1024

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidates:
    """Candidates of one pass, and what it measured.

    Attributes
    ----------
    potential : int
        Fixed-point sum of D².
    times, rows, squared : ndarray, shape (n_candidates,)
        When each candidate arrived, its row number and its D² then.
    vectors : ndarray of float32, shape (n_candidates, n_features)
    sums, counts : ndarray of int64 or None
        Fixed-point sums and sizes of the cells, on the last pass.
    """

    potential: int
    times: NDArray[np.float64]
    rows: NDArray[np.int64]
    squared: NDArray[np.float64]
    vectors: NDArray[np.float32]
    sums: NDArray[np.int64] | None = None
    counts: NDArray[np.int64] | None = None

    def __add__(self, other: Candidates) -> Candidates:
        has_sums = self.sums is not None and other.sums is not None
        return Candidates(
            self.potential + other.potential,
            np.concatenate([self.times, other.times]),
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.squared, other.squared]),
            np.concatenate([self.vectors, other.vectors]),
            self.sums + other.sums if has_sums else None,  # type: ignore[operator]
            self.counts + other.counts if has_sums else None,  # type: ignore[operator]
        )


@dataclass(frozen=True)
class UpdateAndSample:
    """Task: bring D² up to date with the centers accepted since the last pass, and draw the next candidates.

    Rows arrive as Poisson processes of rate D² up to a common `horizon`, so that draws are exact, belong to a row and
    merge over blocks.

    Attributes
    ----------
    batches : tuple of SharedArray
        All centers so far, in the order they were accepted.
    geometry : Geometry
    run : str
        Names the k-means, so that what is remembered is found again.
    key : int
        Of this pass, from `stream_key`.
    horizon : float
        Time up to which candidates arrive: wanted ones over the sum of D²; 0 to draw none.
    with_sums : bool
        Whether to add up the cells, on the last pass.
    weights : SharedArray or None
        int64 (n_rows,): a row counts, and is drawn, as so many copies of it would together.
    """

    batches: tuple[SharedArray, ...]
    geometry: Geometry
    run: str
    key: int
    horizon: float
    with_sums: bool = False
    weights: SharedArray | None = None

    def __call__(self, part: Part) -> Candidates:
        """Fold the part."""
        engine = worker_engine()
        n_searched, assignment = engine.pop(part, "seeding", self.run) or (0, engine.unknown(part.stop - part.start))
        firsts = np.cumsum([0, *(len(batch.get()) for batch in self.batches)])
        n_centers, n_features = int(firsts[-1]), part.rows.n_features
        cells = (engine.zeros(n_centers, n_features), engine.zeros(n_centers)) if self.with_sums else None
        search = engine.search(part, self.geometry, "seed", assignment)
        nobody = (np.empty(0), np.empty(0, np.int64), np.empty(0), np.empty((0, n_features), np.float32))
        drawn: list[tuple[NDArray[Any], ...]] = [nobody]

        def label(tile: RowTile) -> None:
            for batch, first in zip(self.batches[n_searched:], firsts[n_searched:-1], strict=True):
                search.nearest(tile, batch, int(first))

        def draw(tile: RowTile) -> None:
            if cells is not None:
                engine.add_rows(tile.rows, tile.labels, tile.weights, self.geometry.scale, *cells)
            if self.horizon > 0:
                drawn.append(self._arrivals(tile, engine))

        weights = None if self.weights is None else self.weights.get()[part.start : part.stop]
        potential = fold(part, engine, assignment, label, draw, geometry=self.geometry, weights=weights)
        if self.with_sums:
            engine.keep(part, "cells", self.run, assignment, assignment.n_bytes)
        else:
            engine.keep(part, "seeding", self.run, (len(self.batches), assignment), assignment.n_bytes)
        times, rows, squared, vectors = (np.concatenate(column) for column in zip(*drawn, strict=True))
        sums, counts = (None, None) if cells is None else map(engine.host, cells)
        return Candidates(potential, times, rows, squared, vectors, sums, counts)

    def _arrivals(self, tile: RowTile, engine: Engine) -> tuple[NDArray[Any], ...]:
        """Times, rows, D² and vectors of the tile's candidates; on the host."""
        rates = tile.distances * tile.weights if len(tile.weights) else tile.distances
        times, places = arrivals(self.key, tile.start, rates, self.horizon, engine)
        chosen = engine.put(places)
        vectors = engine.host(tile.rows[chosen]).astype(np.float32)
        return times, tile.start + places, engine.host(tile.distances[chosen]), vectors


def arrivals(
    key: int, start: int, rates: Any, horizon: float, engine: Engine
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Arrival times up to `horizon` of Poisson processes of these rates, and the places they belong to.

    Parameters
    ----------
    key : int
        From `stream_key`.
    start : int
        Number of the first row.
    rates : ndarray or cupy.ndarray of float64, shape (n_rows,)
    horizon : float
    engine : Engine

    Returns
    -------
    times : ndarray of float64, shape (n_arrivals,)
    places : ndarray of int64, shape (n_arrivals,)
        Both on the host. A device's logarithm may differ in the last bit: it only chooses, with room to spare, whose
        times are looked at.
    """
    alive = engine.xp.flatnonzero(rates > 0)
    first = random_uniform(stream_key(key, "arrival", 0), start + alive)
    alive = alive[may_arrive(first, rates[alive], horizon)]
    places = engine.host(alive)
    times, which = arrival_times(key, start + places, engine.host(rates[alive]), horizon)
    return times, places[which]


def may_arrive(first: Any, rates: Any, horizon: Any) -> Any:
    """Tell which rows may arrive in time, by their first random numbers; rather too many than too few."""
    return -array_module(first).log(first) <= horizon * (1.0 + 1e-9) * rates


def arrival_times(
    key: int, rows: NDArray[np.int64], rates: NDArray[np.float64], horizon: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Arrival times up to `horizon` of Poisson processes.

    Parameters
    ----------
    key : int
        From `stream_key`.
    rows : ndarray of int64, shape (n,)
        Row numbers, to which the random numbers belong.
    rates : ndarray of float64, shape (n,)
        Above 0.
    horizon : float

    Returns
    -------
    times : ndarray of float64, shape (n_arrivals,)
    which : ndarray of int64, shape (n_arrivals,)
        Whose they are, as positions in `rows`.
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
    """Task: thin the candidates to at most `wanted` exact draws, or take each once where `wanted` is None.

    Attributes
    ----------
    geometry : Geometry
    key : int
        Of this pass, from `stream_key`.
    wanted : int or None
    array_store : SharedArrayStore
        Where the accepted ones are put.
    name : str
        And under what name.
    """

    geometry: Geometry
    key: int
    wanted: int | None
    array_store: SharedArrayStore
    name: str

    def __call__(self, draws: Candidates) -> tuple[int, SharedArray | None, int]:
        """Return the potential, the accepted vectors and their number."""
        if self.wanted is None:
            first = np.unique(draws.rows, return_index=True)[1]
            taken = [draws.vectors[first]] if len(first) else []
        else:
            taken = self._thinned(draws, self.wanted)
        batch = self.array_store.put(self.name, np.concatenate(taken)) if taken else None
        return draws.potential, batch, sum(map(len, taken))

    def _thinned(self, draws: Candidates, wanted: int) -> list[NDArray[np.float32]]:
        order = np.lexsort((draws.rows, draws.times))
        chances = random_uniform(stream_key(self.key, "thinning"), np.arange(len(order)))
        taken: list[NDArray[np.float32]] = []
        settled: list[CpuIndex] = []
        n_settled = n_taken = 0
        for low in range(0, len(order), _CHUNK):
            chunk = order[low : low + _CHUNK]
            vectors, then = np.ascontiguousarray(draws.vectors[chunk]), draws.squared[chunk]
            now, labels = then.copy(), np.full(len(chunk), -1, np.int32)
            recent = taken[n_settled:]
            for search in (*settled, *([CpuIndex(np.concatenate(recent), self.geometry)] if recent else ())):
                search.nearest(vectors, labels, now)
            accepted = np.zeros(len(chunk), bool)
            n_taken += cpu_kernels.accept_in_order(
                vectors, then, now, chances[low : low + _CHUNK], wanted - n_taken, accepted
            )
            if accepted.any():
                taken.append(vectors[accepted])
            if sum(map(len, taken[n_settled:])) >= _SETTLED:
                settled.append(CpuIndex(np.concatenate(taken[n_settled:]), self.geometry))
                n_settled = len(taken)
            if n_taken == wanted:
                break
        return taken


def _first_batch(rows: Rows, key: int, run: str, runner: Runner, weights: SharedArray | None) -> SharedArray:
    """One row, before there is any distance to draw by."""
    first = random_rows(rows, 1, key=stream_key(key, "first"), runner=runner, weights=weights)
    return runner.array_store.put(f"seeds-{run}-0", np.ascontiguousarray(rows.take(first), np.float32))


@stepwise
def sample_by_distance(
    rows: Rows,
    n: int,
    *,
    geometry: Geometry,
    key: int,
    run: str,
    runner: Runner,
    report: Report | None = None,
    weights: SharedArray | None = None,
) -> Steps[list[SharedArray]]:
    """Draw `n` centers as k-means++ does, in batches.

    Parameters
    ----------
    rows : Rows
    n : int
    geometry : Geometry
    key : int
        From `stream_key`.
    run : str
        Name under which each part remembers D² and the nearest center.
    runner : Runner
    report : callable, optional
        Gets the number of centers so far, and `n`.
    weights : SharedArray, optional
        int64 (n_rows,), positive.

    Returns
    -------
    list of SharedArray
        Batches of float32 centers, `n` rows together; fewer where there are fewer distinct rows.
    """
    parts = runner.split(rows, n)
    batches = [_first_batch(rows, key, run, runner, weights)]
    total, potential, dry = 1, None, 0
    for round_ in range(1, 1 << 20):
        if report is not None:
            report(total, n)
        if total == n:
            break
        wanted = n - total
        expected = 0.0 if potential is None else min(max(4.0 * total, 32.0), 2.5 * wanted + 32.0)
        scale = geometry.distance_scale
        horizon = 0.0 if not potential else 1.3 * expected / (potential / scale)
        potential, batch, n_new = yield MapReduce(
            UpdateAndSample(tuple(batches), geometry, run, stream_key(key, round_), horizon, weights=weights),
            parts,
            Candidates.__add__,
            ThinCandidates(geometry, stream_key(key, round_), wanted, runner.array_store, f"seeds-{run}-{round_}"),
            "seed",
        )
        if potential == 0:
            break
        if batch is not None:
            batches.append(batch)
            total += n_new
        dry = 0 if n_new or horizon == 0 else dry + 1
        if dry == 64:  # nothing arrives: what is left of D² is below what its fixed-point sum resolves
            break
    return batches


@stepwise
def sample_in_rounds(
    rows: Rows,
    n_per_round: int,
    *,
    geometry: Geometry,
    key: int,
    run: str,
    runner: Runner,
    report: Report | None = None,
    weights: SharedArray | None = None,
) -> Steps[list[SharedArray]]:
    """Draw centers as k-means|| does: in a few rounds, all of a round by the D² at its beginning.

    Parameters
    ----------
    rows : Rows
    n_per_round : int
        Candidates expected per round.
    geometry, key, run, runner, report, weights
        As for `sample_by_distance`.

    Returns
    -------
    list of SharedArray
        Batches of float32 centers.

    References
    ----------
    arXiv:1203.6402
    """
    parts = runner.split(rows, PARALLEL_ROUNDS * n_per_round)
    batches = [_first_batch(rows, key, run, runner, weights)]
    total, potential = 1, 0
    # Two passes a round: what share of D² to draw is known once D² is; the second pass searches nothing.
    for round_ in range(2 * PARALLEL_ROUNDS):
        if report is not None:
            report(total, PARALLEL_ROUNDS * n_per_round)
        horizon = n_per_round * geometry.distance_scale / potential if round_ % 2 else 0.0
        potential, batch, n_new = yield MapReduce(
            UpdateAndSample(tuple(batches), geometry, run, stream_key(key, round_), horizon, weights=weights),
            parts,
            Candidates.__add__,
            ThinCandidates(geometry, stream_key(key, round_), None, runner.array_store, f"seeds-{run}-{round_ + 1}"),
            "seed",
        )
        if potential == 0:
            break
        if batch is not None:
            batches.append(batch)
            total += n_new
    return batches
