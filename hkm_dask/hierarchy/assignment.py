"""Assignment of new samples to an existing tree: clusters at every level and distances, in a separate store."""

from __future__ import annotations

import itertools
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.compute.memory import assign_stage
from hkm_dask.compute.partition import Part, in_rounds
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.config import Config
from hkm_dask.data import layout, pool_writer, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import METADATA_FILE, read_attributes, read_complete
from hkm_dask.data.lazy_arrays import checked_arrays
from hkm_dask.data.objects import Location, location, zarr_store
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import emit
from hkm_dask.hierarchy.source import ClusterInput, open_source
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.nearest import paths_of_centroids
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.kmeans.predict import LabelRows, geometry_of
from hkm_dask.search.worker import worker_engine
from hkm_dask.version import __version__

if TYPE_CHECKING:
    from distributed import Client

DISTANCE, ID = "distance", "id"
#: Most floating-point operations of a task: a few seconds, the most that an interruption can lose.
_TASK_FLOPS = 1e12
#: Least number of tasks per thread, for progress reports, and the operations that are worth a task.
_TASKS_PER_THREAD, _LEAST_TASK_FLOPS = 20, 2e10
#: Most rows of a chunk (or one chunk of the samples): reading a few labels reads a whole chunk.
_MAX_CHUNK_ROWS = 1 << 20


def assign(
    tree: xr.DataTree | str | os.PathLike[str],
    pool: Any,
    out: str | os.PathLike[str],
    *,
    client: Client | None = None,
    memory_limit: int | str | None = None,
    restart: bool = False,
) -> xr.Dataset:
    """Assign new samples to the clusters of a tree at every level, and store the result.

    The search is out of core and exact: the nearest centroid of level 1, then the clusters that contain it. With
    `n_splits`, the label of a sample of the tree may differ: it is the nearest only within its cluster. If it is
    interrupted, the same call resumes it; if it was already finished, the store is opened.

    Parameters
    ----------
    tree : DataTree or path
        A tree made by `build_hierarchy`.
    pool : path, Pool or array of shape (n_samples, n_features)
        The new samples: a pool made by `ingest`, or rows in memory, in a ``.npy`` file or in a Zarr array.
    out : path
        Path of the new store.
    client : distributed.Client, optional
        Where to run; by default distributed's current client, otherwise threads of this process.
    memory_limit : int or str, optional
        Memory in bytes that this process may use when it runs on threads.
    restart : bool
        Start over, ignoring existing results.

    Returns
    -------
    xarray.Dataset
        ``level_1``, ``level_2`` and so on (sample,), int32; ``distance`` (sample,), float32, Euclidean, to the level-1
        centroid; ``id`` (sample,) if the pool has ids. Values are loaded lazily.

    Raises
    ------
    InputError
        If samples have another number of features, contain NaN or, for cosine, are all zeros, or if `out` is another
        assignment.
    StoreError
        If the tree or the pool is damaged, or another process is writing the same store.

    See Also
    --------
    hkm_dask.HierarchicalKMeans.predict : For arrays in memory and Dask arrays.

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> x = np.float32([[0], [1], [10], [11], [100], [101]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = hkm.build_hierarchy(x, f"{folder}/tree.zarr", hkm.Config.from_flags((3, 2), n_resamples=0))
    ...     new = hkm.assign(tree, np.float32([[9], [104]]), f"{folder}/new.zarr").load()
    >>> new["distance"].values.tolist()
    [1.5, 3.5]
    """
    opened = tree if isinstance(tree, xr.DataTree) else open_hierarchy(tree)
    arrays, target = TreeArrays(opened), location(out, "out").absolute()
    source = new_samples(opened, arrays, pool)
    store_labels(
        source, arrays, target, _identity(opened, source), client=client, memory_limit=memory_limit, restart=restart
    )
    return open_assignment(target)


