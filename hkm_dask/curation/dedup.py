"""Near-duplicates of a pool or a tree: all rows but one of each group that a cosine above a threshold connects."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.config.problems import nearest
from hkm_dask.curation.components import Components
from hkm_dask.curation.directions import group_by_direction, n_directions
from hkm_dask.curation.near_pairs import check_threshold
from hkm_dask.curation.pair_search import connect_near
from hkm_dask.curation.stores import CuratedStore, open_store
from hkm_dask.data.files import write_whole
from hkm_dask.data.objects import location
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError, check_all, check_whole
from hkm_dask.events import emit
from hkm_dask.hierarchy.sampling.columns import column_to_sort, sort_keys
from hkm_dask.hierarchy.sampling.export import SUFFIXES, check_target, write_pool_rows

if TYPE_CHECKING:
    from distributed import Client

KEEP = ("closest", "random", "best")


@dataclass(frozen=True, repr=False)
class Deduplication:
    """Which rows are kept, and the groups of near-duplicates.

    Attributes
    ----------
    rows : ndarray of int64
        Numbers of the rows that are kept, sorted: what `Config.subset` and ``hkm cluster --subset`` take as a file.
    removed : ndarray of int64
        Numbers of the others, sorted.
    groups : Components
        Rows that are connected: `groups.rows`, and in `groups.first` the lowest row of each one's group.
    threshold : float
    """

    rows: NDArray[np.int64]
    removed: NDArray[np.int64]
    groups: Components
    threshold: float
    pool: Pool | None = None

    @property
    def n_rows(self) -> int:
        """Rows that were looked at."""
        return len(self.rows) + len(self.removed)

    def facts(self) -> dict[str, Any]:
        """Numbers that sum it up, for JSON."""
        sizes = np.unique(self.groups.first, return_counts=True)[1]
        return {
            "threshold": self.threshold, "n_rows": self.n_rows, "n_kept": len(self.rows),
            "n_removed": len(self.removed), "n_groups": len(self.groups), "largest_group": int(sizes.max(initial=0)),
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Deduplication: {self}"

    def __str__(self) -> str:
        facts = self.facts()
        if not facts["n_groups"]:
            return f"all {self.n_rows:,} rows kept: no two have a cosine of {self.threshold:g} or more"
        share, groups = facts["n_removed"] / self.n_rows, "group" if facts["n_groups"] == 1 else "groups"
        return (
            f"{facts['n_kept']:,} of {self.n_rows:,} rows kept, {facts['n_removed']:,} ({share:.1%}) removed\n"
            f"  {facts['n_groups']:,} {groups} of near-duplicates (cosine {self.threshold:g}), the largest of "
            f"{facts['largest_group']:,} rows"
        )

    def table(self) -> pd.DataFrame:
        """Rows of groups: `row`, `id` where the pool has ids, `group` (the lowest row of it) and `kept`."""
        order = np.lexsort((self.groups.rows, self.groups.first))
        rows, first = self.groups.rows[order], self.groups.first[order]
        ids = None if self.pool is None else self.pool.ids(rows)
        kept = ~np.isin(rows, self.removed, assume_unique=True)
        return pd.DataFrame({"row": rows, **({} if ids is None else {"id": ids}), "group": first, "kept": kept})

    def save(
        self, out: str | os.PathLike[str], *, removed: str | os.PathLike[str] | None = None,
        groups: str | os.PathLike[str] | None = None, overwrite: bool = False,
    ) -> None:  # fmt: skip
        """Write `rows`, and if wanted the `removed` ones and the `table`.

        `out` and `removed` are ``.npy`` of row numbers, ``.txt`` of ids, or ``.parquet`` or ``.csv`` of both and of
        the pool's further columns, as `write_subset` writes them; `groups` is a ``.parquet``. Each file appears whole
        or not at all. Raises InputError where one cannot be new, unless `overwrite`; see `check_targets`.
        """
        check_targets(out, removed, groups, overwrite=overwrite)
        if self.pool is not None:
            self.pool.check_unchanged()
        write_pool_rows(out, self.rows, self.pool, overwrite=overwrite)
        if removed is not None:
            write_pool_rows(removed, self.removed, self.pool, overwrite=overwrite)
        if groups is not None:
            write_whole(
                location(groups), lambda partial: self.table().to_parquet(partial, index=False), new=not overwrite
            )


def check_targets(
    out: str | os.PathLike[str],
    removed: str | os.PathLike[str] | None = None,
    groups: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Refuse, with an InputError, files that could not be written, before any work is done for them.

    >>> check_targets("kept.xlsx")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: out='kept.xlsx' should end in one of .npy, .parquet, .csv, .txt; rename it
    """
    wanted = [("out", out, SUFFIXES), ("removed", removed, SUFFIXES), ("groups", groups, (".parquet",))]
    given = [(path, suffixes, name) for name, path, suffixes in wanted if path is not None]

    def check_different() -> None:
        if len({location(path).absolute() for path, *_ in given}) < len(given):
            raise InputError("out, removed and groups should be different files; rename one")

    check_all(*(partial(check_target, *target, overwrite=overwrite) for target in given), check_different)


