"""Building a tree level by level (Algorithm 1 of arXiv:2405.15613), resuming from whatever is already finished.

Level 1 clusters the samples, level t the centroids of level t - 1. Within a level, a k-means over all rows is followed
by m resampling steps: take the r members closest to each centroid, run k-means on these only, reassign all rows.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import uuid
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.block_cache import device_cache, forget, host_cache
from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.memory import check_fits
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedPieces
from hkm_dask.config import Config, Level
from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import METADATA_FILE, check_digest, read_attributes, read_complete, remove
from hkm_dask.data.objects import Location, ObjectPath, each, location
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, Rows, ZarrRows
from hkm_dask.errors import ComputeError, InputError, StoreError
from hkm_dask.events import emit
from hkm_dask.hierarchy import level_arrays
from hkm_dask.hierarchy.assign import LevelRows, assign
from hkm_dask.hierarchy.checkpoint import Checkpoints, StepHistory
from hkm_dask.hierarchy.level_plans import level_plans, level_stages, resample_size, shareable, with_ranges
from hkm_dask.hierarchy.source import ClusterInput, label_chunk_rows, n_clustered, open_source
from hkm_dask.hierarchy.split import split_clusters
from hkm_dask.hierarchy.step import ResamplingStep, Step, StepHooks
from hkm_dask.kmeans.fit import Fit, Settings
from hkm_dask.kmeans.outliers import far_rows_warning, narrow_rows_warning, rounded_rows_warning
from hkm_dask.kmeans.ranges import FitByRanges
from hkm_dask.kmeans.seeding.random_rows import INITS_BY_RANGES
from hkm_dask.search.geometry import make_geometry
from hkm_dask.search.worker import prepare
from hkm_dask.version import __version__

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client


def build_hierarchy(
    pool: Any,
    tree: str | os.PathLike[str],
    config: Config | None = None,
    *,
    client: Client | None = None,
    memory_limit: int | str | None = None,
    restart: bool = False,
) -> xr.DataTree:
    """Cluster a pool into a hierarchy and store it.

    An interrupted run is resumed by calling it again with the same arguments; a finished tree is opened.

    Parameters
    ----------
    pool : path, Pool or array of shape (n_samples, n_features)
        A pool made by `ingest`, or rows in memory or in a Zarr array.
    tree : path
        Path or URL of the new tree, such as ``s3://bucket/tree.zarr``.
    config : Config, optional
        By default `Config.advised` for this number of rows, like ``hkm cluster`` without numbers of clusters.
    client : distributed.Client, optional
        Where to run; by default distributed's current client, otherwise threads of this process.
    memory_limit : int or str, optional
        Memory in bytes that this process may use when it runs on threads.
    restart : bool
        Start over, ignoring existing results. A finished tree stays until the new one replaces it; an interrupted
        restart is resumed by calling again without `restart`.

    Returns
    -------
    xarray.DataTree
        The same as from `open_hierarchy`.

    Raises
    ------
    InputError
        If settings are impossible (all are reported at once, before anything is written), or the path holds a tree with
        other settings.
    StoreError
        If the pool or the tree is damaged, or another process is building the same tree.
    ComputeError
        If workers fail repeatedly, or memory is insufficient.

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
    if config is None:
        config = Config.advised(n_clustered(pool))
    path = write_hierarchy(pool, tree, config, client=client, memory_limit=memory_limit, restart=restart)
    # Imported here as it loads xarray, which takes longer than opening a tree, and is not needed to write one.
    from hkm_dask.hierarchy.tree.tree import open_hierarchy

    return open_hierarchy(path)


def write_hierarchy(
    pool: Any,
    tree: str | os.PathLike[str],
    config: Config,
    *,
    client: Client | None = None,
    memory_limit: int | str | None = None,
    restart: bool = False,
) -> Location:
    """Do what `build_hierarchy` does, but return the tree's location without opening it."""
    given: object = config  # checked at run time, whatever its annotation says
    if not isinstance(given, Config):
        kind = type(given).__name__
        raise InputError(f"config={kind} should be a Config; make one with Config.from_flags or Config.from_yaml")
    source = open_source(pool, config)
    config.check(source.rows.n_rows)
    target = location(tree, "tree").absolute()
    work = layout.work_path(target)
    obstacles = partial(_obstacles, target=target, config=config, source=source)
    with store.resumable(target, obstacles, restart=restart, work=work) as folder:
        if folder is not None:
            with runner_for(client, memory_limit, work_dir=work) as runner:
                # A subset is identified by its content, not by the location of its file.
                settings = config.model_copy(update={"subset": None}).to_json()
                run = hashlib.sha256(f"{settings}{source.fingerprint}{source.subset}".encode()).hexdigest()
                build = _Build(config, source, folder, runner, Checkpoints(work, run, runner=runner))
                runner.prepare(partial(prepare, source.rows.n_features, source.rows.dtype, config.dtype))
                try:
                    build.check()
                    store.create_group(folder, _identity(config, source))
                    build.run()
                finally:  # otherwise memory held by a failed run would count against the next one in this process
                    host_cache.clear()
                    device_cache.clear()
            levels: list[Location] = list(folder.glob("level_*"))
            seconds = sum(attributes["seconds"] for attributes in each(read_attributes, levels, folder))
            source.check_unchanged()
            store.mark_complete(folder, {"seconds": round(seconds, 3)})
    return target


