"""Runs the tasks of a computation: on threads of this process, or on the workers of a Dask cluster.

A `Runner` offers two things, `map` and `map_reduce`, and behaves the same everywhere. Tasks are few, one per thread of
every worker; each folds many blocks into one partial result, and a short tree combines the partials.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hkm_dask.compute import memory
from hkm_dask.compute.backend import device_budget, worker_device
from hkm_dask.compute.blas import single_threaded_blas
from hkm_dask.compute.device import agree_on_device
from hkm_dask.compute.shared import Shelf
from hkm_dask.compute.staging import make_room, ran_out
from hkm_dask.errors import ComputeError, InputError

if TYPE_CHECKING:
    from distributed import Client, Future

_FAN_IN = 8
#: Seconds to wait for a first worker, or for one after all have died.
_WORKERS_COME_WITHIN = 30
#: Seconds after which the workers that tasks were given to are looked after, and how often all of them may die.
_LOOK_AFTER_WORKERS, _ATTEMPTS = 2, 4
#: Floating-point operations one thread does while Dask hands out a round of tasks to processes (about 60 ms).
_ROUND_TRIP_FLOPS = 2e9
#: The same for threads of this process (about 2 ms).
_HAND_OVER_FLOPS = 4e7


def _identity(value: Any) -> Any:
    return value


def _combine_all(combine: Callable[[Any, Any], Any], first: Any, *rest: Any) -> Any:
    for other in rest:
        first = combine(first, other)
    return first


def n_processors() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def _run(task: Callable[[Any], Any], item: Any) -> Any:
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


class Runner:
    """Runs tasks in this process, on Dask's threaded scheduler.

    Parameters
    ----------
    n_threads : int, optional
        Defaults to the cores this process may use.
    memory_limit : int, optional
        Bytes the process may hold, 60 % of the machine's memory by default.
    work_dir : path, optional
        Folder for what must not be held in memory; a temporary one is made when needed.

    Attributes
    ----------
    n_threads : int
        Threads of all workers together.
    memory_budget : int
        Bytes one worker may hold above what it holds when idle.
    device_budget : int or None
        Bytes one worker may keep on its GPU, where workers compute on GPUs.
    client : distributed.Client or None
    dashboard : str or None
        Address of the Dask dashboard.
    """

    client: Client | None = None
    dashboard: str | None = None
    n_workers = 1

    def __init__(
        self, n_threads: int | None = None, memory_limit: int | None = None, work_dir: str | Path | None = None
    ) -> None:
        # Tasks on a device fill it, one at a time.
        self.n_threads = n_threads or (1 if worker_device() == "cuda" else n_processors())
        self.device_budget = device_budget() if worker_device() == "cuda" else None
        self.memory_budget = budget_within(memory_limit or int(memory.machine_memory() * 0.6))
        self._work_dir = Path(work_dir) if work_dir is not None else None
        self._owned: list[Path] = []
        self._pool = ThreadPoolExecutor(self.n_threads, thread_name_prefix="hkm")
        self._token = uuid.uuid4().hex[:8]
        self._counter = itertools.count()

    # -- life ---------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Stop the threads and remove the temporary folder."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for folder in self._owned:
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- places -------------------------------------------------------------------------------------------------------
    @property
    def work_dir(self) -> Path:
        """Folder for intermediate files, seen by all workers."""
        if self._work_dir is None:
            self._work_dir = Path(tempfile.mkdtemp(prefix="hkm-"))
            self._owned.append(self._work_dir)
        return self._work_dir

    @property
    def shelf(self) -> Shelf:
        """Where arrays for many tasks are put."""
        return Shelf()

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Group the tasks of a context under `name` in the dashboard.

        Parameters
        ----------
        name : str
        """
        return nullcontext()

    # -- work ---------------------------------------------------------------------------------------------------------
    def n_parts(self, flops: float, n_clusters: int = 0, n_features: int = 0) -> int:
        """How many tasks a pass of `flops` operations is worth, and memory allows.

        Parameters
        ----------
        flops : float
            Operations of the whole pass.
        n_clusters, n_features : int
            Shape of the sums each task keeps.

        Returns
        -------
        int
            At least 1.
        """
        threads = self.n_threads // self.n_workers
        if n_clusters:
            threads = memory.threads_that_fit(self.memory_budget, threads, n_clusters, n_features)
        return int(max(1, min(threads * self.n_workers, flops / self._task_flops())))

    def _task_flops(self) -> float:
        return _HAND_OVER_FLOPS

    def map(self, task: Callable[[Any], Any], items: Sequence[Any], *, stage: str) -> list[Any]:
        """Run `task` on every item; results come in the order of the items.

        Parameters
        ----------
        task : callable
            Of one item; picklable.
        items : sequence
        stage : str
            Purely alphabetic name under which the dashboard groups the tasks.

        Returns
        -------
        list
        """
        from dask import threaded

        if len(items) == 1:
            return [_run(task, items[0])]
        name = self._name(stage)
        graph = {(name, i): (partial(_run, task, item),) for i, item in enumerate(items)}
        return list(threaded.get(graph, [(name, i) for i in range(len(items))], pool=self._pool))

    def map_reduce(
        self,
        task: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        combine: Callable[[Any, Any], Any],
        finish: Callable[[Any], Any] = _identity,
        stage: str,
    ) -> Any:
        """Run `task` on every item, `combine` the results in order, and `finish` what comes out.

        Parameters
        ----------
        task, combine, finish : callable
            Picklable. `combine` takes two results and must not change them; it should be associative.
        items : sequence
        stage : str
            As for `map`.

        Returns
        -------
        object
            What `finish` returns.
        """
        results = self.map(task, items, stage=stage)
        return _run(finish, _combine_all(combine, *results))

    def call(self, task: Callable[[Any], Any], item: Any, *, stage: str) -> Any:
        """Run one task somewhere.

        Parameters
        ----------
        task : callable
            Of one item; picklable.
        item : object
        stage : str
            As for `map`.

        Returns
        -------
        object
        """
        return self.map(task, [item], stage=stage)[0]

    def _name(self, stage: str) -> str:
        return f"hkm-{stage}-{next(self._counter)}-{self._token}"


