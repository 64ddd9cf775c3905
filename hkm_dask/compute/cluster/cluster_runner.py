"""Runner of tasks on the workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures as concurrent
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial, reduce
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import device_budget
from hkm_dask.compute.cluster.all_workers import ask_workers, explained, list_workers, require_same_version
from hkm_dask.compute.cluster.dashboard import EventSender, add_page
from hkm_dask.compute.cluster.device import agree_on_device
from hkm_dask.compute.cluster.heartbeats import HeartbeatWatch
from hkm_dask.compute.cluster.telling import Listener
from hkm_dask.compute.cluster.worker_shares import WorkerShares, named_worker, places_of, run_timed, take_speed
from hkm_dask.compute.memory import StageBytes, budget_within
from hkm_dask.compute.partition import Part
from hkm_dask.compute.piece_rows import PieceRows
from hkm_dask.compute.runner import InTurn, Report, Runner, identity, run_task
from hkm_dask.compute.shared_arrays import SharedArrayStore
from hkm_dask.compute.staging import staging_blocks
from hkm_dask.data.objects import ObjectPath, location
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.errors import ComputeError

if TYPE_CHECKING:
    from distributed import Client, Future

#: Results combined by one task: more would queue at one worker's network connection, fewer need more rounds.
_FAN_IN = 4
#: Seconds to wait for the first worker.
_WORKERS_COME_WITHIN = 30
#: Seconds between checks of the workers that tasks were given to, and how often all of them may die.
_LOOK_AFTER_WORKERS, _ATTEMPTS = 2, 4
#: Seconds that a pass must take for the speed of workers to be measured.
_LONG_PASS = 2.0
_WORKERS_DIED = "check their logs, give them more memory (--memory-limit) or fewer threads, and run again to resume"


class ClusterRunner(Runner):
    """Runs tasks on the workers of a Dask cluster; closing the runner leaves its client open.

    `work_dir` is a folder that every worker can access, or a URL. By default a temporary folder is used, which suits
    workers on this machine; with other machines, data can be passed through an object store.

    Raises ComputeError if no worker appears within half a minute, if a worker has another version of this package or no
    access to the folder, or if only some workers compute on GPUs.
    """

    client: Client
    in_process = False

    def __init__(self, client: Client, work_dir: str | os.PathLike[str] | None = None) -> None:
        self.client = client
        place = None if work_dir is None else location(work_dir)
        self._objects = place if isinstance(place, ObjectPath) else None
        info = list_workers(client, come_within=_WORKERS_COME_WITHIN)
        self._scheduler = str(client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.id))
        super().__init__(work_dir=place if isinstance(place, Path) else None)
        self.n_workers, self._there = 0, info
        self._watch = HeartbeatWatch(client)  # first, as a worker may be frozen already
        try:
            require_same_version(client)
            device = agree_on_device(client)
            self._count(info)
            self.device_budget = min(ask_workers(client, device_budget).values()) if device == "cuda" else None
            self.n_staged = max(ask_workers(client, staging_blocks).values()) if device == "cuda" else 0
        except BaseException:
            self._watch.close()
            raise
        limits = [w["memory_limit"] for w in info.values() if w.get("memory_limit")]
        if limits:
            self.memory_budget = budget_within(min(limits))
        self.dashboard = client.dashboard_link or None
        self._shares = WorkerShares({worker: about["nthreads"] for worker, about in info.items()})
        self._array_store: SharedArrayStore | None = None
        self._listener = Listener(client)
        self.page = add_page(client)
        self._sender = EventSender(client) if self.page else None
        self._spans: list[str] = []  # open spans, the outermost first
        self._phase: tuple[Any, Any] | None = None  # stage and outer span of the last tasks, and their own span
        self._has_left_pool = _leave_thread_pool()

    def close(self) -> None:
        """See `Runner.close`."""
        if self._sender is not None:
            self._sender.close()
        self._watch.close()
        self._listener.close()
        super().close()
        if self._has_left_pool:
            from distributed import rejoin

            rejoin()

    def _list_workers(self) -> dict[str, Any]:
        """See `list_workers`; of the original scheduler, or none."""
        return list_workers(self.client, scheduler=self._scheduler)

    def _count(self, workers: dict[str, dict[str, Any]]) -> None:
        """Record the current workers and their threads; if some have died, replacements are expected."""
        if not workers.keys() <= self._there.keys():
            require_same_version(self.client)
        self._there = workers
        if len(workers) > self.n_workers:
            self.n_workers, self.n_threads = len(workers), sum(about["nthreads"] for about in workers.values())

    def _largest_host(self) -> tuple[int, str]:
        """Return the number of threads on the host with most of them, and its first worker."""
        hosts: dict[str, tuple[int, str]] = {}
        for worker, about in sorted(self._there.items()):
            n_threads, first = hosts.get(about["host"], (0, worker))
            hosts[about["host"]] = n_threads + about["nthreads"], first
        return max(hosts.values(), key=itemgetter(0))

    @property
    def array_store(self) -> SharedArrayStore:
        """Store for arrays that many tasks read."""
        if self._array_store is None:
            folder = self.work_dir.resolve() / f"shared-{self._token}"
            folder.mkdir(parents=True, exist_ok=True)
            blind = self._blind(folder)
            if blind and self._objects is None:
                raise ComputeError(
                    f"work_dir={folder} should be visible to every worker, but {blind[0]} cannot see it; put the "
                    "output on a file system that all workers share, or set DASK_TEMPORARY_DIRECTORY to a folder there"
                )
            place = self._objects / folder.name if blind and self._objects is not None else folder
            self._owned += [folder, place]
            self._array_store = SharedArrayStore(str(place))
        return self._array_store

    def _blind(self, folder: Path) -> list[str]:
        return [worker for worker, sees in ask_workers(self.client, os.path.isdir, str(folder)).items() if not sees]

    def scratch_store(self, n_bytes: int) -> SharedArrayStore:
        """See `Runner.scratch_store`."""
        return self.array_store

    def place(self, rows: Rows) -> Rows:
        """See `Runner.place`; arrays and row numbers are written to files of the work folder."""
        if isinstance(rows, ArrayRows):
            name = f"rows-{rows.key[-1]}"
            if self.array_store.is_remote:
                self.array_store.put(f"{name}-0", rows.array)
                return PieceRows(self.array_store, name, np.array([0]), rows.shape, rows.array.dtype, rows.label)
            shared = self.array_store.put(name, rows.array)
            return NpyRows(str(shared.path), label=rows.label, scratch=True)
        if isinstance(rows, UnitRows):
            return UnitRows(self.place(rows.base))
        if isinstance(rows, SubsetRows) and rows.index_path is None:
            placed = SubsetRows(self.place(rows.base), rows.index)
            shared = self.array_store.put(f"subset-{uuid.uuid4().hex}", rows.index)
            placed.travel_by(str(shared.path))
            return placed
        return rows

    def prepare(self, begin: Callable[[], None]) -> None:
        """See `Runner.prepare`."""
        if self.device_budget is not None:
            self.client.run(begin, wait=False, on_error="ignore")

    def make_room_for(self, stage: StageBytes) -> None:
        """See `Runner.make_room_for`; this process caches nothing about rows."""

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """See `Runner.span`; the name becomes part of the keys of its tasks."""
        from distributed import span

        self._spans.append(name)
        try:
            with span(name):
                yield
        finally:
            self._spans.pop()

    def _annotated(self, stage: str) -> AbstractContextManager[None]:
        """Annotate tasks with the span of their stage, which is kept until another stage begins."""
        from dask.base import annotate, get_annotations
        from distributed import span

        phase = stage.partition("-")[0], get_annotations().get("span")
        if self._phase is None or self._phase[0] != phase:
            with span(phase[0]):
                self._phase = phase, get_annotations()["span"]
        return annotate(span=self._phase[1])

    def _name(self, stage: str, depth: int = 0) -> str:
        """Name a group of tasks; `depth` is the length of its chain of dependencies on other groups.

        The dashboard's page of groups processes them by descending name, and fails if one precedes what it depends on;
        the underscores prevent that, and are not part of the stage name that Dask derives.
        """
        return "_" * depth + super()._name("-".join([stage, *(name.replace(" ", "") for name in self._spans)]))

    @property
    def n_cuts(self) -> int:
        """See `Runner.n_cuts`."""
        return self._shares.n_cuts

    @property
    def threads_per_worker(self) -> int:
        """See `Runner.threads_per_worker`."""
        return max(self._shares.threads)

    @property
    def n_threads_alone(self) -> int:
        """See `Runner.n_threads_alone`; all workers of the host count, as the others are idle."""
        return self._largest_host()[0] if self.device_budget is None else self.threads_per_worker

    def _n_tasks(self, most: int) -> int:
        return sum(min(n_threads, most) for n_threads in self._shares.threads)

    def _part_ends(self, n_parts: int) -> NDArray[np.float64] | None:
        for most in range(self.threads_per_worker, 0, -1):
            if self._n_tasks(most) == n_parts:
                return self._shares.ends(most)
        return None  # the pass is too small for all threads

    def _submit(
        self, task: Callable[[Any], Any], items: Sequence[Any], stage: str, owners: list[str]
    ) -> list[Future[Any]]:
        name = self._name(stage)
        submit = partial(self.client.submit, run_timed, task, pure=False, allow_other_workers=True)
        return [
            submit(item, self.memory_budget, key=(name, i), workers=[owner])
            for i, (item, owner) in enumerate(zip(items, owners, strict=True))
        ]

    def map(
        self, task: Callable[[Any], Any], items: Sequence[Any], *, stage: str,
        takes: StageBytes | None = None, report: Report | None = None,
    ) -> list[Any]:  # fmt: skip
        """See `Runner.map`.

        Raises ComputeError, naming the stage, if workers died each time they ran a task, or the scheduler is lost.
        """
        if takes is not None:
            task = InTurn(task, takes, self.memory_budget)

        def submit_all(threads: dict[str, int]) -> list[Future[Any]]:
            return self._submit(task, items, stage, self._shares.owners(places_of(items), threads))

        return self._collect(submit_all, items, stage, report)

    def call(self, task: Callable[..., Any], item: Any, *, stage: str, hear: Callable[..., None] | None = None) -> Any:
        """See `Runner.call`; runs on the host with the most threads."""
        with nullcontext(task) if hear is None else self._listener.to(task, hear) as one:
            results = self._collect(
                lambda _: self._submit(one, [item], stage, [self._largest_host()[1]]), [item], stage
            )
        return results[0]

    def _collect(
        self, submit: Callable[[dict[str, int]], list[Future[Any]]], items: Sequence[Any], stage: str,
        report: Report | None = None,
    ) -> list[Any]:  # fmt: skip
        """Wait for the futures that `submit` returns for the current workers and threads; resubmits if all have died.

        If there was no worker for a moment, Dask holds back tasks meant for a dead one forever, although other workers
        are allowed to run them.
        """
        with _explained(self.client, stage, items), _current(self.client), self._annotated(stage):
            for _ in range(_ATTEMPTS):
                begin = time.perf_counter()
                self._count(self._list_workers())
                workers = {worker: about["nthreads"] for worker, about in sorted(self._there.items())}
                futures = submit(workers)
                try:
                    results = self._results(futures, set(workers), report)
                finally:  # otherwise the traceback of an error would keep the futures, and their results, alive
                    for future in futures:
                        future.release()
                if results is not None:
                    if len(workers) > 1 and time.perf_counter() - begin > _LONG_PASS:
                        self._weigh(workers)
                    return results
        raise ComputeError(f"{stage}: all workers died {_ATTEMPTS} times; {_WORKERS_DIED}")

    def _results(self, futures: list[Future[Any]], there: set[str], report: Report | None) -> list[Any] | None:
        """Wait for tasks and fetch their results; None if all workers that were `there` died at the same time."""
        from distributed import wait

        while True:
            try:
                wait(futures, timeout=_LOOK_AFTER_WORKERS)
                break
            except TimeoutError:
                if report is not None:
                    report(sum(future.status == "finished" for future in futures), len(futures))
                before, there = there, set(self._list_workers())
                if before.isdisjoint(there):
                    return None
                self._give_out_again()
        if report is not None:
            report(len(futures), len(futures))
        # Results lost with a worker meanwhile are computed again, and may have to wait for a worker too.
        fetched = self.client.gather(futures, asynchronous=True)
        fetching = asyncio.run_coroutine_threadsafe(fetched, self.client.loop.asyncio_loop)  # type: ignore[union-attr]
        while concurrent.wait([fetching], timeout=_LOOK_AFTER_WORKERS).not_done:
            self._list_workers()
            self._give_out_again()
        return list(fetching.result())

    def _give_out_again(self) -> None:
        """Make the scheduler give tasks restricted to workers that may be paused or dead to other workers."""
        with suppress(OSError):  # if the scheduler is lost, waiting for the tasks fails
            self.client.run_on_scheduler(_give_out)

    def _weigh(self, threads: dict[str, int]) -> None:
        """Adjust the shares of the next pass to the workers' speeds since the last long pass."""
        speeds: dict[str, Any] = {}
        with suppress(OSError):  # if the scheduler is lost, the next pass fails
            speeds = self.client.run(take_speed, on_error="ignore")
        self._shares.weigh({worker: speed * threads.get(worker, 1) for worker, speed in speeds.items() if speed})

    def _combined(
        self, combine: Callable[[Any, Any], Any], groups: list[tuple[list[Future[Any]], str | None]], name: str
    ) -> list[Future[Any]]:
        """Combine the results of each group in order, on a given worker if any; a single result is kept as it is."""
        futures = []
        for i, (group, owner) in enumerate(groups):
            where = {} if owner is None else {"workers": [owner], "allow_other_workers": True}
            submit = partial(self.client.submit, reduce, combine, group, key=(name, i), pure=False)
            futures.append(group[0] if len(group) == 1 else submit(**where))
        return futures

    def map_reduce(
        self,
        task: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        combine: Callable[[Any, Any], Any],
        finish: Callable[[Any], Any] = identity,
        stage: str,
    ) -> Any:
        """See `Runner.map_reduce`; runs entirely on the workers, and fails as `map` does.

        Each worker first combines the results of its own parts, so only one result leaves it.
        """

        def submit_all(threads: dict[str, int]) -> list[Future[Any]]:
            owners = self._shares.owners(places_of(items), threads)
            futures = self._submit(task, items, stage, owners)
            owned = groupby(zip(owners, futures, strict=True), itemgetter(0))
            groups: list[tuple[list[Future[Any]], str | None]]
            groups = [([future for _, future in run], owner) for owner, run in owned]
            for depth in count(1):
                futures = self._combined(combine, groups, self._name(_renamed(stage, "reduce"), depth))
                if len(futures) <= _FAN_IN:
                    break
                groups = [(futures[i : i + _FAN_IN], None) for i in range(0, len(futures), _FAN_IN)]
            key = self._name(_renamed(stage, "update"), depth + 1), 0
            return [self.client.submit(_finish, combine, finish, futures, key=key, pure=False)]

        return self._collect(submit_all, items, stage)[0]


