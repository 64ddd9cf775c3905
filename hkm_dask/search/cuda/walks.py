"""Greedy walks over many groups of points in parallel, one thread block per group, bitwise as `cpu.greedy`.

One kernel computes the squared distances between all points of every group, a second one walks. Sums of weighted D² are
accumulated sequentially, in the order of the CPU code, which takes most of the time of a step. Groups do not wait for
each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import device_budget
from hkm_dask.compute.staging import ran_out
from hkm_dask.search.cuda.kernels import launch
from hkm_dask.search.engine import GridWalk, Walked

#: Side of a tile of pairs, threads per walk; a walk compares at most one trial per eight threads.
_PAIR_TILE, _WALK_THREADS = 128, 512
MOST_TRIALS = _WALK_THREADS // 8
#: Shared memory per point of a walk: two float64 values and one float32.
_POINT_BYTES = 20
#: Divisor of the device memory that walks may take at once, and most groups in one grid.
_SHARE, _MOST_GROUPS = 8, 65535


@dataclass(frozen=True)
class Outcome:
    """Output of the kernels for some walks: device arrays with the steps of all walks concatenated."""

    chosen: Any  # int32 (n_steps,)
    left: Any  # float64 (n_steps,)
    n_chosen: Any  # int32 (n_walks,)


def walk_groups(walks: Sequence[GridWalk]) -> list[Walked | None]:
    """Walk over groups; None for a group for which device memory is too small.

    All walks have the same numbers of trials and of coordinates.
    """
    return [walked for batch in _batches(walks, device_budget() // _SHARE) for walked in _walk_batch(batch)]


def _batches(walks: Sequence[GridWalk], budget: int) -> Iterator[list[GridWalk]]:
    """Yield walks, in order, in batches that fit in device memory together."""
    batch: list[GridWalk] = []
    taken = 0
    for walk in walks:
        if batch and (taken + walk.device_bytes > budget or len(batch) == _MOST_GROUPS):
            yield batch
            batch, taken = [], 0
        batch.append(walk)
        taken += walk.device_bytes
    if batch:
        yield batch


def _walk_batch(walks: Sequence[GridWalk]) -> list[Walked | None]:
    """Walk over groups together, or over half of them at a time if memory runs out."""
    import cupy

    try:
        return list(_told(launch_walks(walks), walks))
    except MemoryError as error:
        if not ran_out(error):
            raise
    cupy.get_default_memory_pool().free_all_blocks()
    if len(walks) == 1:
        return [None]
    half = len(walks) // 2
    return _walk_batch(walks[:half]) + _walk_batch(walks[half:])


def _told(outcome: Outcome, walks: Sequence[GridWalk]) -> Iterator[Walked]:
    chosen, left, n_chosen = (values.get() for values in (outcome.chosen, outcome.left, outcome.n_chosen))
    first = 0
    for walk, n in zip(walks, n_chosen.tolist(), strict=True):
        yield chosen[first : first + n].astype(np.int64), left[first : first + n].copy()
        first += len(walk.draws)


def launch_walks(walks: Sequence[GridWalk], outcome: Outcome | None = None) -> Outcome:
    """Launch the kernels for some walks; `outcome` is written to, if given."""
    import cupy

    points, steps, tables = (
        _offsets(sizes)
        for sizes in ([w.n_points for w in walks], [len(w.draws) for w in walks], [w.n_points**2 for w in walks])
    )
    if outcome is None:
        outcome = Outcome(
            cupy.empty(int(steps[-1]), cupy.int32), cupy.empty(int(steps[-1])), cupy.empty(len(walks), cupy.int32)
        )
    starts, table_starts = cupy.asarray(points), cupy.asarray(tables)
    between = cupy.empty(int(tables[-1]), cupy.float32)
    width, n_trials, n_most = walks[0].grid.shape[1], walks[0].draws.shape[1], max(walk.n_points for walk in walks)
    n_tiles = -(-n_most // _PAIR_TILE)
    launch(
        "pair_squares", between, (n_tiles, n_tiles, len(walks)), 256, _together([w.grid for w in walks]),
        _together([w.norms for w in walks]), cupy.asarray(np.array([w.square for w in walks], np.float32)), starts,
        table_starts, np.int32(width), between,
    )  # fmt: skip
    launch(
        "walk_groups", between, len(walks), _WALK_THREADS, between, table_starts, starts,
        _together([w.weights for w in walks]), cupy.asarray(steps), _together([w.draws for w in walks]),
        np.int32(n_trials), np.int32(n_most), outcome.chosen, outcome.left, outcome.n_chosen,
        shared_bytes=_POINT_BYTES * n_most,
    )  # fmt: skip
    return outcome


def _offsets(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return the offsets of consecutive runs of these sizes, with the end of the last."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _together(arrays: Sequence[NDArray[Any]]) -> Any:
    import cupy

    return cupy.asarray(np.concatenate(arrays))
