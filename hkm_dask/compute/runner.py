"""Runs the tasks of a computation on threads of this process; see `cluster_runner` for the workers of a Dask cluster.

A `Runner` offers two things, `map` and `map_reduce`, and behaves the same everywhere. Tasks are few, one per thread of
every worker; each folds many blocks into one partial result, and a short tree combines the partials.
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

#: Floating-point operations one thread does while a round of tasks is handed out to threads (about 2 ms).
_HAND_OVER_FLOPS = 4e7
#: Floating-point operations one thread does while Dask hands out a round of tasks to processes (about 60 ms).
_ROUND_TRIP_FLOPS = 2e9
#: Rounds of tasks that a pass takes the time of, beyond which what one task for all passes saves of it is little.
_ONE_HOST_ROUNDS = 32
#: Bytes of rows beyond which a computation is never squeezed into one task.
_ONE_TASK_BYTES = 256 << 20
#: Bytes of rows one task clusters on a device, of which it takes a small share: passes need several times as much.
_DEVICE_BATCH_BYTES, _BATCHES_ON_A_DEVICE = 512 << 20, 16


#: Gets the number of pieces of work done so far, and of all.
Report = Callable[[int, int], None]


def identity(value: Any) -> Any:
    """Return `value`: the default `finish` of `map_reduce`."""
    return value


def n_processors() -> int:
    """Cores this process may use: those it is bound to, or as many as ``HKM_PROCESSORS`` says; see `device`.

    Raises ComputeError where the variable is no integer from 1 on.
    """
    text = os.environ.get("HKM_PROCESSORS")
    if text is None:
        return len(os.sched_getaffinity(0))
    if not text.isdigit() or not int(text):
        raise ComputeError(f"HKM_PROCESSORS={text!r} should be an integer >= 1; unset it to use all")
    return int(text)


def run_task(task: Callable[[Any], Any], item: Any, memory_budget: int | None = None) -> Any:
    """Run a task in this process, with its caches within `memory_budget`; run it again where device memory ran out.

    Raises ComputeError where it ran out and there was nothing to give up.
    """
    if memory_budget is not None:
        limit_recent(memory_budget)
    reuse_freed_memory()
    with single_threaded_blas():
        while True:
            try:
                return task(item)
            except Exception as error:
                # A task may be repeated: what it remembers on the device can be lost.
                if not ran_out(error):
                    raise
                if not make_room():
                    raise ComputeError(
                        f"device memory ran out ({error}); free some, use a larger device, or lower n_clusters"
                    ) from error


class _Room:
    """Memory that tasks of this process take in turn; one may always work."""

    def __init__(self) -> None:
        self._changed, self._taken = threading.Condition(), 0

    @contextmanager
    def taken(self, n_bytes: int, budget: int) -> Iterator[int]:
        """Wait for so many bytes of a budget; gives the bytes that all hold then."""
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
    """Task: another one, when there is room for what it `takes` in `budget`; what is remembered of rows gives way."""

    task: Callable[[Any], Any]
    takes: memory.StageBytes
    budget: int

    def __call__(self, item: Any) -> Any:
        """Wait, and run it."""
        left = self.budget - self.takes.process
        with _room.taken(self.takes.task, left) as taken:
            host_cache.shrink(None, max(0, left - taken))
            return self.task(item)


class Runner:
    """Runs tasks in this process, on Dask's threaded scheduler.

    It has `n_threads`, by default the cores this process may use, which may hold `memory_limit` bytes, by default 60 %
    of the machine's memory. What must not be held in memory is put in `work_dir`; a temporary one is made when needed.
    """

    client: Client | None = None
    #: Addresses of the Dask dashboard, and of the page about runs in it.
    dashboard: str | None = None
    page: str | None = None
    n_workers = 1
    #: Tasks run in this process: what lies in its memory they have without a file.
    in_process = True

    def __init__(
        self, n_threads: int | None = None, memory_limit: int | None = None, work_dir: str | Path | None = None
    ) -> None:
        #: Threads of all workers together; tasks on a device fill it, one at a time.
        self.n_threads = n_threads or (1 if worker_device() == "cuda" else n_processors())
        #: Bytes one worker may keep on its GPU, where workers compute on GPUs.
        self.device_budget = device_budget() if worker_device() == "cuda" else None
        #: Blocks one worker has in pinned memory on their way to its GPU.
        self.n_staged = staging_blocks() if worker_device() == "cuda" else 0
        #: Bytes one worker may hold above what it holds when idle.
        self.memory_budget = memory.budget_within(memory_limit or int(memory.machine_memory() * 0.6))
        self._work_dir = Path(work_dir) if work_dir is not None else None
        self._owned: list[Location] = []
        self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="hkm")
        self._token = uuid.uuid4().hex[:8]
        self._counter = itertools.count()

    # -- life ---------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Stop the threads and remove the temporary folder."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for folder in self._owned:
            if isinstance(folder, Path):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with suppress(StoreError):  # what led here must not be hidden
                folder.remove_tree()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- places -------------------------------------------------------------------------------------------------------
    @property
    def work_dir(self) -> Path:
        """Folder for intermediate files, seen by all workers."""
        if self._work_dir is None:
            import dask

            self._work_dir = Path(tempfile.mkdtemp(prefix="hkm-", dir=dask.config.get("temporary-directory", None)))
            self._owned.append(self._work_dir)
        return self._work_dir

    @property
    def array_store(self) -> SharedArrayStore:
        """Where arrays for many tasks are put."""
        return SharedArrayStore()

    def keeps_in_files(self, n_bytes: int) -> bool:
        """Tell whether arrays that tasks hand to other tasks, of so many bytes together, are put in files."""
        return not self.in_process or n_bytes > min(memory.MAX_BLOCK_BYTES, self.memory_budget // 8)

    def scratch_store(self, n_bytes: int) -> SharedArrayStore:
        """Where arrays are put that tasks hand to other tasks: in files, unless `n_bytes`, of them all, are few."""
        if not self.keeps_in_files(n_bytes):
            return self.array_store
        self.work_dir.mkdir(parents=True, exist_ok=True)
        return SharedArrayStore(str(self.work_dir.resolve()))

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Group the tasks of a context under `name` in the dashboard."""
        return nullcontext()

    def place(self, rows: Rows) -> Rows:
        """Put rows of this process's memory where all workers can read them; return rows that are cheap to send."""
        return rows

    def fits_in_memory(self, n_bytes: int, beside: memory.StageBytes | None = None) -> bool:
        """Tell whether this process may hold so many bytes for its tasks to read, `beside` a stage if given."""
        left = self.memory_budget - host_cache.held - (0 if beside is None else beside.total())
        return self.in_process and n_bytes <= min(left, self.memory_budget // 4 - host_cache.held)

    def gathers_on_devices(self, some: SubsetRows, beside: memory.StageBytes | None = None) -> bool:
        """Tell whether the workers' devices keep all rows of a table and some of them besides, to be gathered there.

        The workers need host memory for the row numbers, `beside` what a stage takes.
        """
        if self.device_budget is None:
            return False
        n_device_bytes = (some.base.n_rows + some.n_rows) * device_row_bytes(some)
        n_host_bytes = self.input_bytes(some) + host_cache.held + (0 if beside is None else beside.total())
        fits = n_device_bytes <= RESIDENT_SHARE * self.device_budget * self.n_workers
        return fits and n_host_bytes <= self.memory_budget

    @property
    def scheduler(self) -> dict[str, Any]:
        """Where Dask computes collections, as its functions take it: on the threads of this runner, or its workers."""
        return {"scheduler": self.client or "threads", "num_workers": self.n_threads}

    def prepare(self, begin: Callable[[], None]) -> None:
        """Have what every worker begins before its rows are read begin; nothing waits for it, nor need it succeed."""
        if self.device_budget is not None:
            begin()

    def least_ranges(self, n_clusters: int, n_features: int) -> int:
        """Ranges into which clusters are shared out so that the workers' devices hold one; 1 where they have none."""
        return 1 if self.device_budget is None else ranges_on_device(n_clusters, n_features, self.device_budget)

    def make_room_for(self, stage: memory.StageBytes) -> None:
        """Forget about rows what leaves no room for a stage of which this process makes everything itself."""
        host_cache.shrink(None, max(0, self.memory_budget - host_cache.held - stage.total()))

    def fits_one_task(self, flops: float, n_bytes: int, stage: memory.StageBytes) -> bool:
        """Tell whether a computation is better sent to one worker than made in rounds of tasks.

        One of its passes takes so many `flops`; the worker would hold `n_bytes` of rows, and what the stage takes. All
        threads take a round of tasks a pass besides, those of one host do not.
        """
        n_others = self.n_threads - self.n_threads_alone
        n_rounds = min(_ONE_HOST_ROUNDS, self.n_threads / n_others if n_others else _ONE_HOST_ROUNDS)
        is_faster = not self.in_process and flops < n_rounds * self.n_threads_alone * _ROUND_TRIP_FLOPS
        budget = self.memory_budget
        return is_faster and n_bytes < min(_ONE_TASK_BYTES, budget // 4) and n_bytes + stage.total() <= budget

    @contextmanager
    def on_processors(self) -> Iterator[Runner]:
        """A runner for what is work for processors: this one, or threads of this process where workers have GPUs."""
        if self.device_budget is None:
            yield self
            return
        with on_host(), Runner(n_threads=n_processors()) as runner:
            yield runner

    # -- work ---------------------------------------------------------------------------------------------------------
    @property
    def threads_per_worker(self) -> int:
        """Threads of one worker, of that which has the most."""
        return max(1, self.n_threads // self.n_workers)

    @property
    def n_threads_alone(self) -> int:
        """Threads that a task may use when it is the only one at work."""
        return self.threads_per_worker

    def split(
        self, rows: Rows, n_clusters: int, *, cuts: np.ndarray | None = None, stage: memory.StageBytes | None = None
    ) -> list[Part]:
        """Cut rows into the parts a pass over `n_clusters` centroids is worth, and memory allows.

        `stage` is what the pass takes, an iteration of Lloyd by default; see `memory.plan_tasks` and
        `partition.split_parts`. Raises ComputeError where not one task fits.
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
        """How a stage over some rows is run; None where not one task fits."""
        least_block, n_blocks, held = self.memory_of_blocks(rows)
        return memory.plan_tasks(
            stage, self.memory_budget - held - host_cache.held, self.threads_per_worker, least_block=least_block,
            n_blocks=n_blocks, device_budget=self.device_budget, row_bytes=rows.row_bytes,
        )  # fmt: skip

    @property
    def n_cuts(self) -> int:
        """How often the shares that `split` cuts by have changed; parts of before still give the same bits."""
        return 0

    def _part_ends(self, n_parts: int) -> np.ndarray | None:
        """Where parts end, as shares of the rows; None if they are alike."""
        return None

    def input_bytes(self, rows: Rows) -> int:
        """Bytes that rows take with one task at work and nothing resident: their own, and its smallest blocks."""
        least_block, n_blocks, held = self.memory_of_blocks(rows)
        return held + n_blocks * max(least_block, memory.LEAST_BLOCK)

    def memory_of_blocks(self, rows: Rows) -> tuple[int, int, int]:
        """Bytes of the least block of rows, how many a task has under way, and bytes that the rows themselves hold."""
        least_block, n_blocks, held = memory_of_staging(rows, self.n_staged)
        return least_block, n_blocks, held if self.in_process else 0

    def n_own(self, rows: Rows) -> int:
        """Count the rows that are one worker's."""
        return -(-rows.n_rows // self.n_workers)

    def n_parts(self, flops: float, n_at_once: int | None = None) -> int:
        """Count the tasks that a pass of so many `flops` is worth, `n_at_once` on each worker at most."""
        n_tasks = self._n_tasks(n_at_once or self.threads_per_worker)
        task_flops = _HAND_OVER_FLOPS if self.in_process else _ROUND_TRIP_FLOPS
        return int(max(1, min(n_tasks, flops / task_flops)))

    def _n_tasks(self, most: int) -> int:
        """Count the tasks that all workers do at once, `most` of them on each."""
        return self.n_workers * min(self.threads_per_worker, most)

    def map(
        self, task: Callable[[Any], Any], items: Sequence[Any], *, stage: str,
        takes: memory.StageBytes | None = None, report: Report | None = None,
    ) -> list[Any]:  # fmt: skip
        """Run `task`, which is picklable, on every item; results come in the order of the items.

        The dashboard groups the tasks under `stage`, a purely alphabetic name; that of one pass of many goes on with
        its number after a hyphen, as ``lloyd-iteration3`` does. Where it is told what they take, only as many of a
        worker's work at once as its budget has room for. `report` gets the number of tasks done so far, and of all.
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
        """Run `task` on every item, `combine` the results in order, and return what `finish` makes of the outcome.

        All are picklable; `combine` takes two results, must not change them, and should be associative.
        """
        return run_task(finish, reduce(combine, self.map(task, items, stage=stage)))

    def call(self, task: Callable[..., Any], item: Any, *, stage: str, hear: Callable[..., None] | None = None) -> Any:
        """Run one task on some worker.

        With `hear` the task gets a second argument, `tell`: `hear` is called with the plain values it is called with.
        """
        return self.map(task if hear is None else partial(task, tell=hear), [item], stage=stage)[0]

    @property
    def batch_bytes(self) -> int:
        """Bytes of rows that one task clusters by itself."""
        if self.device_budget is not None:
            return min(_DEVICE_BATCH_BYTES, self.device_budget // _BATCHES_ON_A_DEVICE)
        return memory.BATCH_BYTES

    def n_batches(self, n_bytes: int) -> int:
        """Tasks to make of so many bytes of rows, each of which a task clusters by itself."""
        # Several for every processor, or some of them would wait at the end; a device is better off with few.
        n_least = self.n_threads * (4 if self.device_budget is None else 1)
        return max(n_least, -(-n_bytes // max(self.batch_bytes, 1)))

    def _name(self, stage: str) -> str:
        return f"hkm-{stage}-{next(self._counter)}-{self._token}"


def _counted(task: Callable[[Any], Any], report: Report, n_tasks: int) -> Callable[[Any], Any]:
    """A task of this process that reports how many of them are done, one report at a time."""
    done, lock = itertools.count(1), threading.Lock()

    def counted(item: Any) -> Any:
        result = task(item)
        with lock:
            report(next(done), n_tasks)
        return result

    return counted


def runner_in_task(memory_budget: int, n_threads: int = 1) -> Runner:
    """Runner for a task that does a whole computation within the budget of its worker, on so many of its threads.

    >>> with runner_in_task(64 << 20) as runner:
    ...     runner.n_threads, runner.memory_budget >> 20
    (1, 64)
    """
    runner = Runner(n_threads=min(n_threads, n_processors()))
    runner.memory_budget = memory_budget
    return runner