# -- identity of a tree ------------------------------------------------------------------------------------------------


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
        "software": f"hkm_dask {__version__}, numpy {np.__version__}, python {platform.python_version()}",
    }


def _obstacles(folder: Location, target: Location, config: Config, source: ClusterInput) -> list[str]:
    """Describe how a tree, finished or not, differs from the requested one."""
    attributes = read_attributes(folder, missing_ok=True)
    finished = folder == target and not (isinstance(folder, ObjectPath) and not attributes.get(layout.COMPLETE))
    if finished:
        read_complete(folder, layout.TREE_FORMAT)
    if attributes and attributes.get("format") != layout.TREE_FORMAT:
        return [f"{folder} should be a tree of hkm_dask, but is something else; give another path"]
    made = attributes.get("format_version", layout.FORMAT_VERSION)
    if made != layout.FORMAT_VERSION:
        return [
            f"{folder}: format_version={made} should be {layout.FORMAT_VERSION} for this hkm_dask; use restart=True"
        ]
    lines = config.difference(Config.from_json(attributes["config"])) if "config" in attributes else []
    # A subset is identified by its content, not by the location of its file.
    lines = [line for line in lines if not line.startswith("subset: ")]
    for name, asked in [("pool", source.fingerprint), ("subset", source.subset)]:
        stored = attributes.get(f"{name}_fingerprint", asked)
        if stored != asked:
            lines.append(f"{name}: contents {stored[:12] or 'none'} in the tree, {asked[:12] or 'none'} asked for")
    if lines:
        begun, remedy = ("made", "replace") if finished else ("begun", "discard")
        lines.append(f"{folder} should have been {begun} with the same settings; use restart=True to {remedy} it")
    return lines


# -- levels ------------------------------------------------------------------------------------------------------------