def dedup(
    store: Any,
    threshold: float,
    *,
    keep: str = "closest",
    by: str | None = None,
    subset: Any = None,
    seed: int = 0,
    client: Client | None = None,
    memory_limit: int | str | None = None,
    pool: str | os.PathLike[str] | None = None,
) -> Deduplication:
    """Find the near-duplicates of a pool or a tree, and keep one row of each group of them.

    Two rows are near-duplicates when their cosine, of the values as stored and in float64, is at least `threshold`;
    a group is what such pairs connect. All pairs are found, whatever clusters their rows are in: angles to centroids
    and products of 16-bit integers exclude what they prove to be below the threshold, the rest is measured. Rows of
    zeros have no direction and are kept.

    Parameters
    ----------
    store : path, DataTree, Pool or array of shape (n_samples, n_features)
        A pool or a tree; of a tree the rows that it clusters.
    threshold : float
        Cosine above 0, up to 1, where only what has the same direction is taken for duplicates.
    keep : {"closest", "random", "best"}
        Of each group the row closest to its level-1 centroid (in a tree: that of the tree, else that of a quick
        k-means), one at random, or the one with the largest value of the column `by`. Ties go to the lowest number.
    by : str, optional
        A column of numbers of the pool, for ``keep="best"``; with ``-`` before it, the smallest value is the best. Rows
        without a value, or with NaN, come last.
    subset : path or array of int, optional
        Look at these rows only: an ``.npy`` of row numbers, or the numbers, sorted and each once.
    seed : int
        Keys the random numbers.
    client : distributed.Client, optional
        Where to run; by default distributed's current client, else threads of this process.
    memory_limit : int or str, optional
        Bytes this process may hold, when it runs on threads.
    pool : path, optional
        Where the pool of a tree lies now.

    Returns
    -------
    Deduplication
        With the rows to keep, those removed, and the groups, by row numbers of the pool.

    Raises
    ------
    InputError
        Settings that are none, all of them at once; rows with NaN.
    StoreError
        The store is missing or damaged.
    ComputeError
        The memory limit is too small.

    See Also
    --------
    hkm_dask.curation.near_pairs.near_pairs : The pairs among some rows, with their cosines.

    Examples
    --------
    >>> import hkm_dask as hkm
    >>> found = hkm.dedup(np.float32([[1, 0], [0, 3], [9, 1], [0, 1], [-1, 2]]), 0.99)
    >>> found.rows.tolist(), found.removed.tolist(), len(found.groups)
    ([1, 2, 4], [0, 3], 2)
    """
    opened = open_store(store, pool)
    _check(threshold, keep, by, seed, opened.pool)
    index = opened.clustered() if subset is None else opened.chosen(subset)
    with runner_for(client, memory_limit) as runner:
        groups, order = _groups(opened, index, float(threshold), seed, runner)
    places = groups.chosen(*_keys(opened, groups.rows, index, order, keep, by, seed))
    is_kept = np.ones(opened.rows.n_rows if index is None else len(index), np.bool_)
    is_kept[groups.rows] = False
    is_kept[places] = True

    def numbers(places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places if index is None else index[places]

    opened.check_unchanged()
    return Deduplication(
        numbers(np.flatnonzero(is_kept)), numbers(np.flatnonzero(~is_kept)),
        Components(numbers(groups.rows), numbers(groups.first)), float(threshold), opened.pool,
    )  # fmt: skip


def _check(threshold: object, keep: object, by: str | None, seed: object, pool: Pool | None) -> None:
    problems = check_threshold(threshold)
    if keep not in KEEP:
        problems.append(f"keep={keep!r} should be one of {', '.join(KEEP)}; choose one")
    elif keep == "best" and by is None:
        problems.append("by=None should be a column of the pool for keep='best'; name one")
    elif keep != "best" and by is not None:
        problems.append(f"keep={keep!r} should be best with by={by!r}; give both, or neither")
    elif by is not None:
        problems += _column_problems(pool, by)
    problems += check_whole(seed=seed)
    if problems:
        raise InputError(problems)


def _column_problems(pool: Pool | None, by: str) -> list[str]:
    if pool is None:
        return [f"by={by!r} should be a column of a pool, an array has none; ingest it with its columns"]
    name, _ = column_to_sort(by, pool.columns)
    if name not in pool.columns:
        remedy = nearest(name, pool.columns) or "ingest it with the embeddings"
        names = ", ".join(pool.columns) or "none"
        return [f"by={by!r} should be a column of the pool, which has {names}; {remedy}"]
    if pool.column(name, np.empty(0, np.int64)).dtype.kind not in "iufb":
        return [f"by={by!r} should be a column of numbers, its values are texts; choose another column"]
    return []


def _groups(
    opened: CuratedStore, index: NDArray[np.int64] | None, threshold: float, seed: int, runner: Runner
) -> tuple[Components, NDArray[np.float32]]:
    """Groups of near-duplicates by places in `index`, and minus the cosine of their rows to a centroid."""
    stored, unit = (runner.place(rows) for rows in opened.some(index))
    if stored.n_rows == 0:
        raise InputError("n_samples=0 should be at least 1; give a pool that has rows")

    def report(stage: str, share: float, **then: str) -> None:
        emit("progress", stage=stage, done=round(share * stored.n_rows), total=stored.n_rows, **then)

    def grouped(done: int, total: int) -> None:
        report("grouping rows", done / total, then="comparing them")

    grouped(0, 1)
    centroids = _centroids(opened, stored.n_rows)
    directions = group_by_direction(unit, runner, grouped, centroids=centroids, seed=seed)
    n_zero = int((directions.labels < 0).sum())
    if n_zero:
        emit("warning", message=f"{n_zero:,} rows of zeros have no direction, and are kept")
    groups = connect_near(stored, directions, threshold, runner, partial(report, "comparing rows"))
    return groups, -directions.cosines[groups.rows]


def _centroids(opened: CuratedStore, n_rows: int) -> NDArray[np.float32] | None:
    """Centroids of that level of a tree which has about as many as serve the search."""
    if opened.arrays is None:
        return None
    wanted, arrays = n_directions(n_rows), opened.arrays
    levels = range(1, arrays.n_levels + 1)
    level = min(levels, key=lambda level: abs(math.log(arrays.n_clusters(level) / wanted)))
    return np.asarray(arrays.read(level, "centroids"), np.float32)


def _keys(
    opened: CuratedStore, places: NDArray[np.int64], index: NDArray[np.int64] | None, nearness: NDArray[np.float32],
    keep: str, by: str | None, seed: int,
) -> Sequence[NDArray[Any]]:  # fmt: skip
    """What is least for the row of a group that is kept."""
    rows = places if index is None else index[places]
    if keep == "random":
        return [random_bits(stream_key(seed, "dedup"), rows)]
    if keep == "best":
        assert opened.pool is not None
        assert by is not None
        name, rising = column_to_sort(by, opened.pool.columns)
        return [sort_keys(opened.pool.column(name, rows), rising=rising)]
    if opened.arrays is None:
        return [nearness]
    stored = opened.arrays.stored(1, "distances")
    return [opened.arrays.read(1, "distances")[rows] if stored is None else stored.take(rows)]