def _leave_thread_pool() -> bool:
    """If this is a task of a worker, make its thread available for the tasks it waits for; tells whether it did."""
    from distributed import secede

    try:
        secede()
    except (ValueError, AttributeError, KeyError):  # no task, a task without such a thread, or one that did it itself
        return False
    return True


def _give_out(dask_scheduler: Any) -> None:
    """Run on the scheduler: reconsider the workers of tasks that other than their preferred workers may run.

    Dask does so when tasks arrive. If no worker was running then, each task is held for its preferred one.
    """
    kept = [task.key for task in dask_scheduler.unrunnable if task.loose_restrictions]
    if kept and dask_scheduler.running:
        dask_scheduler.transitions(dict.fromkeys(kept, "processing"), stimulus_id="hkm-give-out")


def _finish(combine: Callable[[Any, Any], Any], finish: Callable[[Any], Any], results: list[Any]) -> Any:
    with named_worker():
        return run_task(finish, reduce(combine, results))


def _renamed(stage: str, phase: str) -> str:
    """Return the name of a phase of a pass: the phase in place of the stage, with the number of the pass.

    >>> _renamed("lloyd-iteration7", "reduce"), _renamed("gather", "reduce")
    ('reduce-iteration7', 'reduce')
    """
    return phase + "".join(stage.partition("-")[1:])


