"""Consistency of the arrays of an assignment with each other, and with its tree and its pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hkm_dask.config import Level
from hkm_dask.data import layout
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.objects import Location, location
from hkm_dask.data.pool import Pool
from hkm_dask.data.verify import Verification
from hkm_dask.data.verify_chunks import ChunkReader, broken_rule
from hkm_dask.errors import StoreError
from hkm_dask.hierarchy.assignment import DISTANCE, ID
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.nearest import paths_of_centroids
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.hierarchy.verify.level import LevelCheck


@dataclass
class AssignedCheck(LevelCheck):
    """Labels and distances of an assignment, together with the level-1 centroids of its tree."""

    tree: Location | None = None
    distance_power: ClassVar[int] = 2

    def name(self, array: str) -> str:
        """Return the array's name in the assignment."""
        return {"labels": "level_1", "distances": DISTANCE}.get(array, f"tree/{array}")

    def array(self, array: str) -> StoredArray:
        """Return an array of the assignment, or of its tree."""
        name = self.name(array)
        return self.reader.arrays[name] if name in self.reader.arrays else open_array(location(self.tree or "") / array)


def check_assignment(
    attributes: Mapping[str, Any], reader: ChunkReader, found: Verification, tree: Location | None
) -> list[AssignedCheck]:
    """Check clusters, distances and ids of every sample; returns what is needed to recompute some, if possible."""
    levels = [f"level_{t}" for t in range(1, 1 + sum(name.startswith("level_") for name in reader.arrays))]
    if not _fit(levels, reader, found):
        return []
    arrays = _tree_of(attributes, found, tree)
    if arrays is not None and arrays.n_levels != len(levels):
        found.add("", "levels", f"{len(levels)} levels should be {arrays.n_levels}, as in its tree")
        return []
    try:
        paths = None if arrays is None else paths_of_centroids(arrays)
    except StoreError as error:
        found.cannot_read("tree", error)
        arrays = paths = None
    n_problems = found.n_problems
    _check_rows(levels, paths, reader, found)
    n_rows, whole = reader.arrays[DISTANCE].spec.shape[0], not {*levels, DISTANCE} & reader.damaged
    if whole and found.n_problems == n_problems:
        by = "in range; its tree was not checked" if paths is None else "those of the tree"
        found.checks["rows"] = f"{n_rows:,} samples: distances are numbers, clusters of {len(levels)} levels {by}"
    if arrays is None or not whole or found.n_problems > n_problems:
        return []
    stored = arrays.stored(1, "centroids")
    assert stored is not None  # it was opened from disk
    settings, folder = Level(n_clusters=arrays.n_clusters(1)), location(stored.path).parent
    return [AssignedCheck(1, settings, None, "", reader, found, n_labeled=n_rows, tree=folder)]


def _fit(levels: list[str], reader: ChunkReader, found: Verification) -> bool:
    """Tell whether all arrays exist and have the same length."""
    wanted = {**dict.fromkeys(levels or ["level_1"], "int32"), DISTANCE: "float32"}
    missing = [name for name in wanted if name not in reader.arrays]
    for name in missing:
        found.add(name, "missing", "cannot be read: it is missing, or its metadata are damaged")
    for name in sorted(set(reader.arrays) - {*wanted, ID}):
        found.add(name, "array", "should not be there: an assignment has no such array")
    if missing:
        return False
    n_rows, n_problems = reader.arrays[DISTANCE].spec.shape[0], found.n_problems
    for name, array in reader.arrays.items():
        dtype = wanted.get(name, array.spec.dtype)
        if array.spec.shape != (n_rows,) or array.spec.dtype != dtype:
            fact = f"{array.spec.dtype} of shape {array.spec.shape}"
            found.add(name, "shape", f"{fact} should be {dtype} of shape ({n_rows},), as many as distances")
    return found.n_problems == n_problems


def _tree_of(attributes: Mapping[str, Any], found: Verification, tree: Location | None) -> TreeArrays | None:
    """Open the tree of an assignment; None if it has none on disk, or it cannot be opened, which is reported."""
    stored = str(attributes.get("tree") or "")
    where = tree if tree is not None else location(stored)
    if tree is None and (not stored or not where.exists()):
        fact = (
            f"its tree {where} is not there; give its path with --tree" if stored else "it was made by a tree in memory"
        )
        found.notes.append(f"clusters were not compared with a tree: {fact}")
        return None
    try:
        opened = open_hierarchy(where)
    except StoreError as error:
        if tree is not None:
            raise
        found.cannot_read("tree", error)
        return None
    if opened.attrs.get(layout.DIGEST) == attributes.get("tree_digest"):
        return TreeArrays(opened)
    what = f"{where} should be the tree it was made with, its content differs; clusters were held against none"
    found.add("tree", "tree", what, remedy="give the path of its tree with --tree, or make the assignment again")
    return None


def _check_rows(levels: list[str], paths: NDArray[np.int32] | None, reader: ChunkReader, found: Verification) -> None:
    """Check the clusters and the distance of every sample."""
    n_clusters = np.iinfo(np.int32).max if paths is None else len(paths)
    range_rule = "clusters should be numbers >= 0" if paths is None else f"clusters should be 0 to {n_clusters - 1}"

    def look(start: int, *columns: NDArray[Any]) -> list[tuple[str, str, NDArray[np.int64]]]:
        labels, distances = columns[:-1], columns[-1]
        inside = (labels[0] >= 0) & (labels[0] < n_clusters)
        wrong = {
            (DISTANCE, "distances should be finite, and not negative"): ~(np.isfinite(distances) & (distances >= 0)),
            (levels[0], range_rule): ~inside,
        }
        for t, (name, own) in enumerate(zip(levels[1:], labels[1:], strict=True), 1):
            if paths is None:
                wrong[name, range_rule] = own < 0
            else:
                right = paths[np.where(inside, labels[0], 0), t]
                wrong[name, f"clusters should be those that the tree puts {levels[0]} in"] = inside & (own != right)
        return [(*where, np.flatnonzero(mask) + start) for where, mask in wrong.items() if mask.any()]

    for _, faults in reader.fold([*levels, DISTANCE], look):
        for name, rule, rows in faults:
            found.add(name, rule, broken_rule(reader.arrays[name], rule, rows))


def check_ids(pool: Pool, reader: ChunkReader, found: Verification) -> None:
    """Compare the ids with those of the pool."""
    if (ID in reader.arrays) != pool.has_ids:
        found.add(ID, "ids", f"should {'' if pool.has_ids else 'not '}be there, as in its pool")
    if ID not in reader.arrays or not pool.has_ids:
        return
    of_pool, n_problems = open_array(location(pool.path) / layout.IDS), found.n_problems

    def differ(start: int, ids: NDArray[Any]) -> NDArray[np.int64]:
        return np.flatnonzero(ids != of_pool.read(start, start + len(ids))) + start

    try:
        for _, rows in reader.fold([ID], differ):
            if len(rows):
                found.add(ID, "ids", broken_rule(reader.arrays[ID], "ids should be those of the pool", rows))
    except StoreError as error:
        found.cannot_read("pool", error)
    if found.n_problems == n_problems and ID not in reader.damaged:
        found.checks["ids"] = f"{pool.n_samples:,}, those of the pool"