def runner_in_task(memory_budget: int) -> Runner:
    """Runner for a task that does a whole computation by itself.

    Parameters
    ----------
    memory_budget : int
        Bytes its worker may hold above what it holds when idle; the worker's limit, not the machine's.

    Returns
    -------
    Runner
        With one thread.

    Examples
    --------
    >>> with runner_in_task(64 << 20) as runner:
    ...     runner.n_threads, runner.memory_budget >> 20
    (1, 64)
    """
    runner = Runner(n_threads=1)
    runner.memory_budget = memory_budget
    return runner


class ClusterRunner(Runner):
    """Runs tasks on the workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
    work_dir : path, optional
        A folder every worker sees. Without it a temporary one is made, which suits workers on this machine.

    Raises
    ------
    ComputeError
        No worker came within half a minute, one cannot see the folder, or some compute on GPUs and some do not.
    """

    def __init__(self, client: Client, work_dir: str | Path | None = None) -> None:
        self.client = client
        info = self._workers()
        device = agree_on_device(client)
        super().__init__(n_threads=sum(w["nthreads"] for w in info.values()), work_dir=work_dir)
        self.n_workers = len(info)
        self.device_budget = min(client.run(device_budget).values()) if device == "cuda" else None
        limits = [w["memory_limit"] for w in info.values() if w.get("memory_limit")]
        if limits:
            self.memory_budget = budget_within(min(limits))
        self.dashboard = client.dashboard_link or None
        self._owners: dict[int, str] = {}
        self._shelf: Shelf | None = None

    def _workers(self) -> dict[str, dict[str, Any]]:
        """What the scheduler knows of every worker; where all have died, wait for those that come in their place."""
        client = self.client
        assert client is not None
        for _ in range(2):
            # Not `Client.scheduler_info`: its answer is shared with a timer that asks for no workers every two seconds.
            try:
                workers = client.sync(client.scheduler.identity)["workers"]  # type: ignore[union-attr]
            except (OSError, AttributeError) as error:  # there is no scheduler once the client is closed
                raise ComputeError("the Dask scheduler does not answer; restart it and run again to resume") from error
            if workers:
                return dict(workers)
            with suppress(TimeoutError):
                client.wait_for_workers(1, timeout=_WORKERS_COME_WITHIN)
        raise ComputeError(
            "workers=0 should be at least 1; start `dask worker ADDRESS` and run again, finished stages are kept"
        )

    @property
    def shelf(self) -> Shelf:
        """Where arrays for many tasks are put."""
        if self._shelf is None:
            folder = self.work_dir / f"shared-{self._token}"
            folder.mkdir(parents=True, exist_ok=True)
            self._owned.append(folder)
            assert self.client is not None
            blind = [w for w, sees in self.client.run(os.path.isdir, str(folder.resolve())).items() if not sees]
            if blind:
                raise ComputeError(
                    f"work_dir={folder} should be seen by every worker, {blind[0]} does not; "
                    "put the output on a file system all workers share"
                )
            self._shelf = Shelf(str(folder.resolve()))
        return self._shelf

    def span(self, name: str) -> AbstractContextManager[Any]:
        """Group the tasks of a context under `name` in the dashboard.

        Parameters
        ----------
        name : str
        """
        from distributed import span

        return span(name)

    def _task_flops(self) -> float:
        return _ROUND_TRIP_FLOPS

    def _owner(self, index: int, workers: list[str]) -> str:
        # A part stays with the worker that holds its blocks for as long as that worker lives.
        owner = self._owners.get(index)
        if owner not in workers:
            owner = workers[index % len(workers)]
            self._owners[index] = owner
        return owner

    def _submit(
        self, task: Callable[[Any], Any], items: Sequence[Any], stage: str, workers: list[str]
    ) -> list[Future[Any]]:
        assert self.client is not None
        name = self._name(stage)
        submit = partial(self.client.submit, pure=False, allow_other_workers=True)
        return [
            submit(_run, task, item, key=f"{name}-{i}", workers=[self._owner(i, workers)])
            for i, item in enumerate(items)
        ]

    def map(self, task: Callable[[Any], Any], items: Sequence[Any], *, stage: str) -> list[Any]:
        """Run `task` on every item; results come in the order of the items.

        Parameters
        ----------
        task, items, stage
            See `Runner.map`.

        Returns
        -------
        list

        Raises
        ------
        ComputeError
            Workers died each time they ran a task, or the scheduler is lost; the message names the stage.
        """
        return self._collect(partial(self._submit, task, items, stage), stage)

    def _collect(self, submit: Callable[[list[str]], list[Future[Any]]], stage: str) -> list[Any]:
        """Wait for what `submit` gives for the workers there are; where all of those died, submit again.

        After a moment without any worker Dask keeps the tasks that were meant for a dead one back for ever, although
        others are allowed to take them.
        """
        from distributed import wait

        assert self.client is not None
        with _explained(stage), self.client.as_current():
            for _ in range(_ATTEMPTS):
                workers = sorted(self._workers())
                futures = submit(workers)
                waiting = True
                while waiting:
                    try:
                        wait(futures, timeout=_LOOK_AFTER_WORKERS)
                    except TimeoutError:
                        waiting = not set(workers).isdisjoint(self._workers())
                    else:
                        return list(self.client.gather(futures))
                self.client.cancel(futures)
        raise ComputeError(
            f"{stage}: all workers died {_ATTEMPTS} times; "
            "look at their logs, give them more memory (--memory-limit) or fewer threads, and run again to resume"
        )

    def map_reduce(
        self,
        task: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        combine: Callable[[Any, Any], Any],
        finish: Callable[[Any], Any] = _identity,
        stage: str,
    ) -> Any:
        """Run `task` on every item, `combine` the results in order, and `finish` what comes out, all on the workers.

        Parameters
        ----------
        task, items, combine, finish, stage
            See `Runner.map_reduce`.

        Returns
        -------
        object
            What `finish` returns.

        Raises
        ------
        ComputeError
            As for `map`.
        """
        client = self.client
        assert client is not None

        def submit(workers: list[str]) -> list[Future[Any]]:
            futures = self._submit(task, items, stage, workers)
            name = self._name("reduce")
            for depth in itertools.count():
                if len(futures) == 1:
                    break
                groups = [futures[i : i + _FAN_IN] for i in range(0, len(futures), _FAN_IN)]
                futures = [
                    client.submit(_combine_all, combine, *group, key=f"{name}-{depth}-{i}", pure=False)
                    for i, group in enumerate(groups)
                ]
            return [client.submit(_run, finish, futures[0], key=f"{self._name('update')}", pure=False)]

        return self._collect(submit, stage)[0]

    def close(self) -> None:
        """Remove temporary folders; the client stays open for whoever opened it."""
        super().close()


