"""Facts for a report on a hierarchy and a draw from it, as numbers per level, never per sample."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.config import Config
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.eligible import count_rows
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.pools import pool_is_gone, pool_of_tree
from hkm_dask.metrics import gini

#: Share of the pool whose distances to their centroids are not far.
NEAR_SHARE = 0.99
# Distances are counted by the upper bits of their float32, which preserve order: 11 bits of the fraction, 0.05 %.
_DROPPED_BITS = 12


@dataclass(frozen=True)
class LevelFacts:
    """One level of a hierarchy."""

    number: int  # from 1
    sizes: NDArray[np.int64]  # (n_clusters,): samples in each cluster
    drawn: NDArray[np.int64] | None  # (n_clusters,): those of them in the draw
    #: Inertia of every iteration, of the first k-means and of every resampling step.
    runs: tuple[NDArray[np.float64], ...]
    seconds: float | None  # time taken by the level
    step_seconds: list[float]  # time taken by each of the `runs`, if the tree records it

    @property
    def filled(self) -> NDArray[np.int64]:
        """Sizes of the non-empty clusters."""
        return self.sizes[self.sizes > 0]

    @property
    def gini(self) -> float:
        """Gini coefficient of the cluster sizes; 0 is even."""
        return unevenness(self.sizes, self.sizes)

    @property
    def drawn_gini(self) -> float:
        """Gini coefficient of the draw over the non-empty clusters."""
        return 0.0 if self.drawn is None else unevenness(self.drawn, self.sizes)

    @property
    def order(self) -> NDArray[np.int64]:
        """Non-empty clusters, the largest first."""
        return np.argsort(-self.sizes, kind="stable")[: len(self.filled)]


@dataclass(frozen=True)
class Facts:
    """A hierarchy, the pool it was built from, and a draw."""

    path: str  # of the tree
    attributes: dict[str, Any] = field(repr=False)  # of the tree, as on disk
    config: Config
    pool: Pool | None  # None if it is not available
    #: Number of samples in the pool, and in the tree.
    n_samples: int
    n_clustered: int
    levels: tuple[LevelFacts, ...]  # level 1 first
    rows: NDArray[np.int64] | None  # the draw: row numbers of the pool, sorted
    #: Shares of the pool (at most 1 %) and of the draw beyond the distance that `NEAR_SHARE` of the pool is within.
    far: tuple[float, float] | None

    @property
    def top(self) -> LevelFacts:
        """The top level."""
        return self.levels[-1]

    @property
    def n_drawn(self) -> int:
        """Number of rows of the draw that are in clusters."""
        return 0 if self.top.drawn is None else int(self.top.drawn.sum())


def find_pool(attributes: Mapping[Any, Any], path: str | os.PathLike[str] | None) -> Pool | None:
    """Open the pool of a tree, at `path` or where it was; None if `path` is None and it is not there anymore.

    Raises StoreError if `path` has no pool, or another one.
    """
    return None if path is None and pool_is_gone(attributes) else pool_of_tree(attributes, path=path)


def gather(tree: xr.DataTree, path: str, pool: Pool | None, rows: NDArray[np.int64] | None) -> Facts:
    """Collect the facts of a tree; `rows` are a draw."""
    arrays = TreeArrays(tree)
    drawn = None if rows is None else count_rows(arrays, rows)
    levels = tuple(
        _level(tree, arrays, t, None if drawn is None else drawn[t - 1]) for t in range(1, arrays.n_levels + 1)
    )
    attributes = {str(name): value for name, value in tree.attrs.items()}
    if not levels[0].sizes.any():
        raise InputError(f"tree={path!r} should hold samples, but is empty")
    return Facts(
        path=path,
        attributes=attributes,
        config=Config.from_json(attributes["config"]),
        pool=pool,
        n_samples=arrays.n_rows(1),
        n_clustered=int(levels[0].sizes.sum()),
        levels=levels,
        rows=rows,
        far=None if drawn is None or rows is None or not drawn[0].any() else _far(arrays, rows),
    )


def half(sizes: NDArray[np.int64]) -> int:
    """Return the number of largest clusters that together hold half of all samples.

    >>> half(np.array([10, 1, 1, 1])), half(np.array([5, 5, 5, 5]))
    (1, 2)
    """
    running = np.cumsum(np.sort(sizes)[::-1])
    return int(np.searchsorted(2 * running, running[-1])) + 1 if len(sizes) and running[-1] else 0


def unevenness(counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """Compute the Gini coefficient of counts over the clusters whose sizes are not 0; 0 is even.

    >>> unevenness(np.array([3, 3, 0]), np.array([9, 9, 0])), unevenness(np.array([1, 9]), np.array([1, 9]))
    (0.0, 0.4)
    """
    counted = counts[sizes > 0]
    return gini(counted) if counted.any() else 0.0


def _level(tree: xr.DataTree, arrays: TreeArrays, t: int, drawn: NDArray[np.int64] | None) -> LevelFacts:
    attributes = tree[f"level_{t}"].attrs
    return LevelFacts(
        number=t,
        sizes=np.asarray(arrays.read(t, "leaf_sizes"), np.int64),
        drawn=drawn,
        runs=tuple(run[np.isfinite(run)] for run in np.asarray(arrays.read(t, "inertia"))),
        seconds=attributes.get("seconds"),
        step_seconds=list(attributes.get("step_seconds") or []),
    )


def _far(arrays: TreeArrays, rows: NDArray[np.int64]) -> tuple[float, float]:
    """Return the shares of the pool and of the draw beyond the distance that `NEAR_SHARE` of the pool is within."""
    counts = np.zeros(1 << (31 - _DROPPED_BITS), np.int64)
    for bounds in arrays.blocks(1, "distances"):
        counts += np.bincount(_keys(arrays.block(1, "distances", bounds)), minlength=len(counts))
    limit = int(np.searchsorted(np.cumsum(counts), NEAR_SHARE * counts.sum()))
    drawn = _keys(arrays.take(1, "distances", rows))
    return float(counts[limit + 1 :].sum() / counts.sum()), float((drawn > limit).mean())


def _keys(distances: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Map distances to integers of the same order; NaN (samples left out of the clustering) are dropped."""
    return np.ascontiguousarray(distances[np.isfinite(distances)], "f4").view(np.uint32) >> np.uint32(_DROPPED_BITS)
