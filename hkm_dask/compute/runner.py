"""Runner of tasks on threads of this process; `cluster_runner` has the one for the workers of a Dask cluster.

A `Runner` has two main methods, `map` and `map_reduce`, and behaves the same everywhere. Tasks are few, one per thread
of every worker; each folds many blocks into one partial result, and a shallow tree combines these.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hkm_dask.compute import memory
from hkm_dask.compute.allocator import reuse_freed_memory
from hkm_dask.compute.backend import device_budget, on_host, worker_device
from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.partition import Part, split_parts
from hkm_dask.compute.range_memory import ranges_on_device
from hkm_dask.compute.shared_arrays import SharedArrayStore, limit_recent
from hkm_dask.compute.staging import (
    RESIDENT_SHARE,
    device_row_bytes,
    make_room,
    memory_of_staging,
    ran_out,
    staging_blocks,
)
from hkm_dask.compute.threads import single_threaded_blas
from hkm_dask.data.objects import Location
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import Rows
from hkm_dask.errors import ComputeError, StoreError

if TYPE_CHECKING:
    from distributed import Client

#: Floating-point operations of a thread in the time that starting a round of tasks on threads takes (about 2 ms).
_HAND_OVER_FLOPS = 4e7
#: Floating-point operations of a thread in the time that Dask needs for a round of tasks on processes (about 60 ms).
_ROUND_TRIP_FLOPS = 2e9
#: If a pass takes as long as this many rounds of tasks, running all passes in one task saves little.
_ONE_HOST_ROUNDS = 32
#: Most bytes of rows for which a computation may run as one task.
_ONE_TASK_BYTES = 256 << 20
#: Bytes of rows that one task clusters on a device, a small share of its memory: passes need several times as much.
_DEVICE_BATCH_BYTES, _BATCHES_ON_A_DEVICE = 512 << 20, 16
#: Most cores that ``HKM_PROCESSORS`` may name.
MAX_PROCESSORS = 4096


#: Gets the amount of work done so far, and the total.
Report = Callable[[int, int], None]


def identity(value: Any) -> Any:
    """Return `value`: the default `finish` of `map_reduce`."""
    return value


def n_processors() -> int:
    """Return the cores available to this process by its affinity, or ``HKM_PROCESSORS``; see `device`.

    Raises ComputeError if the variable is not an integer from 1 to `MAX_PROCESSORS`.
    """
    text = os.environ.get("HKM_PROCESSORS")
    if text is None:
        return len(os.sched_getaffinity(0))
    n = int(text) if text.isdecimal() and len(text) < 20 else 0
    if not 1 <= n <= MAX_PROCESSORS:
        rule = f"be an integer from 1 to {MAX_PROCESSORS}"
        raise ComputeError(f"HKM_PROCESSORS={text!r:.80} should {rule}; unset it to use all cores")
    return n


def run_task(task: Callable[[Any], Any], item: Any, memory_budget: int | None = None) -> Any:
    """Run a task in this process with caches within `memory_budget`; runs it again if device memory ran out.

    Raises ComputeError if it ran out and there was nothing left to drop.
    """
    if memory_budget is not None:
        limit_recent(memory_budget)
    reuse_freed_memory()
    with single_threaded_blas():
        while True:
            try:
                return task(item)
            except Exception as error:
                # Repeating a task is safe: what it caches on the device can be lost.
                if not ran_out(error):
                    raise
                if not make_room():
                    raise ComputeError(
                        f"out of device memory ({error}); free some, use a larger device, or lower n_clusters"
                    ) from error


class _Room:
    """Memory shared by tasks of this process, which wait for it; one task may always run."""

    def __init__(self) -> None:
        self._changed, self._taken = threading.Condition(), 0

    @contextmanager
    def taken(self, n_bytes: int, budget: int) -> Iterator[int]:
        """Wait until `n_bytes` of a budget are free; yields the bytes then taken by all tasks."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + n_bytes <= budget)
            self._taken += n_bytes
            taken = self._taken
        try:
            yield taken
        finally:
            with self._changed:
                self._taken -= n_bytes
                self._changed.notify_all()


_room = _Room()


@dataclass(frozen=True)
class InTurn:
    """Task: run another task once there is room for what it `takes` in `budget`, dropping cached rows if needed."""

    task: Callable[[Any], Any]
    takes: memory.StageBytes
    budget: int

    def __call__(self, item: Any) -> Any:
        """Wait, and run the task."""
        left = self.budget - self.takes.process
        with _room.taken(self.takes.task, left) as taken:
            host_cache.shrink(None, max(0, left - taken))
            return self.task(item)


