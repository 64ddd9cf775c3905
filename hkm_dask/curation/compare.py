"""Comparison of two subsets of a pool: overlap, coverage of clusters and of the pool, near-duplicates, columns."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.compute.keyed_random import random_bits, stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.curation.column_summary import TOLD_VALUES, summarize_columns
from hkm_dask.curation.dedup import dedup
from hkm_dask.curation.near_pairs import check_threshold
from hkm_dask.curation.stores import CuratedStore, open_store
from hkm_dask.data import layout
from hkm_dask.data.files import stored_format
from hkm_dask.data.objects import location
from hkm_dask.data.pool import Pool
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.data.summary import Summary, aligned
from hkm_dask.errors import InputError, StoreError, check_whole
from hkm_dask.events import emit
from hkm_dask.hierarchy.sampling.eligible import count_rows, leaf_sizes
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.pools import pool_is_gone
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.kmeans.predict import nearest_labels
from hkm_dask.metrics import size_balance

#: Most frequent texts of a column whose shares are kept for each subset, and the least share that is shown.
FREQUENT_VALUES, TOLD_SHARE = 100, 0.005
#: Bytes of a subset's rows that are searched at once.
_DRAW_BYTES = 8 << 20

Facts = dict[str, Any]
_Store = str | os.PathLike[str] | Pool | xr.DataTree


@dataclass(frozen=True, repr=False)
class Comparison:
    """Measurements of two subsets and of their pool; its repr is a table.

    Attributes
    ----------
    facts : dict
        Ready for JSON: ``settings``; ``overlap``; and ``pool``, ``a`` and ``b``, each with ``n_rows`` and, if requested
        and available, ``levels``, ``distance``, ``near_duplicates`` and ``columns``. For text columns these are the
        shares of the texts that are frequent in at least one of the three.
    """

    facts: Facts

    def __repr__(self) -> str:
        lines = _lines(self.facts)
        width = max(len(line[0]) for line in lines)
        return "\n".join(line[2:] for line in aligned([[line[0].ljust(width), *line[1:]] for line in lines]))

    def _repr_html_(self) -> str:
        a, b = (self.facts[key]["name"] for key in ("a", "b"))
        return Summary(f"{a} beside {b}", table=_lines(self.facts)).to_html()


def compare(
    a: _Store | ArrayLike,
    b: _Store | ArrayLike,
    *,
    tree: xr.DataTree | str | os.PathLike[str] | None = None,
    pool: Pool | str | os.PathLike[str] | None = None,
    threshold: float = 0.95,
    sample: int = 1000,
    seed: int = 0,
    memory_limit: int | str | None = None,
) -> Comparison:
    """Compare two subsets of a pool.

    Parameters
    ----------
    a, b : array of int, path, Pool or DataTree
        Row numbers of the pool, as returned by `sample`; a file written by ``hkm sample`` or ``hkm dedup`` (row numbers
        in ``.npy``, rows or ids in ``.parquet`` and ``.csv``, ids in ``.txt``); the pool itself for all its rows; or a
        tree for the rows that it clusters.
    tree : DataTree or path, optional
        Tree whose covered clusters are counted; by default, the one given as `a` or `b`.
    pool : Pool or path, optional
        Pool of the rows; by default the pool of the tree, or the one given as `a` or `b`.
    threshold : float
        Cosine similarity at or above which two rows of a subset are near-duplicates.
    sample : int
        Number of random rows of the pool whose distance to the nearest row of each subset is measured; 0 for none.
    seed : int
        Seed of the random rows.
    memory_limit : int or str, optional
        Most bytes that this process may use.

    Returns
    -------
    Comparison
        Its repr is a table.

    Raises
    ------
    InputError
        If neither a tree nor a pool is given, if they belong to different pools, or if a setting is invalid.
    StoreError
        If a store is missing or damaged.

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> x = np.random.default_rng(0).normal(size=(300, 2)).astype("float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool = hkm.ingest(x, f"{folder}/pool.zarr")
    ...     tree = hkm.build_hierarchy(pool, f"{folder}/tree.zarr", hkm.Config.from_flags((30, 6), n_resamples=0))
    ...     found = compare(hkm.sample(tree, 20), hkm.sample(tree, 20, seed=1), tree=tree)
    >>> found.facts["a"]["n_rows"], found.facts["b"]["n_rows"]
    (20, 20)
    """
    problems = check_threshold(threshold) + check_whole(sample=sample, seed=seed)
    if problems:
        raise InputError(problems)
    opened = _open(a, b, tree, pool)
    subsets = {"pool": None, "a": _rows_of(a, opened), "b": _rows_of(b, opened)}
    names = {"pool": "pool", "a": _name(a) or "a", "b": _name(b) or "b"}
    facts: Facts = {"settings": {"threshold": threshold, "sample": min(sample, opened.rows.n_rows), "seed": seed}}
    with runner_for(None, memory_limit) as runner:
        for done, (key, index) in enumerate(subsets.items()):
            emit("progress", stage="compare", done=done, total=len(subsets))
            facts[key] = {"name": names[key], "n_rows": opened.rows.n_rows if index is None else len(index)}
            if opened.arrays is not None:
                facts[key]["levels"] = _coverage(opened.arrays, index)
            if opened.pool is not None and opened.pool.columns:
                facts[key]["columns"] = summarize_columns(opened.pool, index)
            if key != "pool":
                if sample:
                    facts[key]["distance"] = _distances(opened.rows, index, sample, seed, runner)
                found = dedup(
                    opened.pool, threshold, subset=np.arange(opened.rows.n_rows) if index is None else index,
                    memory_limit=memory_limit,
                ).facts()  # fmt: skip
                facts[key]["near_duplicates"] = {name: found[name] for name in ("n_removed", "n_groups")}
    emit("progress", stage="compare", done=len(subsets), total=len(subsets))
    _keep_frequent([facts[key].get("columns", {}) for key in subsets])
    facts["overlap"] = _overlap(subsets["a"], subsets["b"], opened.rows.n_rows)
    return Comparison(facts)


def _open(
    a: _Store | ArrayLike, b: _Store | ArrayLike, tree: xr.DataTree | str | os.PathLike[str] | None,
    pool: Pool | str | os.PathLike[str] | None,
) -> CuratedStore:  # fmt: skip
    for path in (a, b):
        if isinstance(path, str | os.PathLike) and not location(path).exists():
            raise StoreError(f"{path} is missing; give a file of row numbers, a pool or a tree")
    trees: list[Any] = [*([] if tree is None else [tree]), *(x for x in (a, b) if _format(x) == layout.TREE_FORMAT)]
    pools: list[Any] = [*([] if pool is None else [pool]), *(x for x in (a, b) if _format(x) == layout.POOL_FORMAT)]
    if not trees and not pools:
        raise InputError("tree=None should be the tree of the rows; give it, or a pool to omit clusters")
    trees = [open_hierarchy(tree) if isinstance(tree, str | os.PathLike) else tree for tree in trees]
    first = (trees or pools)[0]
    known_as = _name(first) or "the first"
    place = pools[0] if pools and any(pool_is_gone(tree.attrs) for tree in trees) else None  # it was moved there
    opened = open_store(first, place)
    for store in (*trees, *pools):
        other, name = open_store(store, place).pool, _name(store) or "the other"
        if other is None or opened.pool is None or other.fingerprint != opened.pool.fingerprint:
            raise InputError(f"{name} should be of the same pool as {known_as}; compare rows of one pool")
        if other.n_samples != opened.pool.n_samples:
            n_rows = f"{other.n_samples:,} rows should be the {opened.pool.n_samples:,} of {known_as}"
            raise InputError(f"{name}: its {n_rows}; let the tree that lacks some have them, with `hkm update`")
    return opened


def _format(store: Any) -> str:
    """Return the format of a store, or an empty string if it is not one, such as row numbers."""
    if isinstance(store, xr.DataTree):
        return layout.TREE_FORMAT
    if isinstance(store, Pool):
        return layout.POOL_FORMAT
    return stored_format(location(store)) if isinstance(store, str | os.PathLike) else ""


def _name(store: Any) -> str:
    """Return the name of a file or a store; empty if it is in memory."""
    if isinstance(store, xr.DataTree):
        store = store.encoding.get("source") or ""
    elif isinstance(store, Pool):
        store = store.path
    return location(store).name if isinstance(store, str | os.PathLike) and store else ""


def _rows_of(subset: Any, opened: CuratedStore) -> NDArray[np.int64] | None:
    """Return the row numbers of a subset; None for all rows."""
    if _format(subset) in (layout.TREE_FORMAT, layout.POOL_FORMAT):
        return open_store(subset, opened.pool).clustered()
    rows = opened.chosen(subset)
    if not len(rows):
        raise InputError("n_rows=0 should be at least 1 on both sides; draw again")
    return rows


def _overlap(a: NDArray[np.int64] | None, b: NDArray[np.int64] | None, n_rows: int) -> Facts:
    n_a, n_b = (n_rows if index is None else len(index) for index in (a, b))
    n_both = n_b if a is None else n_a if b is None else len(np.intersect1d(a, b, assume_unique=True))
    return {"n_rows": n_both, "jaccard": n_both / (n_a + n_b - n_both)}


def _coverage(arrays: TreeArrays, index: NDArray[np.int64] | None) -> list[Facts]:
    """Count, for each level, the clusters with a row in the subset, and measure how evenly the rows are spread.

    Clusters without any row in the tree are left out.
    """
    counts, levels = leaf_sizes(arrays, None) if index is None else count_rows(arrays, index), list[Facts]()
    n_left_out = (arrays.n_rows(1) if index is None else len(index)) - int(counts[0].sum())
    for t, own in enumerate(counts, 1):
        used = own[arrays.read(t, "leaf_sizes") > 0]
        facts: Facts = {"level": t, "n_clusters": len(used), "n_covered": int((used > 0).sum())}
        facts["n_not_clustered"] = n_left_out
        if used.sum() and len(used) > 1:
            balance = size_balance(used)
            facts |= {"entropy": balance.entropy, "gini": balance.gini}
        levels.append(facts)
    return levels


def _distances(rows: Rows, index: NDArray[np.int64] | None, sample: int, seed: int, runner: Runner) -> Facts:
    """Return the mean and largest Euclidean distance from random rows of the pool to the nearest row of a subset."""
    bits = random_bits(stream_key(seed, "compare"), np.arange(rows.n_rows))
    drawn = np.sort(np.argpartition(bits, sample - 1)[:sample]) if sample < rows.n_rows else np.arange(rows.n_rows)
    points = rows.take(drawn).astype(np.float32)
    draw = rows if index is None else SubsetRows(rows, index)
    squared = np.full(len(points), np.inf)
    bounds = draw.bounds(_DRAW_BYTES)
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        block = draw.read(low, high).astype(np.float32)
        nearest = block[nearest_labels(ArrayRows(points), block, runner=runner)]
        squared = np.minimum(squared, np.square(points.astype(np.float64) - nearest).sum(axis=1))
    return {"mean": float(np.sqrt(squared).mean()), "max": math.sqrt(float(squared.max()))}


def _keep_frequent(columns: list[Facts]) -> None:
    """Keep the shares of the texts that are frequent in the pool or either subset; modifies `columns`."""
    for name in columns[0]:
        shares = [side[name].get("shares", {}) for side in columns]
        frequent = dict.fromkeys(value for side in shares for value in list(side)[:FREQUENT_VALUES])
        for side, share in zip(columns, shares, strict=True):
            if share:
                side[name]["shares"] = {value: share[value] for value in frequent if value in share}


# -- the table ---------------------------------------------------------------------------------------------------------


def _lines(facts: Facts) -> list[list[str]]:
    """Make the cells of the table: a label, then the values of the pool, of a and of b."""
    sides = [facts[key] for key in ("pool", "a", "b")]
    both, n_drawn = facts["overlap"]["n_rows"], facts["settings"]["sample"]
    lines = [["", *(side["name"] for side in sides)], ["rows", *(f"{side['n_rows']:,}" for side in sides)]]
    shared = [f"{both:,} ({both / side['n_rows']:.1%})" for side in sides[1:]]
    lines.append(["of which in the other", "", *shared])
    for levels in zip(*(side.get("levels", []) for side in sides), strict=True):
        name = f"level {levels[0]['level']}"
        head = f"{name}: clusters covered, of {levels[0]['n_clusters']:,}"
        lines.append([head, *(f"{one['n_covered']:,}" for one in levels)])
        for key in ("entropy", "gini"):
            label = {"entropy": "entropy (1 is even)", "gini": "Gini (0 is even)"}[key]
            lines.append([f"{name}: {label}", *(f"{one[key]:.3f}" if key in one else "" for one in levels)])
    if "distance" in sides[1]:
        for key, label in (("mean", "mean"), ("max", "largest")):
            cells = [f"{side['distance'][key]:.4g}" for side in sides[1:]]
            lines.append([f"{label} distance from {n_drawn:,} pool rows", "", *cells])
    cells = [f"{side['near_duplicates']['n_removed']:,}" for side in sides[1:]]
    lines.append([f"near-duplicates (cosine {facts['settings']['threshold']:g})", "", *cells])
    for name in sides[0].get("columns", {}):
        lines += _column_lines(name, [side["columns"][name] for side in sides], [side["n_rows"] for side in sides])
    if sides[0]["n_rows"] in (sides[1]["n_rows"], sides[2]["n_rows"]):  # the pool is one of the two
        lines = [[line[0], *line[2:]] for line in lines]
    return lines


def _column_lines(name: str, columns: list[Facts], n_rows: list[int]) -> list[list[str]]:
    if "n_values" not in columns[0]:
        return [
            [f"{name}: {key}", *("" if column.get(key) is None else f"{column[key]:.4g}" for column in columns)]
            for key in ("mean", "std", "min", "max")
        ]
    n_values = ["many" if column["n_values"] is None else f"{column['n_values']:,}" for column in columns]
    told = list(columns[0]["shares"])[:TOLD_VALUES]
    least = [max(TOLD_SHARE, 1.5 / max(1, n)) for n in n_rows]  # a text that occurs in one row is not informative
    told = [v for v in told if any(c["shares"].get(v, 0) >= share for c, share in zip(columns, least, strict=True))]
    shares = [[f"  {value}"[:40], *(f"{column['shares'].get(value, 0):.1%}" for column in columns)] for value in told]
    return [[f"{name}: values", *n_values], *shares]
