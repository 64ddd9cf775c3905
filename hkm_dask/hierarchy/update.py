"""Update of a tree after its pool has grown: new rows join existing clusters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.compute.memory import LEAST_BLOCK, StageBytes, assign_stage, check_fits, write_stage
from hkm_dask.compute.runner import Runner
from hkm_dask.data import layout, store
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.objects import Location
from hkm_dask.data.pool import Pool
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import Rows
from hkm_dask.hierarchy import level_arrays
from hkm_dask.hierarchy.assignment import DISTANCE, store_labels
from hkm_dask.hierarchy.source import ClusterInput, label_chunk_rows
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.nearest import nearest_clusters

if TYPE_CHECKING:
    from distributed import Client

_NUMBER_BYTES = 8


def check_memory(tree: xr.DataTree, pool: Pool, n_added: int, runner: Runner) -> None:
    """Raise ComputeError if a worker has too little memory to add the new samples."""
    arrays, base = TreeArrays(tree), pool.rows()
    rows: Rows = UnitRows(base) if tree.attrs["metric"] == "cosine" else base
    k, d = arrays.n_clusters(1), pool.n_features
    stages = {"labeling the new samples": assign_stage(-(-n_added // runner.n_workers), k, d)}
    stages |= {f"writing level {t}": write_stage(arrays.n_clusters(t), d) for t in range(1, arrays.n_levels + 1)}
    if pool.has_ids:
        stages["comparing ids"] = StageBytes(2 * _NUMBER_BYTES * n_added)
    # One more block of unconverted rows, and the numbers of the new rows.
    inputs = runner.input_bytes(rows) + max(base.chunk_rows * base.row_bytes, LEAST_BLOCK) + _NUMBER_BYTES * n_added
    check_fits(stages, runner.memory_budget, inputs=inputs)


def write_updated(
    tree: xr.DataTree, pool: Pool, n_before: int, folder: Location, work: Location, *, pool_path: str,
    client: Client | None, memory_limit: int | str | None,
) -> float:  # fmt: skip
    """Write to `folder` the tree with the rows of `pool` from `n_before` on added, and mark it as complete.

    Centroids do not change. Labels of the new rows are kept in `work` meanwhile, so that an interrupted run can reuse
    them. Returns the root mean square distance of the new rows to their level-1 centroids, relative to that of the
    others.
    """
    arrays, attributes = TreeArrays(tree), _own(tree.attrs)
    assigned = _assign(tree, arrays, pool, n_before, work, client=client, memory_limit=memory_limit)
    before = {"n_samples": n_before, "pool_fingerprint": attributes["pool_fingerprint"]}
    attributes["updates"] = [*attributes.get("updates", []), before]
    base = store.create_group(folder, attributes)
    chunk_rows, level = label_chunk_rows(pool.rows()), base / "level_1"
    level_arrays.create_row_arrays(level, 1, pool.n_samples, chunk_rows)
    times_as_far, subset = _join_rows(arrays, assigned, level, n_before)
    with runner_for(client, memory_limit, work_dir=work) as runner:
        for t in range(1, arrays.n_levels + 1):
            _write_level(tree, arrays, t, base, runner)
    changed = {
        "pool": pool_path,
        "pool_fingerprint": pool.fingerprint,
        "subset_fingerprint": subset if attributes.get("subset_fingerprint") else "",
    }
    store.mark_complete(base, changed)
    return times_as_far


def _own(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the attributes of a group except those that mark it as complete."""
    return {str(name): value for name, value in attributes.items() if name not in (layout.COMPLETE, layout.DIGEST)}