def store_labels(
    source: ClusterInput, arrays: TreeArrays, target: Location, identity: dict[str, Any], *, client: Client | None,
    memory_limit: int | str | None, restart: bool = False, squared: bool = False,
) -> None:  # fmt: skip
    """Write the store that `assign` opens, optionally with squared distances; an interrupted run is resumed."""
    work = layout.work_path(target)
    with store.resumable(target, partial(_obstacles, identity=identity), restart=restart, work=work) as folder:
        if folder is not None:
            begin = time.perf_counter()
            with runner_for(client, memory_limit, work_dir=work) as runner:
                if not (folder / METADATA_FILE).is_file():
                    chunk_rows = _chunk_rows_for(source, int(_n_tasks(source, arrays, runner)))
                    _create(folder, source, arrays.n_levels, identity, chunk_rows)
                _write(folder, source, arrays, runner, squared)
            if source.pool is not None and source.pool.has_ids:
                ids = open_array(location(source.pool.path) / layout.IDS)
                pool_writer.write_column(folder, ID, map(ids.read_chunk, range(ids.spec.n_chunks)), source.n_total)
            source.check_unchanged()
            store.mark_complete(folder, {"seconds": round(time.perf_counter() - begin, 3)})


def open_assignment(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open a store written by `assign`; raises StoreError if it is missing, incomplete or altered."""
    folder = location(path).absolute()
    read_complete(folder, layout.ASSIGNMENT_FORMAT)
    return checked_arrays(xr.open_zarr(zarr_store(folder), chunks=None), folder)


def new_samples(tree: xr.DataTree, arrays: TreeArrays, pool: Any) -> ClusterInput:
    """Open samples to be assigned to an existing tree; raises InputError if they do not match it."""
    config = Config.from_json(tree.attrs["config"]).model_copy(update={"subset": None, "fit_sample": None})
    source = open_source(pool, config)
    n_features = tree.children["level_1"].sizes[layout.FEATURE]
    if source.rows.n_features != n_features:
        raise InputError(
            f"n_features={source.rows.n_features} of the samples should be {n_features}, as in the tree; "
            "give embeddings of the same model"
        )
    return source


def _identity(tree: xr.DataTree, source: ClusterInput) -> dict[str, Any]:
    ids = ""
    if source.pool is not None and source.pool.has_ids:
        ids = open_array(location(source.pool.path) / layout.IDS).fingerprint
    return {
        "format": layout.ASSIGNMENT_FORMAT,
        "format_version": layout.FORMAT_VERSION,
        "tree": str(tree.encoding.get("source") or ""),
        "tree_digest": str(tree.attrs.get(layout.DIGEST, "")),
        "metric": tree.attrs["metric"],
        "pool": source.path,
        "pool_fingerprint": source.fingerprint,
        "ids_fingerprint": ids,
        "software": f"hkm_dask {__version__}, numpy {np.__version__}",
    }


def _obstacles(folder: Location, identity: dict[str, Any]) -> list[str]:
    """Describe how an assignment, finished or not, differs from the requested one."""
    stored = read_attributes(folder, missing_ok=True)
    if stored.get("format", layout.ASSIGNMENT_FORMAT) != layout.ASSIGNMENT_FORMAT:
        return [f"{folder} should be an assignment of hkm_dask, but is something else; give another path"]
    lines, facts = [], {"tree_digest": "tree", "pool_fingerprint": "pool", "format_version": "format_version"}
    if "ids_fingerprint" in stored:  # not written by an earlier version
        facts["ids_fingerprint"] = "ids of the pool"
    for name, what in facts.items():
        made, asked = (str(attributes.get(name, ""))[:12] for attributes in (stored, identity))
        if made != asked:
            lines.append(f"{what}: contents {made or 'none'} in {folder.name}, {asked or 'none'} asked for")
    if lines:
        lines.append(f"{folder} should have been made of the same tree and samples; use restart=True to replace it")
    return lines


def _chunk_rows_for(source: ClusterInput, n_tasks: int) -> int:
    """Return the rows of a chunk of labels: few files, as each adds latency, but enough tasks to write them."""
    n_units = -(-source.n_total // source.chunk_rows)  # chunks consist of whole chunks of the samples
    n_together = min(-(-n_units // n_tasks), max(1, _MAX_CHUNK_ROWS // source.chunk_rows))
    return min(n_together * source.chunk_rows, source.n_total)


def _create(folder: Location, source: ClusterInput, n_levels: int, identity: dict[str, Any], chunk_rows: int) -> None:
    """Create the arrays, then the group with their identity: a store without it is started over."""
    kinds: list[tuple[str, str, dict[str, Any]]] = [(f"level_{t}", "i4", {}) for t in range(1, n_levels + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, dtype, attributes in [*kinds, (DISTANCE, "f4", {"units": "L2"})]:
        store.create_array(
            folder, name, shape=(source.n_total,), dtype=dtype, attributes=attributes, dims=(layout.SAMPLE,),
            chunks=(chunk_rows,),
        )  # fmt: skip
    store.create_group(folder, identity)


# -- the pass ----------------------------------------------------------------------------------------------------------


def _write_labels(label: LabelRows, paths: SharedArray, folder: str, squared: bool, part: Part) -> None:
    """Task: label the rows of a part, whole chunks, and write their rows of `paths` (n_clusters, n_levels)."""
    assignment, engine = label.fold(part)[0], worker_engine()
    of_rows = paths.get()[engine.host(assignment.labels)]
    columns = {f"level_{t}": np.ascontiguousarray(column) for t, column in enumerate(of_rows.T, 1)}
    # As in a subset: the square root of what a tree stores.
    distances = engine.host(assignment.distances).astype(np.float32)
    distances = distances if squared else np.sqrt(distances)
    # Written last, as it marks the other columns as complete.
    for name, values in {**columns, DISTANCE: distances}.items():
        array = open_array(location(folder) / name)
        for index in array.spec.chunks(part.start, part.stop):
            low, high = array.spec.chunk_range(index)
            array.write(low, values[low - part.start : high - part.start])


def _n_tasks(source: ClusterInput, arrays: TreeArrays, runner: Runner) -> float:
    """Return the number of tasks for which all samples are enough work."""
    flops = 2.0 * source.n_total * source.rows.n_features * arrays.n_clusters(1)
    least = min(_TASKS_PER_THREAD * runner.n_threads, flops / _LEAST_TASK_FLOPS)
    return max(runner.n_threads, flops / _TASK_FLOPS, least)


def _write(folder: Location, source: ClusterInput, arrays: TreeArrays, runner: Runner, squared: bool) -> None:
    """Label all rows, some tasks at a time, skipping chunks that an earlier run has written."""
    rows, centroids = runner.place(source.rows), np.require(arrays.read(1, "centroids"), np.float32, ["C", "W"])
    spherical = read_attributes(folder)["metric"] == "cosine"
    stage = assign_stage(runner.n_own(rows), *centroids.shape)
    cuts = np.append(np.arange(0, source.n_total, _chunk_rows(folder)), source.n_total)
    parts = runner.split(rows, len(centroids), cuts=cuts, stage=stage)
    n_rounds = _n_tasks(source, arrays, runner) / len(parts)
    done = 0
    emit("progress", stage="assign", done=done, total=rows.n_rows)
    with (
        geometry_of(rows, centroids, runner=runner, spherical=spherical) as geometry,
        runner.array_store.lent("centroids", centroids) as shared,
        runner.array_store.lent("paths", paths_of_centroids(arrays)) as paths,
    ):
        task = partial(_write_labels, LabelRows(shared, geometry), paths, str(folder), squared)
        pieces = itertools.chain.from_iterable(in_rounds(parts, cuts, n_rounds))
        while some := list(itertools.islice(pieces, _TASKS_PER_THREAD * runner.n_threads)):
            left = [part for part in some if not _is_written(folder, part, arrays.n_levels)]
            n_new = sum(part.stop - part.start for part in left)
            done += sum(part.stop - part.start for part in some)
            runner.map(task, left, stage="assign", report=partial(_tell, done - n_new, n_new, rows.n_rows))
            if not left:
                emit("progress", stage="assign", done=done, total=rows.n_rows)


def _tell(done: int, n_new: int, total: int, n_tasks: int, all_tasks: int) -> None:
    """Report progress: `done` of the tasks that label `n_new` rows, in addition to rows labeled earlier."""
    emit("progress", stage="assign", done=done + n_new * n_tasks // max(1, all_tasks), total=total)


def _is_written(folder: Location, part: Part, n_levels: int) -> bool:
    """Tell whether all chunks of a part were written earlier and are readable."""
    if not open_array(folder / DISTANCE).chunk_path(part.start // _chunk_rows(folder)).is_file():
        return False
    try:
        for name in (*(f"level_{t}" for t in range(1, n_levels + 1)), DISTANCE):
            open_array(folder / name).read(part.start, part.stop)
    except StoreError:
        return False
    return True


def _chunk_rows(folder: Location) -> int:
    return open_array(folder / DISTANCE).spec.chunk_rows