class Runner:
    """Runs tasks in this process, on Dask's threaded scheduler.

    `n_threads` is by default the number of available cores, and `memory_limit` (bytes) 60 % of the machine's memory.
    Data that must not be held in memory is put in `work_dir`; a temporary folder is made when needed.
    """

    client: Client | None = None
    #: URLs of the Dask dashboard, and of its page about runs.
    dashboard: str | None = None
    page: str | None = None
    n_workers = 1
    #: Whether tasks run in this process, and so can use its memory without files.
    in_process = True

    def __init__(
        self, n_threads: int | None = None, memory_limit: int | None = None, work_dir: str | Path | None = None
    ) -> None:
        #: Threads of all workers together; on a device, tasks run one at a time.
        self.n_threads = n_threads or (1 if worker_device() == "cuda" else n_processors())
        #: Bytes that a worker may keep on its GPU; None on CPUs.
        self.device_budget = device_budget() if worker_device() == "cuda" else None
        #: Blocks of a worker in pinned memory, in transit to its GPU.
        self.n_staged = staging_blocks() if worker_device() == "cuda" else 0
        #: Bytes that a worker may use above its idle size.
        self.memory_budget = memory.budget_within(memory_limit or int(memory.machine_memory() * 0.6))
        self._work_dir = Path(work_dir) if work_dir is not None else None
        self._owned: list[Location] = []
        self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="hkm")
        self._token = uuid.uuid4().hex[:8]
        self._counter = itertools.count()

    # -- setup and cleanup ---------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Stop the threads and remove the temporary folder."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for folder in self._owned:
            if isinstance(folder, Path):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with suppress(StoreError):  # it must not hide an earlier error
                folder.remove_tree()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- storage and capabilities --------------------------------------------------------------------------------------
    @property
    def work_dir(self) -> Path:
        """Folder for intermediate files that all workers can access."""
        if self._work_dir is None:
            import dask

            self._work_dir = Path(tempfile.mkdtemp(prefix="hkm-", dir=dask.config.get("temporary-directory", None)))
            self._owned.append(self._work_dir)
        return self._work_dir

    @property
    def array_store(self) -> SharedArrayStore:
        """Store for arrays that many tasks read."""
        return SharedArrayStore()

    def keeps_in_files(self, n_bytes: int) -> bool:
        """Tell whether arrays passed between tasks, of this many bytes in all, are put in files."""
        return not self.in_process or n_bytes > min(memory.MAX_BLOCK_BYTES, self.memory_budget // 8)

    def scratch_store(self, n_bytes: int) -> SharedArrayStore:
        """Return the store for arrays passed between tasks: in files, unless `n_bytes` (of all of them) are few."""
        if not self.keeps_in_files(n_bytes):
            return self.array_store
        self.work_dir.mkdir(parents=True, exist_ok=True)
        return SharedArrayStore(str(self.work_dir.resolve()))

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Group the tasks of a context under `name` in the dashboard."""
        return nullcontext()

    def place(self, rows: Rows) -> Rows:
        """Put rows in this process's memory where all workers can read them; returns rows that are cheap to send."""
        return rows

    def fits_in_memory(self, n_bytes: int, beside: memory.StageBytes | None = None) -> bool:
        """Tell whether this process may hold `n_bytes` for its tasks to read, `beside` the memory of a stage."""
        left = self.memory_budget - host_cache.held - (0 if beside is None else beside.total())
        return self.in_process and n_bytes <= min(left, self.memory_budget // 4 - host_cache.held)

    def gathers_on_devices(self, some: SubsetRows, beside: memory.StageBytes | None = None) -> bool:
        """Tell whether workers' devices can hold a table and copies of some of its rows, to be gathered there.

        Row numbers need host memory of the workers, `beside` that of a stage.
        """
        if self.device_budget is None:
            return False
        n_device_bytes = (some.base.n_rows + some.n_rows) * device_row_bytes(some)
        n_host_bytes = self.input_bytes(some) + host_cache.held + (0 if beside is None else beside.total())
        fits = n_device_bytes <= RESIDENT_SHARE * self.device_budget * self.n_workers
        return fits and n_host_bytes <= self.memory_budget

    @property
    def scheduler(self) -> dict[str, Any]:
        """Return keyword arguments with which Dask computes collections on this runner's threads or workers."""
        return {"scheduler": self.client or "threads", "num_workers": self.n_threads}

    def prepare(self, begin: Callable[[], None]) -> None:
        """Start a preparation on every worker before its rows are read; nothing waits for it, and it may fail."""
        if self.device_budget is not None:
            begin()

    def least_ranges(self, n_clusters: int, n_features: int) -> int:
        """Return the number of ranges of clusters for which workers' devices can hold one; 1 without devices."""
        return 1 if self.device_budget is None else ranges_on_device(n_clusters, n_features, self.device_budget)

    def make_room_for(self, stage: memory.StageBytes) -> None:
        """Drop cached rows that leave too little memory for a stage that this process runs by itself."""
        host_cache.shrink(None, max(0, self.memory_budget - host_cache.held - stage.total()))

    def fits_one_task(self, flops: float, n_bytes: int, stage: memory.StageBytes) -> bool:
        """Tell whether a computation is better run as one task on a worker than in rounds of tasks.

        One of its passes takes `flops`; the worker would hold `n_bytes` of rows, and the memory of the stage. All
        threads together are faster but cost a round of tasks per pass; the threads of one host do not.
        """
        n_others = self.n_threads - self.n_threads_alone
        n_rounds = min(_ONE_HOST_ROUNDS, self.n_threads / n_others if n_others else _ONE_HOST_ROUNDS)
        is_faster = not self.in_process and flops < n_rounds * self.n_threads_alone * _ROUND_TRIP_FLOPS
        budget = self.memory_budget
        return is_faster and n_bytes < min(_ONE_TASK_BYTES, budget // 4) and n_bytes + stage.total() <= budget

    @contextmanager
    def on_processors(self) -> Iterator[Runner]:
        """Yield a runner for CPU work: this one, or threads of this process if the workers have GPUs."""
        if self.device_budget is None:
            yield self
            return
        with on_host(), Runner(n_threads=n_processors()) as runner:
            yield runner

    # -- tasks ---------------------------------------------------------------------------------------------------------
    @property
    def threads_per_worker(self) -> int:
        """Number of threads of the worker that has the most."""
        return max(1, self.n_threads // self.n_workers)

    @property
    def n_threads_alone(self) -> int:
        """Number of threads that a task may use when no other task is running."""
        return self.threads_per_worker

    def split(
        self, rows: Rows, n_clusters: int, *, cuts: np.ndarray | None = None, stage: memory.StageBytes | None = None
    ) -> list[Part]:
        """Cut rows into as many parts as a pass over `n_clusters` centroids is worth, and memory allows.

        `stage` is the memory of the pass, by default that of a Lloyd iteration; see `memory.plan_tasks` and
        `partition.split_parts`. Raises ComputeError if not even one task fits.
        """
        if stage is None:
            stage = memory.lloyd_stage(self.n_own(rows), n_clusters, rows.n_features)
        plan = self.plan(rows, stage)
        if plan is None:
            inputs = self.input_bytes(rows) + host_cache.held
            memory.check_fits({f"n_clusters={n_clusters}": stage}, self.memory_budget, inputs=inputs)
            raise AssertionError("a stage that fits has a plan")
        n_parts = self.n_parts(2.0 * rows.n_rows * n_clusters * rows.n_features, plan.n_tasks)
        return split_parts(
            rows, n_parts, block_bytes=plan.block_bytes, budget=plan.resident_bytes, cuts=cuts,
            ends=self._part_ends(n_parts), n_own=self.n_own(rows),
        )  # fmt: skip

    def plan(self, rows: Rows, stage: memory.StageBytes) -> memory.TaskPlan | None:
        """Plan how a stage over some rows runs; None if not even one task fits."""
        least_block, n_blocks, held = self.memory_of_blocks(rows)
        return memory.plan_tasks(
            stage, self.memory_budget - held - host_cache.held, self.threads_per_worker, least_block=least_block,
            n_blocks=n_blocks, device_budget=self.device_budget, row_bytes=rows.row_bytes,
        )  # fmt: skip

    @property
    def n_cuts(self) -> int:
        """How often the shares by which `split` cuts have changed; parts cut earlier still give the same bits."""
        return 0

    def _part_ends(self, n_parts: int) -> np.ndarray | None:
        """Return the ends of parts as shares of the rows; None if parts have equal size."""
        return None

    def input_bytes(self, rows: Rows) -> int:
        """Return the bytes of rows with one task and nothing resident: their own, and their smallest blocks."""
        least_block, n_blocks, held = self.memory_of_blocks(rows)
        return held + n_blocks * max(least_block, memory.LEAST_BLOCK)

    def memory_of_blocks(self, rows: Rows) -> tuple[int, int, int]:
        """Return the bytes of the smallest block, the blocks in flight per task, and the bytes held by the rows."""
        least_block, n_blocks, held = memory_of_staging(rows, self.n_staged)
        return least_block, n_blocks, held if self.in_process else 0

    def n_own(self, rows: Rows) -> int:
        """Return the number of rows of one worker."""
        return -(-rows.n_rows // self.n_workers)

    def n_parts(self, flops: float, n_at_once: int | None = None) -> int:
        """Return the number of tasks that a pass of `flops` is worth, at most `n_at_once` on each worker."""
        n_tasks = self._n_tasks(n_at_once or self.threads_per_worker)
        task_flops = _HAND_OVER_FLOPS if self.in_process else _ROUND_TRIP_FLOPS
        return int(max(1, min(n_tasks, flops / task_flops)))

    def _n_tasks(self, most: int) -> int:
        """Return the number of tasks that run at once, at most `most` on each worker."""
        return self.n_workers * min(self.threads_per_worker, most)

    def map(
        self, task: Callable[[Any], Any], items: Sequence[Any], *, stage: str,
        takes: memory.StageBytes | None = None, report: Report | None = None,
    ) -> list[Any]:  # fmt: skip
        """Run `task`, which must be picklable, on every item; results are in the order of the items.

        The dashboard groups tasks by `stage`, an alphabetic name; for one of many passes, a hyphen and a number follow,
        as in ``lloyd-iteration3``. If `takes` is given, only as many tasks of a worker run at once as its budget
        allows. `report` gets the number of finished tasks, and the total.
        """
        if takes is not None:
            task = InTurn(task, takes, self.memory_budget - host_cache.held)
        if report is not None:
            task = _counted(task, report, len(items))
        if len(items) == 1:
            return [run_task(task, items[0], self.memory_budget)]
        from dask import threaded

        name = self._name(stage)
        graph = {(name, i): (partial(run_task, task, item, self.memory_budget),) for i, item in enumerate(items)}
        return list(threaded.get(graph, [(name, i) for i in range(len(items))], pool=self._pool))

    def map_reduce(
        self,
        task: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        combine: Callable[[Any, Any], Any],
        finish: Callable[[Any], Any] = identity,
        stage: str,
    ) -> Any:
        """Run `task` on every item, `combine` the results in order, and return the result of `finish`.

        All must be picklable; `combine` takes two results, must not modify them, and should be associative.
        """
        return run_task(finish, reduce(combine, self.map(task, items, stage=stage)))

    def call(self, task: Callable[..., Any], item: Any, *, stage: str, hear: Callable[..., None] | None = None) -> Any:
        """Run one task on some worker.

        If `hear` is given, the task gets a second argument `tell`, and `hear` is called with the plain values it
        passes.
        """
        return self.map(task if hear is None else partial(task, tell=hear), [item], stage=stage)[0]

    @property
    def batch_bytes(self) -> int:
        """Return the bytes of rows that one task clusters by itself."""
        if self.device_budget is not None:
            return min(_DEVICE_BATCH_BYTES, self.device_budget // _BATCHES_ON_A_DEVICE)
        return memory.BATCH_BYTES

    def n_batches(self, n_bytes: int) -> int:
        """Return the number of tasks for this many bytes of rows, if each clusters its rows by itself."""
        # Several per core, to balance the load; a device is better off with few.
        n_least = self.n_threads * (4 if self.device_budget is None else 1)
        return max(n_least, -(-n_bytes // max(self.batch_bytes, 1)))

    def _name(self, stage: str) -> str:
        return f"hkm-{stage}-{next(self._counter)}-{self._token}"


def _counted(task: Callable[[Any], Any], report: Report, n_tasks: int) -> Callable[[Any], Any]:
    """Wrap a task of this process so that it reports how many are done, one report at a time."""
    done, lock = itertools.count(1), threading.Lock()

    def counted(item: Any) -> Any:
        result = task(item)
        with lock:
            report(next(done), n_tasks)
        return result

    return counted


def runner_in_task(memory_budget: int, n_threads: int = 1) -> Runner:
    """Return a runner for a task that does a whole computation within its worker's budget, on `n_threads` threads.

    >>> with runner_in_task(64 << 20) as runner:
    ...     runner.n_threads, runner.memory_budget >> 20
    (1, 64)
    """
    runner = Runner(n_threads=min(n_threads, n_processors()))
    runner.memory_budget = memory_budget
    return runner
