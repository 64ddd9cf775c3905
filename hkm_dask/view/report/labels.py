"""Labels of the samples, if known: how clusters are distributed over classes (arXiv:2405.15613 Fig. 4)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.data.npy import read_npy_header
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.metrics import ClassClusters, clusters_per_class
from hkm_dask.untrusted import open_regular, parse_json, read_regular, reading
from hkm_dask.view.report.axes import PANEL, Scale, panel, panels, path, x_axis, y_axis
from hkm_dask.view.report.columns import Column, pool_columns
from hkm_dask.view.report.markup import Markup, element

#: Most classes.
MAX_CLASSES = 10_000
_MAX_NAMES_BYTES = 16 * 2**20


@dataclass(frozen=True)
class LevelClasses:
    """Number of samples of every class, and the clusters of a level in which the class is the majority."""

    level: int
    sizes: NDArray[np.int64]
    clusters: ClassClusters


def open_labels(
    labels: str | os.PathLike[str], names: str | os.PathLike[str] | None, pool: Pool | None, n_samples: int
) -> Column:
    """Open the labels of all samples: a column of the pool or an ``.npy`` file; InputError if they do not fit."""
    given = _names(names)
    for column in pool_columns(pool) if pool is not None else ():
        if column.name == str(labels):
            return Column(column.name, column.n, column.read, column.take, given, True)
    file = Path(labels)
    wanted = f"labels={str(labels)!r} should be an .npy file of whole numbers, one per sample, or a column of the pool"
    with reading(f"{wanted}, but cannot be read", "check the path"):
        with open_regular(file) as opened:
            header = read_npy_header(opened, "it", os.fstat(opened.fileno()).st_size)
        values = np.memmap(file, header.dtype, "r", header.offset, header.shape)
    if header.shape != (n_samples,) or header.dtype.kind not in "iu":
        raise InputError(f"{wanted}; it is {header.dtype} {header.shape}, there are {n_samples} samples")
    return Column(
        "labels", n_samples, lambda a, b: np.asarray(values[a:b]), lambda rows: values[rows], given or {"": ""}
    )


def _names(path: str | os.PathLike[str] | None) -> Mapping[str, str]:
    if path is None:
        return {}
    wanted = f"label_names={str(path)!r} should be a JSON list of names, or an object of them by label"
    with reading(f"{wanted}, but cannot be read", "check the path"):
        parsed: Any = parse_json(read_regular(path, _MAX_NAMES_BYTES))
    if isinstance(parsed, list):
        parsed = dict(enumerate(parsed))
    if not isinstance(parsed, dict) or not all(isinstance(name, str) for name in parsed.values()):
        raise InputError(f"{wanted}; write it so")
    return {str(label): name for label, name in parsed.items()}


def classes_of_clusters(tree: xr.DataTree, column: Column) -> list[LevelClasses]:
    """Count the clusters of each level by the majority class of their samples.

    The paper uses the samples nearest to a centroid; here all samples of a cluster vote, and the first class wins a
    tie.
    """
    from scipy import sparse

    arrays, kinds = TreeArrays(tree), _kinds(column)
    counts = sparse.csr_array((arrays.n_clusters(1), len(kinds)), dtype=np.int64)
    start = 0
    for block in column.blocks():
        clusters, missing = arrays.part(1, "labels", start, start + len(block)), np.ma.getmaskarray(block)
        classes = np.searchsorted(kinds, np.ma.getdata(block))
        used, start = (clusters >= 0) & ~missing, start + len(block)
        pairs = (np.ones(int(used.sum()), np.int64), (clusters[used], classes[used]))
        counts = counts + sparse.coo_array(pairs, shape=counts.shape).tocsr()
    sizes, found = np.asarray(counts.sum(axis=0)).ravel(), []
    for level in range(1, arrays.n_levels + 1):
        if level > 1:
            parents = arrays.read(level, "labels")
            below = np.flatnonzero(parents >= 0)
            links = (np.ones(len(below), np.int64), (parents[below], below))
            counts = (sparse.coo_array(links, shape=(arrays.n_clusters(level), len(parents))).tocsr() @ counts).tocsr()
        clusters, classes = _majority(counts.tocoo())
        of_cluster = arrays.read(level, "leaf_sizes")[clusters]
        found.append(LevelClasses(level, sizes, clusters_per_class(classes, of_cluster, len(kinds))))
    return found


def _kinds(column: Column) -> NDArray[Any]:
    kinds: set[Any] = set()
    for block in column.blocks():
        kinds.update(np.ma.compressed(block).tolist())
        if len(kinds) > MAX_CLASSES:
            raise InputError(f"labels={column.name!r} should have {MAX_CLASSES:,} classes at most; choose other labels")
    return np.array(sorted(kinds), dtype=object if any(isinstance(kind, str) for kind in kinds) else None)


def _majority(counts: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the non-empty clusters and the majority class of each."""
    order = np.lexsort((-counts.col, counts.data, counts.row))
    clusters, classes = counts.row[order], counts.col[order]
    last = np.flatnonzero(np.diff(clusters, append=-1))
    return clusters[last].astype(np.int64), classes[last].astype(np.int64)


def class_panels(levels: list[LevelClasses]) -> Markup:
    """For each level, plot the size of every class against its clusters and their mean size, with fitted lines."""
    rows = []
    for what in ("clusters of the class", "mean size of its clusters"):
        made = []
        for one in reversed(levels):
            held = (one.clusters.n_clusters > 0) & (one.sizes > 0)
            y = one.clusters.n_clusters[held] if what.startswith("clusters") else one.clusters.mean_size[held]
            made.append(_panel(one.level, one.sizes[held].astype(float), y.astype(float), what))
        rows.append(panels(made))
    return element("div", rows)


def _panel(level: int, sizes: NDArray[np.float64], y: NDArray[np.float64], what: str) -> Markup:
    across = Scale(max(sizes.min() * 0.8, 0.5), sizes.max() * 1.25, 48, PANEL - 8, log=True)
    up = Scale(max(y.min() * 0.8, 0.5), y.max() * 1.25, 170, 10, log=True)
    dots = [element("circle", cx=across(a), cy=up(b), r=4, class_="dot") for a, b in zip(sizes, y, strict=True)]
    slope, line = "", None
    if len(np.unique(sizes)) > 1:
        k, c = np.polyfit(np.log(sizes), np.log(y), 1)
        ends = np.array([sizes.min(), sizes.max()])
        fitted = np.exp(k * np.log(ends) + c).clip(up.low, up.high)
        line = path([(across(a), up(b)) for a, b in zip(ends, fitted, strict=True)], "line draw")
        slope = f"slope {k:.2f}"
    label = f"Level {level}: samples of a class against {what}, both logarithmic, {slope}"
    axes = [y_axis(up, 48, PANEL - 8), x_axis(across, 170, "samples of the class", n=4)]
    return panel(f"Level {level}: {what}", slope, 210, axes, line, dots, label=label)