def _assign(
    tree: xr.DataTree, arrays: TreeArrays, pool: Pool, n_before: int, work: Location, *, client: Client | None,
    memory_limit: int | str | None,
) -> Location:  # fmt: skip
    """Store the labels and squared distances of the new rows, for the nearest centroids of level 1."""
    base: Rows = pool.rows()
    index = np.arange(n_before, pool.n_samples)
    rows = SubsetRows(UnitRows(base) if tree.attrs["metric"] == "cosine" else base, index)
    fingerprint = f"{pool.fingerprint}:{n_before}"
    source = ClusterInput(
        rows=rows, labeled=rows, n_total=rows.n_rows, chunk_rows=label_chunk_rows(base), fingerprint=fingerprint,
        path="", subset="", mean=None, max_abs=None,
    )  # fmt: skip
    identity = {
        "format": layout.ASSIGNMENT_FORMAT,
        "format_version": layout.FORMAT_VERSION,
        "tree_digest": str(tree.attrs[layout.DIGEST]),
        "metric": tree.attrs["metric"],
        "pool_fingerprint": fingerprint,
    }
    key = hashlib.sha256(f"{identity}".encode()).hexdigest()[:16]
    target = work / f"joining-{key}.zarr"
    store_labels(source, arrays, target, identity, client=client, memory_limit=memory_limit, squared=True)
    return target


def _join_rows(arrays: TreeArrays, assigned: Location, level: Location, n_before: int) -> tuple[float, str]:
    """Write labels and distances of level 1, chunk by chunk; also returns the fingerprint of the labeled rows."""
    old = [_stored(arrays, 1, name) for name in ("labels", "distances")]
    new = [open_array(assigned / name) for name in ("level_1", DISTANCE)]
    digest, sums, counts = hashlib.sha256(), [0.0, 0.0], [0, 0]
    targets = [open_array(level / name) for name in ("labels", "distances")]
    spec = targets[0].spec
    for index in range(spec.n_chunks):
        low, high = spec.chunk_range(index)
        labels, distances = (_rows_of(a, b, n_before, low, high) for a, b in zip(old, new, strict=True))
        for target, values in zip(targets, (labels, distances), strict=True):
            target.write(low, values)
        labeled = np.flatnonzero(labels >= 0) + low
        digest.update(labeled.tobytes())
        for side, some in enumerate((labeled < n_before, labeled >= n_before)):
            sums[side] += float(distances[labeled[some] - low].sum(dtype=np.float64))
            counts[side] += int(some.sum())
    before, added = (float(np.sqrt(total / max(1, count))) for total, count in zip(sums, counts, strict=True))
    return added / before if before else 1.0, digest.hexdigest()


def _stored(arrays: TreeArrays, t: int, name: str) -> StoredArray:
    stored = arrays.stored(t, name)
    assert stored is not None  # the tree is on disk
    return stored


def _rows_of(old: StoredArray, new: StoredArray, n_before: int, low: int, high: int) -> NDArray[Any]:
    """Return values of the rows ``low:high``, of which the first `n_before` are old."""
    if high <= n_before:
        return old.read(low, high)
    added = new.read(max(low, n_before) - n_before, high - n_before)
    return added if low >= n_before else np.concatenate([old.read(low, n_before), added])


def _write_level(tree: xr.DataTree, arrays: TreeArrays, t: int, base: Location, runner: Runner) -> None:
    """Write the per-cluster arrays of a level; all but centroids and their history are recomputed."""
    folder = base / f"level_{t}"
    if t > 1:
        labels, distances = arrays.read(t, "labels").copy(), arrays.read(t, "distances").copy()
        _place_used(arrays, t, level_arrays.read_whole(base / f"level_{t - 1}" / "sizes"), labels, distances)
        level_arrays.create_row_arrays(folder, t, len(labels), _stored(arrays, t, "labels").spec.chunk_rows)
        level_arrays.write_row_arrays(folder, labels, distances)
    history = [values[np.isfinite(values)] for values in arrays.read(t, "inertia")]
    level_arrays.write_cluster_arrays(folder, t, arrays.read(t, "centroids"), history, runner)
    store.mark_complete(folder, _own(tree.children[f"level_{t}"].attrs))


def _place_used(
    arrays: TreeArrays, t: int, sizes: NDArray[np.int64], labels: NDArray[np.int32], distances: NDArray[np.float32]
) -> None:
    """Label a cluster of level t - 1 that had no members and now has some, with the nearest centroid of level t."""
    found = np.flatnonzero((sizes > 0) & (labels < 0))
    if len(found):
        clusters, squared = nearest_clusters(arrays, t, np.ascontiguousarray(arrays.take(t - 1, "centroids", found)), 1)
        labels[found], distances[found] = clusters[:, 0], squared[:, 0]