@contextmanager
def _explained(stage: str) -> Iterator[None]:
    """Turn Dask's own failures into errors that name the stage and the remedy."""
    from distributed import CancelledError, KilledWorker, TimeoutError

    try:
        yield
    except KilledWorker as error:
        raise ComputeError(
            f"{stage}: workers died each time they ran task {error.task}; "
            "look at their logs, give them more memory (--memory-limit) or fewer threads, and run again to resume"
        ) from error
    except (CancelledError, TimeoutError) as error:
        raise ComputeError(
            f"{stage}: the connection to the Dask scheduler was lost; restart it and run again to resume"
        ) from error


def budget_within(memory_limit: int) -> int:
    """Bytes a worker may hold above its idle size; Dask pauses a worker at 80 % of its limit.

    Parameters
    ----------
    memory_limit : int
        Bytes the worker may hold in all.

    Returns
    -------
    int

    Raises
    ------
    InputError
        The limit leaves less than 32 MiB beside the libraries of an idle worker.

    Examples
    --------
    >>> budget_within(1 << 30) >> 20  # MiB of 1024
    599
    """
    budget = int(memory_limit * 0.8) - memory.PROCESS_BASE_BYTES
    if budget < 32 << 20:
        need = int((memory.PROCESS_BASE_BYTES + (32 << 20)) / 0.8) >> 20
        raise InputError(
            f"memory_limit={memory_limit >> 20}MiB should be at least {need + 1}MiB; "
            f"an idle worker with its libraries holds {memory.PROCESS_BASE_BYTES >> 20}MiB already"
        )
    return budget
