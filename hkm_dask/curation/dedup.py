"""Near-duplicates of a pool or a tree: groups of rows connected by high cosine similarity, reduced to one row each."""

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
    """The rows that are kept, and the groups of near-duplicates.

    Attributes
    ----------
    rows : ndarray of int64
        Numbers of the rows that are kept, sorted; as a file, input to `Config.subset` and ``hkm cluster --subset``.
    removed : ndarray of int64
        Numbers of the removed rows, sorted.
    groups : Components
        The groups: `groups.rows`, and in `groups.first` the lowest row of each row's group.
    threshold : float
    """

    rows: NDArray[np.int64]
    removed: NDArray[np.int64]
    groups: Components
    threshold: float
    pool: Pool | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows examined."""
        return len(self.rows) + len(self.removed)

    def facts(self) -> dict[str, Any]:
        """Return summary counts as a dict for JSON."""
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
        """Tabulate the rows of all groups: `row`, `id` if the pool has ids, `group` (its lowest row) and `kept`."""
        order = np.lexsort((self.groups.rows, self.groups.first))
        rows, first = self.groups.rows[order], self.groups.first[order]
        ids = None if self.pool is None else self.pool.ids(rows)
        kept = ~np.isin(rows, self.removed, assume_unique=True)
        return pd.DataFrame({"row": rows, **({} if ids is None else {"id": ids}), "group": first, "kept": kept})

    def save(
        self, out: str | os.PathLike[str], *, removed: str | os.PathLike[str] | None = None,
        groups: str | os.PathLike[str] | None = None, overwrite: bool = False,
    ) -> None:  # fmt: skip
        """Write `rows`, and optionally the `removed` rows and the `table`.

        `out` and `removed` are ``.npy`` files of row numbers, ``.txt`` files of ids, or ``.parquet`` or ``.csv`` files
        of both and the pool's other columns, written by `write_subset`; `groups` is a ``.parquet`` file. Each file is
        written atomically. Raises InputError if a path is unsuitable, or exists and `overwrite` is
        false; see `check_targets`.
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
    """Raise InputError for paths that cannot be written; called before any work is done.

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
    """Find the near-duplicates of a pool or a tree, and keep one row of each group.

    Two rows are near-duplicates if their cosine similarity, computed in float64 from the values as stored, is at least
    `threshold`; groups are the connected components of such pairs. All pairs are found, whatever clusters their rows
    are in: angles to centroids and int16 products rule out pairs that are provably below the threshold, and the rest
    are measured. All-zero rows have no direction and are kept.

    Parameters
    ----------
    store : path, DataTree, Pool or array of shape (n_samples, n_features)
        A pool or a tree; of a tree, the rows that it clusters.
    threshold : float
        Cosine similarity, in (0, 1]; with 1, only rows of the same direction are duplicates.
    keep : {"closest", "random", "best"}
        Which row of each group to keep: the one closest to its level-1 centroid (for a tree, its own centroid;
        otherwise that of a quick k-means), a random one, or the one with the largest value in column `by`. Ties go to
        the lowest row number.
    by : str, optional
        A numeric column of the pool, for ``keep="best"``; with a leading ``-``, the smallest value is best. Rows with
        a missing value or NaN come last.
    subset : path or array of int, optional
        Consider only these rows: an ``.npy`` file of row numbers, or sorted, unique row numbers.
    seed : int
        Seed of the random numbers.
    client : distributed.Client, optional
        Where to run; by default distributed's current client if there is one, otherwise threads of this process.
    memory_limit : int or str, optional
        Most bytes that this process may use when it runs on threads.
    pool : path, optional
        Current path of the tree's pool.

    Returns
    -------
    Deduplication
        The rows to keep, the removed rows, and the groups, as row numbers of the pool.

    Raises
    ------
    InputError
        If settings are invalid (all problems are listed), or rows contain NaN.
    StoreError
        If the store is missing or damaged.
    ComputeError
        If the memory limit is too small.

    See Also
    --------
    hkm_dask.curation.near_pairs.near_pairs : Find the near-duplicate pairs among some rows, with their cosines.

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
        return [f"by={by!r} should be a column of a pool, but an array has none; ingest the array with its columns"]
    name, _ = column_to_sort(by, pool.columns)
    if name not in pool.columns:
        remedy = nearest(name, pool.columns) or "ingest it with the embeddings"
        names = ", ".join(pool.columns) or "none"
        return [f"by={by!r} should be a column of the pool, which has {names}; {remedy}"]
    if pool.column(name, np.empty(0, np.int64)).dtype.kind not in "iufb":
        return [f"by={by!r} should be a column of numbers, but has texts; choose another column"]
    return []


def _groups(
    opened: CuratedStore, index: NDArray[np.int64] | None, threshold: float, seed: int, runner: Runner
) -> tuple[Components, NDArray[np.float32]]:
    """Return the groups as positions in `index`, and the negative cosine of each of their rows to its centroid."""
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
    """Return the centroids of the tree level whose number of clusters is closest to the optimum for the search."""
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
    """Return sort keys of which the row to keep has the least in its group."""
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
