"""Correctness check of greedy walks on this device: their choices and remaining D² must match the CPU bitwise.

Squared distances are compared with those computed by the host in float64, in which sums of 16-bit integers are exact,
and walks with `greedy.greedy_walk`, which defines the result. Synthetic groups have partly filled tiles, a single
point, the largest size, and fewer distinct points than steps; elements past the end of results must stay unchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.matmul import matmul
from hkm_dask.compute.memory import WALK_POINTS
from hkm_dask.search.cpu import greedy
from hkm_dask.search.cpu.greedy import grid_walk
from hkm_dask.search.cuda.walks import Outcome, launch_walks
from hkm_dask.search.engine import GridWalk, Walked
from hkm_dask.untrusted import reason

#: Sizes of synthetic groups, the largest last, and the most steps of their walks.
_SIZES, _N_STEPS = (1, 7, 130, 531, WALK_POINTS), 60
#: Trials per step; points and steps of a sample of a group to be walked.
_N_TRIALS, _SAMPLE = 13, (512, 100)
#: Elements past the end of the results, and rows of a table computed at once.
_BESIDE, _ROWS = 64, 512


def made_walks(n_features: int) -> list[GridWalk]:
    """Make groups of points around a few centers, some of them equal or nearly so."""
    rng = np.random.default_rng(3)
    walks = []
    for n in _SIZES:
        centers = rng.normal(size=(1 + n // 9, n_features))
        points = centers[rng.integers(len(centers), size=n)] + rng.normal(0.0, 0.2, (n, n_features))
        points[: n // 6] = points[n // 2 : n // 2 + n // 6]
        if n == _SIZES[len(_SIZES) // 2]:  # few distinct points
            points[n // 4 :] = points[0]
        near = slice(n // 6, n // 5)  # different points, too close for the grid to separate
        points[near] = points[0] + rng.normal(0.0, 2e-3 / n_features**0.5, points[near].shape)
        weights = rng.integers(1, 1 << 40, size=n)  # large, so that sums are rounded
        draws = rng.random((min(n, _N_STEPS), _N_TRIALS))
        walk = grid_walk(points, max(float(np.sqrt((points**2).sum(axis=1).max())), 1e-3), weights, draws)
        assert walk is not None
        walks.append(walk)
    return walks


def find_walk_fault(walks: Sequence[GridWalk]) -> str | None:
    """Describe what walks on this device get wrong, or how they fail; None if they are correct.

    A MemoryError says nothing about them, and propagates.
    """
    try:
        wrong = _wrong_steps(walks)
    except MemoryError:
        raise
    except Exception as error:
        return f"failed ({reason(error)})"
    return f"gave wrong choices for {np.count_nonzero(wrong)} of {len(wrong)} steps" if wrong.any() else None


def find_made_walk_fault(n_features: int) -> str | None:
    """Run `find_walk_fault` on synthetic groups."""
    return find_walk_fault(made_walks(n_features))


def sample_of(walks: Sequence[GridWalk]) -> list[GridWalk]:
    """Return walks over some of the points."""
    return [walks[0].first(*_SAMPLE)]


def _wrong_steps(walks: Sequence[GridWalk]) -> NDArray[np.bool_]:
    """Return which steps of all walks differ from the host's; then elements past the end."""
    import cupy

    first = np.cumsum([0, *(len(walk.draws) for walk in walks)])
    n = int(first[-1])
    expected, rest = np.full(n + _BESIDE, -1, np.int32), np.full(n + _BESIDE, np.nan)
    for low, (chosen, left) in zip(first[:-1], map(_walked_on_host, walks), strict=True):
        expected[low : low + len(chosen)], rest[low : low + len(chosen)] = chosen, left
    found = cupy.full(n + _BESIDE, -1, cupy.int32), cupy.full(n + _BESIDE, cupy.nan)
    n_chosen = cupy.full(len(walks), -1, cupy.int32)
    launch_walks(walks, Outcome(found[0][:n], found[1][:n], n_chosen))
    actual, left = found[0].get(), found[1].get()
    wrong = (actual != expected) | ~((left == rest) | (np.isnan(left) & np.isnan(rest)))
    n_expected = [np.count_nonzero(expected[low:high] >= 0) for low, high in itertools.pairwise(first)]
    wrong[first[:-1]] |= n_chosen.get() != n_expected
    return np.asarray(wrong)


def _walked_on_host(walk: GridWalk) -> Walked:
    """Walk on the CPU, with squared distances computed in a different way than the kernels do."""
    wide, between = walk.grid.astype(np.float64), np.empty((walk.n_points, walk.n_points), np.float32)
    for low in range(0, walk.n_points, _ROWS):
        some = slice(low, low + _ROWS)
        squared = walk.norms[some, None] + (
            walk.norms - np.float32(2.0) * matmul(wide[some], wide.T).astype(np.float32)
        )
        between[some] = np.where(squared > 512.0, squared * walk.square, np.float32(0.0))
    n = len(walk.draws)
    chosen, left, closest = np.empty(n, np.int64), np.empty(n), np.empty(walk.n_points, np.float32)
    no_columns = np.empty((0, 0), np.float32)
    n = greedy.greedy_walk(between, no_columns, walk.weights, walk.draws, chosen, left, closest, 0)
    return chosen[:n], left[:n]
