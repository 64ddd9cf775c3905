"""Building a tree: Algorithm 1 of arXiv:2405.15613, level by level, resuming from whatever was finished before.

Level 1 clusters the samples, level t the centroids of level t - 1. Within a level, a first k-means is followed by m
resampling steps: take the r members closest to each centroid, run k-means on them alone, assign everything anew.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import device_cache, forget, host_cache
from hkm_dask.compute.cluster import runner_for
from hkm_dask.compute.cluster_runner import ClusterRunner
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.placement import discard, gather, on_workers
from hkm_dask.compute.runner import Runner
from hkm_dask.config import Config, Level
from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import METADATA_FILE, read_attributes, remove
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, Rows, ZarrRows
from hkm_dask.errors import InputError
from hkm_dask.events import emit
from hkm_dask.hierarchy import checkpoint
from hkm_dask.hierarchy.assign import Assigned, LevelRows, assign
from hkm_dask.hierarchy.members import group_by_label
from hkm_dask.hierarchy.resample import enough_members, resample_size
from hkm_dask.hierarchy.source import ClusterInput, label_chunk_rows, open_source
from hkm_dask.hierarchy.split import split_clusters
from hkm_dask.hierarchy.tree import open_hierarchy
from hkm_dask.kmeans.fit import Fit, Hooks, Settings, fit
from hkm_dask.kmeans.lloyd import LloydStep
from hkm_dask.kmeans.search.geometry import make_geometry

if TYPE_CHECKING:
    from distributed import Client


def build_hierarchy(
    pool: Any,
    tree: str | os.PathLike[str],
    config: Config,
    *,
    client: Client | None = None,
    memory_limit: int | str | None = None,
    restart: bool = False,
) -> xr.DataTree:
    """Cluster a pool into a hierarchy and store it.

    An interrupted run goes on where it was when it is started again with the same arguments; a finished one is opened.

    Parameters
    ----------
    pool : path, Pool or array of shape (n_samples, n_features)
        What `ingest` made, or rows in memory or in a Zarr array.
    tree : path
        Where to put it.
    config : Config
    client : distributed.Client, optional
        Where to run; by default distributed's current client, else threads of this process.
    memory_limit : int or str, optional
        Bytes this process may hold, when it runs on threads.
    restart : bool
        Begin again, whatever is there of the tree. A tree that is finished stays until the new one is; a restart that
        was interrupted goes on when it is started again without `restart`.

    Returns
    -------
    xarray.DataTree
        As `open_hierarchy` gives it.

    Raises
    ------
    InputError
        Settings that cannot be met, all at once, before anything is written; or a tree made otherwise lies there.
    StoreError
        The pool or the tree is damaged, or another process is building the same tree.
    ComputeError
        Workers fail again and again, or memory does not suffice.

    References
    ----------
    arXiv:2405.15613 §3.3, Algorithm 1

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> x = np.random.default_rng(0).normal(size=(300, 2)).astype("float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = hkm.Config(levels=[hkm.Level(n_clusters=30), hkm.Level(n_clusters=6)])
    ...     tree = hkm.build_hierarchy(x, f"{folder}/tree.zarr", config)
    ...     tree.hkm.n_clusters
    (30, 6)
    """
    source = open_source(pool, config)
    config.check(source.rows.n_rows)
    target = Path(tree).absolute()
    wip, work = layout.wip_path(target), target.with_name(f"{target.name}.work")
    with store.lock(target):
        store.settle(target)
        if restart:
            store.check_destination(target, overwrite=True)
            remove(wip)
        if not wip.exists():
            # Left by a run that was killed when all was done, or belonging to what is discarded.
            remove(work)
        # Beside a finished tree something unfinished can only be a restart that was interrupted.
        obstacles = _obstacles(wip, config, source) if wip.exists() else []
        goes_on = wip.exists() and not obstacles
        if target.exists() and not (restart or goes_on):
            return _finished(target, config, source)
        if obstacles:
            raise InputError(obstacles)
        with store.staged(target, overwrite=restart or goes_on) as folder:
            store.create_group(folder, _identity(config, source))
            with runner_for(client, memory_limit, work_dir=work) as runner:
                _Build(config, source, folder, runner, checkpoint.Checkpoints(work)).run()
            seconds = sum(_attributes(path)["seconds"] for path in folder.glob("level_*"))
            store.mark_complete(folder, {"seconds": round(seconds, 3)})
        remove(work)
        host_cache.clear()
        device_cache.clear()
    return open_hierarchy(target)


# -- what is there already --------------------------------------------------------------------------------------------


def _identity(config: Config, source: ClusterInput) -> dict[str, Any]:
    return {
        "format": layout.TREE_FORMAT,
        "format_version": layout.FORMAT_VERSION,
        "config": config.to_json(),
        "seed": config.seed,
        "metric": config.metric,
        "pool": source.path,
        "pool_fingerprint": source.fingerprint,
        "subset_fingerprint": source.subset,
        "software": f"hkm_dask {version('hkm-dask')}, numpy {np.__version__}, python {platform.python_version()}",
    }


def _attributes(folder: Path) -> dict[str, Any]:
    return read_attributes(folder) if (folder / METADATA_FILE).exists() else {}


def _differences(folder: Path, config: Config, source: ClusterInput) -> list[str]:
    attributes = _attributes(folder)
    lines = config.difference(Config.from_json(attributes["config"])) if "config" in attributes else []
    # A subset is known by what it holds, wherever its file lies now.
    lines = [line for line in lines if not line.startswith("subset: ")]
    for name, mine in [("pool", source.fingerprint), ("subset", source.subset)]:
        theirs = attributes.get(f"{name}_fingerprint", mine)
        if theirs != mine:
            lines.append(f"{name}: contents {theirs[:12] or 'none'} in the tree, {mine[:12] or 'none'} asked for")
    return lines


def _obstacles(wip: Path, config: Config, source: ClusterInput) -> list[str]:
    """Why what an interrupted run left cannot be gone on with."""
    attributes = _attributes(wip)
    if attributes and attributes.get("format") != layout.TREE_FORMAT:
        return [f"{wip} should be a tree of hkm_dask, it is something else; give another path"]
    found = attributes.get("format_version", layout.FORMAT_VERSION)
    if found != layout.FORMAT_VERSION:
        return [f"{wip}: format_version={found} should be {layout.FORMAT_VERSION} for this hkm_dask; use --restart"]
    lines = _differences(wip, config, source)
    return (
        [*lines, f"{wip} should have been begun with the same settings; use --restart to discard it"] if lines else []
    )


def _finished(target: Path, config: Config, source: ClusterInput) -> xr.DataTree:
    opened = open_hierarchy(target)
    lines = _differences(target, config, source)
    if lines:
        lines.append(f"{target} should have been made with the same settings; use --restart to replace it")
        raise InputError(lines)
    emit("resumed", what="already complete")
    return opened


# -- the levels -------------------------------------------------------------------------------------------------------


class _Build:
    """One run of Algorithm 1."""

    def __init__(
        self, config: Config, source: ClusterInput, folder: Path, runner: Runner, checkpoints: checkpoint.Checkpoints
    ) -> None:
        self.config, self.source, self.folder = config, source, folder
        self.runner, self.checkpoints = runner, checkpoints

    def run(self) -> None:
        """Build the levels that are not there yet."""
        begin = time.perf_counter()
        emit("run_started", levels=self._plan(), dashboard=self.runner.dashboard)
        for t, level in enumerate(self.config.levels, 1):
            if _attributes(self.folder / f"level_{t}").get(layout.COMPLETE):
                emit("resumed", what=f"level {t} was finished before")
                continue
            with self.runner.span(f"level-{t}"):
                self._build_level(t, level)
        emit("run_finished", seconds=time.perf_counter() - begin)

    def _plan(self) -> list[dict[str, Any]]:
        n, plan = self.source.rows.n_rows, []
        for level in self.config.levels:
            plan.append(
                {"n": n, "k": level.n_clusters, "d": self.source.rows.n_features, "m": level.n_resamples,
                 "r": resample_size(level, n), "max_iter": level.max_iter, "n_splits": level.n_splits}
            )  # fmt: skip
            n = level.n_centroids
        return plan

    def _build_level(self, t: int, level: Level) -> None:
        begin = time.perf_counter()
        rows = self._input(t, level)
        n = rows.rows.n_rows
        emit("level_started", level=t, n=n, k=level.n_centroids, m=level.n_resamples)
        run = uuid.uuid4().hex
        steps = self._cluster(t, level, rows, run)
        centroids = steps[-1].centroids
        folder = self.folder / f"level_{t}"
        remove(folder)
        self._create(t, rows, level.n_centroids, folder)
        before = steps[-2].centroids if len(steps) > 1 else None
        found = assign(rows, centroids, run=run, runner=self.runner, folder=folder, before=before)
        emit("assigned", level=t, step=level.n_resamples)
        if level.n_splits > 1:
            centroids, found = self._split(t, level, rows, centroids, folder)
        self._store(t, rows, centroids, found, [step.inertia for step in steps], folder)
        seconds = time.perf_counter() - begin
        store.mark_complete(folder, {"level": t, "seconds": round(seconds, 3), "missing": -1})
        forget(rows.rows.key)
        emit("level_finished", level=t, seconds=seconds)

    def _input(self, t: int, level: Level) -> LevelRows:
        spherical = self.config.metric == "cosine"
        rows: Rows
        if t == 1:
            source = self.source
            rows = on_workers(source.rows, self.runner)
            geometry = make_geometry(
                rows, self.runner, n_clusters=level.n_clusters,
                mean=source.mean, max_abs=source.max_abs, spherical=spherical,
                precision=self.config.dtype,
            )  # fmt: skip
            return LevelRows(rows, source.n_total, geometry, source.chunk_rows)
        below = self.folder / f"level_{t - 1}"
        sizes = open_array(below / "sizes").read(0, self.config.levels[t - 2].n_centroids)
        rows = ZarrRows(below, "centroids")
        chunk_rows = label_chunk_rows(rows)
        if not isinstance(self.runner, ClusterRunner) and rows.n_rows * rows.row_bytes < self.runner.memory_budget // 4:
            rows = ArrayRows(rows.read(0, rows.n_rows), rows.label)
        n_total = rows.n_rows
        if (sizes == 0).any():
            rows = on_workers(SubsetRows(rows, np.flatnonzero(sizes)), self.runner)
        geometry = make_geometry(
            rows, self.runner, n_clusters=level.n_clusters, spherical=spherical, precision=self.config.dtype
        )
        return LevelRows(rows, n_total, geometry, chunk_rows)

    def _cluster(self, t: int, level: Level, rows: LevelRows, run: str) -> list[Fit]:
        """The steps of a level, the first k-means and the resamplings."""
        steps = self.checkpoints.finished(t)
        if steps:
            emit("resumed", what=f"level {t} goes on after step {len(steps) - 1} of {level.n_resamples}")
        for step in range(len(steps), level.n_resamples + 1):
            if step == 0:
                steps.append(self._step(t, step, level, rows, rows.rows))
                continue
            chosen = self._resample(t, level, rows, steps, run)
            part = gather(rows.rows, chosen, self.runner)
            steps.append(self._step(t, step, level, rows, part))
            forget(part.key)
            discard(part)
        return steps

    def _resample(self, t: int, level: Level, rows: LevelRows, steps: list[Fit], run: str) -> NDArray[np.int64]:
        """Rows the next step clusters: up to r of every cluster of the last one."""
        step, r = len(steps), resample_size(level, rows.rows.n_rows)
        random = level.resample_strategy == "random"
        key = stream_key(self.config.seed, t, step, "resample") if random else None
        centroids, before = steps[-1].centroids, steps[-2].centroids if step > 1 else None
        found = assign(rows, centroids, run=run, runner=self.runner, r=r, random_key=key, before=before)
        emit("assigned", level=t, step=step - 1)
        enough = enough_members(found.counts, r, level.n_clusters)
        if enough > r:
            found = assign(rows, centroids, run=run, runner=self.runner, r=enough, random_key=key, before=centroids)
        assert found.chosen is not None
        return found.chosen.all_rows()

    def _step(self, t: int, step: int, level: Level, rows: LevelRows, part: Rows) -> Fit:
        emit("step_started", level=t, step=step, n=part.n_rows, k=level.n_clusters, max_iter=level.max_iter)
        settings = Settings(
            level.n_clusters, level.init, level.max_iter, level.tol, stream_key(self.config.seed, t, step)
        )

        def seeding(n_centers: int, target: int) -> None:
            emit("seeding", level=t, step=step, n_centers=n_centers, target=target)

        def iteration(i: int, moved: LloydStep) -> None:
            emit("iteration", level=t, step=step, iteration=i, inertia=moved.inertia, max_iter=level.max_iter)
            self.checkpoints.iteration(t, step, moved)

        done = fit(
            part, settings, geometry=rows.geometry, runner=self.runner, hooks=Hooks(seeding, iteration),
            progress=self.checkpoints.interrupted(t, step),
        )  # fmt: skip
        self.checkpoints.finish(t, step, done)
        if done.n_unused:
            emit(
                "warning",
                message=f"level {t}: only {level.n_clusters - done.n_unused} distinct rows for "
                f"n_clusters={level.n_clusters}; {done.n_unused} clusters stay unused",
            )
        emit(
            "step_finished", level=t, step=step, inertia=float(done.inertia[-1]), n_iter=len(done.inertia),
            seconds=done.seconds,
        )  # fmt: skip
        return done

    def _split(
        self, t: int, level: Level, rows: LevelRows, centroids: NDArray[np.float32], folder: Path
    ) -> tuple[NDArray[np.float32], Assigned]:
        """Split the clusters whose labels were just written, and write those of the parts instead."""
        index = rows.rows.index if isinstance(rows.rows, SubsetRows) else None
        labels, distances = (open_array(folder / name).read(0, rows.n_total) for name in ("labels", "distances"))
        where = slice(None) if index is None else index
        indptr, members = group_by_label(labels[where], distances[where], len(centroids))
        key = stream_key(self.config.seed, t, "split")
        settings = Settings(level.n_splits, level.init, level.max_iter, level.tol, key)

        def report(done: int, total: int) -> None:
            emit("splitting", level=t, done=done, total=total)

        parts = split_clusters(
            rows.rows, indptr, members, settings, geometry=rows.geometry, runner=self.runner, report=report
        )
        labels[where], distances[where] = parts.labels, parts.distances
        for name, values in (("labels", labels), ("distances", distances)):
            open_array(folder / name).write(0, values)
        return parts.centroids, Assigned(np.bincount(parts.labels, minlength=level.n_centroids), 0)

    # -- the arrays of a level -----------------------------------------------------------------------------------------

    def _create(self, t: int, rows: LevelRows, k: int, folder: Path) -> None:
        below = layout.SAMPLE if t == 1 else f"cluster_{t - 1}"
        for name, dtype, fill in [("labels", "i4", -1), ("distances", "f4", np.nan)]:
            store.create_array(
                folder, name, shape=(rows.n_total,), dtype=dtype, chunks=(rows.chunk_rows,), dims=(below,),
                fill_value=fill, attributes={"missing": -1} if name == "labels" else {"units": "squared L2"},
            )  # fmt: skip

    def _store(
        self, t: int, rows: LevelRows, centroids: NDArray[np.float32], found: Assigned,
        inertia: list[NDArray[np.float64]], folder: Path,
    ) -> None:  # fmt: skip
        labels, distances = (open_array(folder / name).read(0, rows.n_total) for name in ("labels", "distances"))
        indptr, members = group_by_label(labels, distances, len(centroids))
        leaves = found.counts
        if t > 1:
            below = open_array(self.folder / f"level_{t - 1}" / "leaf_sizes").read(0, rows.n_total)
            prefix = np.concatenate([[0], np.cumsum(below[members])])
            leaves = prefix[indptr[1:]] - prefix[indptr[:-1]]
        history = np.full((len(inertia), max(map(len, inertia))), np.nan)
        for step, values in enumerate(inertia):
            history[step, : len(values)] = values
        cluster = f"cluster_{t}"
        arrays: list[tuple[str, NDArray[Any], tuple[str, ...]]] = [
            ("centroids", centroids, (cluster, layout.FEATURE)),
            ("sizes", found.counts.astype(np.int64), (cluster,)),
            ("leaf_sizes", leaves.astype(np.int64), (cluster,)),
            (f"members_{t}", members, (f"member_{t}",)),
            (f"indptr_{t}", indptr, (f"{cluster}_bound",)),
            ("inertia", history, ("step", "iteration")),
        ]
        for name, values, dims in arrays:
            self._put(folder, name, values, dims)

    @staticmethod
    def _put(folder: Path, name: str, values: NDArray[Any], dims: tuple[str, ...]) -> None:
        row_bytes = values[:1].nbytes or values.itemsize
        chunk = min(max(len(values), 1), layout.chunk_rows(max(len(values), 1), row_bytes))
        store.create_array(
            folder, name, shape=values.shape, dtype=values.dtype, chunks=(chunk, *values.shape[1:]), dims=dims
        )
        open_array(folder / name).write(0, values)


def config_of(tree: xr.DataTree) -> Config:
    """The configuration a tree was built with.

    Parameters
    ----------
    tree : DataTree
        From `open_hierarchy`.

    Returns
    -------
    Config
    """
    return Config.from_json(tree.attrs["config"])