@dataclass
class _Build:
    """One run of Algorithm 1."""

    config: Config
    source: ClusterInput
    folder: Location
    runner: Runner
    checkpoints: Checkpoints

    def check(self) -> None:
        """Reject levels for which no worker has enough memory, and samples over which level 1 cannot be built."""
        runner, inputs = self.runner, self.runner.input_bytes(self.source.rows)
        n_fit, n_labeled = self.source.rows.n_rows, self.source.labeled.n_rows
        budget = runner.memory_budget - inputs
        stages = level_stages(self._plans, runner, budget, n_labeled=n_labeled)
        if n_fit < n_labeled and 1 not in self._finished:
            emit("note", message=f"clustering a random sample of {n_fit:,} of {n_labeled:,} rows")
        try:
            check_fits(stages, runner.memory_budget, inputs=inputs)
        except ComputeError as error:
            could = [f"levels.{t}.init={INITS_BY_RANGES[0]}" for t in shareable(self._plans, runner, budget)]
            more = f", or {' and '.join(could)}, which divides the clusters among files" if could else ""
            raise ComputeError(f"{error}{more}") from None
        if 1 not in self._finished:
            samples, k = self._samples, self.config.levels[0].n_clusters  # making a geometry rejects too large values
            far = far_rows_warning(samples.rows, samples.geometry, n_clusters=k, runner=self.runner)
            rounded = rounded_rows_warning(samples.rows, samples.geometry)
            for warning in filter(None, (far, rounded, narrow_rows_warning(samples.geometry))):
                emit("warning", message=warning)

    def run(self) -> None:
        """Build the levels that are not complete."""
        begin = time.perf_counter()
        first, *others = map(dict, self._plans)
        if self.source.labeled is not self.source.rows:
            first["n_labeled"] = self.source.labeled.n_rows
        emit("run_started", levels=[first, *others], dashboard=self.runner.dashboard)
        for t, level in enumerate(self.config.levels, 1):
            if t in self._finished:
                emit("resumed", what=f"level {t} was already finished")
                continue
            with self.runner.span(f"level {t}"):
                self._build_level(t, level)
        emit("run_finished", seconds=time.perf_counter() - begin)

    @cached_property
    def _finished(self) -> set[int]:
        """Return the levels finished earlier and still intact; a level that is not is built again."""
        finished = set()
        for t in range(1, len(self.config.levels) + 1):
            folder = self.folder / f"level_{t}"
            try:
                if read_attributes(folder, missing_ok=True).get(layout.COMPLETE):
                    check_digest(folder)
                    files: list[Location] = list(folder.glob(f"*/{METADATA_FILE}"))
                    each(lambda file: open_array(file.parent).check(), files, folder)
                    finished.add(t)
            except StoreError as error:
                emit("warning", message=f"{str(error).rpartition('; ')[0]}; level {t} is built again")
        return finished

    @cached_property
    def _plans(self) -> list[dict[str, Any]]:
        runner, rows = self.runner, self.source.rows
        plans = level_plans(self.config, rows.n_rows, rows.n_features)
        return with_ranges(plans, runner, runner.memory_budget - runner.input_bytes(rows))

    def _build_level(self, t: int, level: Level) -> None:
        begin, run, folder = time.perf_counter(), uuid.uuid4().hex, self.folder / f"level_{t}"
        rows = self._samples if t == 1 else self._centroids_below(t)
        emit("level_started", level=t, n=rows.rows.n_rows, k=level.n_centroids, m=level.n_resamples)
        steps = self.checkpoints.finished(t)
        earlier = sum(steps.seconds)
        self._cluster(t, level, rows, steps, run)
        centroids = steps.centroids
        remove(folder)
        level_arrays.create_row_arrays(folder, t, rows.n_total, rows.chunk_rows)
        all_labeled = t > 1 or self.source.labeled is self.source.rows
        if all_labeled or level.n_splits > 1:
            assigned = assign(rows, centroids, run=run, runner=self.runner, folder=folder, before=steps.previous)
            emit("assigned", level=t, step=level.n_resamples)
        if level.n_splits > 1:
            self._split(t, level, rows, assigned.counts, folder)
        if not all_labeled:
            some = centroids if level.n_splits == 1 else level_arrays.read_whole(folder / "centroids")
            self._label_all(some, run, folder)
            emit("assigned", level=t, step=level.n_resamples + (level.n_splits > 1))
        level_arrays.write_cluster_arrays(
            folder, t, centroids if level.n_splits == 1 else None, steps.inertia, self.runner
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        self.source.check_unchanged()
        took = {"seconds": round(earlier + seconds, 3), "step_seconds": [round(one, 3) for one in steps.seconds]}
        store.mark_complete(folder, {"level": t, **took, "missing": -1})
        forget(rows.rows.key)
        emit("level_finished", level=t, seconds=seconds)

    def _label_all(self, centroids: NDArray[np.float32] | SharedPieces, run: str, folder: Location) -> None:
        """Label all samples at level 1, which was fit on some of them."""
        rows = self._level_1_rows(self.source.labeled)
        emit("note", message=f"assigning all {rows.rows.n_rows:,} rows to their nearest level-1 cluster")
        for name in ("labels", "distances"):
            remove(folder / name)
        level_arrays.create_row_arrays(folder, 1, rows.n_total, rows.chunk_rows)
        assign(rows, centroids, run=run, runner=self.runner, folder=folder)
        forget(rows.rows.key)

    @cached_property
    def _samples(self) -> LevelRows:
        """The input of level 1."""
        return self._level_1_rows(self.source.rows)

    def _level_1_rows(self, rows: Rows) -> LevelRows:
        source = self.source
        return self._level_rows(1, rows, source.n_total, source.chunk_rows, mean=source.mean, max_abs=source.max_abs)

    def _centroids_below(self, t: int) -> LevelRows:
        """Return the input of a higher level: the centroids of the level below that have members."""
        below = self.folder / f"level_{t - 1}"
        centroids: Rows = ZarrRows(below, "centroids")
        n_total, chunk_rows = centroids.n_rows, label_chunk_rows(centroids)
        if self.runner.fits_in_memory(n_total * centroids.row_bytes):
            centroids = ArrayRows(centroids.read(0, n_total), centroids.label)
            host_cache.hold("centroids below", n_total * centroids.row_bytes)
        sizes = level_arrays.read_whole(below / "sizes")
        if (sizes == 0).any():
            centroids = SubsetRows(centroids, np.flatnonzero(sizes))
        return self._level_rows(t, centroids, n_total, chunk_rows)

    def _level_rows(self, t: int, rows: Rows, n_total: int, chunk_rows: int, **statistics: Any) -> LevelRows:
        rows = self.runner.place(rows)
        geometry = make_geometry(
            rows, self.runner, n_clusters=self.config.levels[t - 1].n_clusters,
            spherical=self.config.metric == "cosine", precision=self.config.dtype, **statistics,
        )  # fmt: skip
        return LevelRows(rows, n_total, geometry, chunk_rows)

    def _cluster(self, t: int, level: Level, rows: LevelRows, steps: StepHistory, run: str) -> None:
        """Run the missing steps of a level: the first k-means and the resampling steps."""
        if len(steps):
            emit("resumed", what=f"level {t} continues after step {len(steps) - 1} of {level.n_resamples}")
        for number in range(len(steps), level.n_resamples + 1):
            with self.runner.span(f"step {number}"):
                key = stream_key(self.config.seed, t, number)
                # Only a step over all rows tells how many members later steps will have; a step over members does not.
                r = resample_size(level, rows.rows.n_rows) if number == 0 < level.n_resamples else 0
                step = Step(
                    rows, Settings(level.n_clusters, level.init, level.max_iter, level.tol, key, r),
                    self._plans[t - 1]["n_ranges"], self.checkpoints.interrupted(t, number),
                )  # fmt: skip
                if number:
                    step = self._resampling(step, t, number, level, steps, run)
                done = step.run(self.runner, self._hooks(t, number, level))
                self._finish_step(t, number, level, done, steps)

    def _resampling(
        self, step: Step, t: int, number: int, level: Level, steps: StepHistory, run: str
    ) -> ResamplingStep:  # fmt: skip
        """Return the same k-means, over members of the clusters of the last step."""
        random = level.resample_strategy == "random"
        return ResamplingStep(
            **vars(step), centroids=steps.centroids, before=steps.previous, passes=run,
            r=resample_size(level, step.level.rows.n_rows),
            random_key=stream_key(self.config.seed, t, number, "resample") if random else None,
        )  # fmt: skip

    def _hooks(self, t: int, number: int, level: Level) -> StepHooks:
        """Return the hooks of a step, which emit events and write checkpoints."""
        tell, k, max_iter = partial(emit, level=t, step=number), level.n_clusters, level.max_iter

        def iteration(i: int, inertia: float, n_members: int | None) -> None:
            # Resampling takes more of each cluster if there would be fewer members than clusters, see `enough_members`.
            members = {} if n_members is None else {"n_members": max(n_members, k)}
            tell("iteration", iteration=i, inertia=inertia, max_iter=max_iter, **members)

        return StepHooks(
            seeding=lambda phase, done, total: tell("seeding", phase=phase, done=done, total=total),
            iteration=iteration,
            moved=partial(self.checkpoints.iteration, t, number),
            assigned=lambda: emit("assigned", level=t, step=number - 1),
            started=lambda n_rows: tell("step_started", n=n_rows, k=k, max_iter=max_iter),
        )

    def _finish_step(self, t: int, number: int, level: Level, done: Fit | FitByRanges, steps: StepHistory) -> None:
        """Checkpoint the result of a step and record it."""
        centroids = self.checkpoints.finish(t, number, done)
        if isinstance(done.centroids, SharedPieces):
            done.centroids.delete()  # the checkpoint has its own copy
        if done.n_unused:
            rows_for = f"{level.n_clusters - done.n_unused} distinct rows for n_clusters={level.n_clusters}"
            emit("warning", message=f"level {t}: only {rows_for}; {done.n_unused} clusters remain unused")
        emit(
            "step_finished", level=t, step=number, inertia=float(done.inertia[-1]), n_iter=len(done.inertia),
            seconds=done.seconds,
        )  # fmt: skip
        steps.add(centroids, done.inertia, done.seconds)

    def _split(self, t: int, level: Level, rows: LevelRows, sizes: NDArray[np.int64], folder: Location) -> None:
        """Split the clusters whose labels were just written; write centroids, and the labels of the parts instead."""
        key = stream_key(self.config.seed, t, "split")
        split_clusters(
            rows.rows, folder, sizes, Settings(level.n_splits, level.init, level.max_iter, level.tol, key), level=t,
            geometry=rows.geometry, runner=self.runner, checkpoints=self.checkpoints,
            report=lambda done, total: emit("splitting", level=t, done=done, total=total),
        )  # fmt: skip