@contextmanager
def _current(client: Client) -> Iterator[None]:
    """Make a client the current one for Dask's functions, in this thread.

    `Client.as_current` also sets Dask's configuration, which is global: of two concurrent runs, the last one to end
    would leave the setting of the other.
    """
    from distributed.client import _current_client

    token = _current_client.set(client)
    try:
        yield
    finally:
        _current_client.reset(token)


@contextmanager
def _explained(client: Client, stage: str, items: Sequence[Any]) -> Iterator[None]:
    """Convert Dask's own failures to errors that name the stage, the rows and the remedy."""
    from distributed import KilledWorker

    try:
        with explained(client, stage):
            yield
    except KilledWorker as error:
        what = f"task {_text(error.task)}{_rows_of(error.task, items, stage)}"
        raise ComputeError(f"{stage}: workers died each time they ran {what}; {_WORKERS_DIED}") from error


def _text(key: Any) -> str:
    return "-".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _rows_of(key: Any, items: Sequence[Any], stage: str) -> str:
    """Name the rows of a task whose item is a part of some rows."""
    if not isinstance(key, tuple) or not key[0].startswith(f"hkm-{stage}-"):
        return ""
    item = items[key[1]]
    return f" (rows {item.start}:{item.stop} of {item.rows.label})" if isinstance(item, Part) else ""
