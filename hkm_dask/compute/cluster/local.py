"""Clusters started on this machine for a run: their settings, and handling of workers that fail to start."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from multiprocessing import active_children
from typing import TYPE_CHECKING, Any

import psutil

from hkm_dask.compute import memory
from hkm_dask.compute.backend import require_cuda
from hkm_dask.compute.cluster.all_workers import list_workers
from hkm_dask.compute.cluster.device import tell_workers
from hkm_dask.compute.cluster.heartbeats import forgive_standstill
from hkm_dask.compute.end_with_parent import spawned_end_with_parent
from hkm_dask.errors import ComputeError, InputError
from hkm_dask.events import emit
from hkm_dask.untrusted import reason

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

CUDA_PRESETS = ("performance", "capacity")
#: Share of the device memory for an RMM pool.
_POOL_SHARE = 0.9
#: Arguments of all clusters on this machine.
_LOCAL: dict[str, Any] = {
    "threads_per_worker": 1,
    "host": "127.0.0.1",
    "dashboard_address": "127.0.0.1:0",
    "silence_logs": logging.CRITICAL,
}
#: Settings of workers on this machine. Pausing is disabled because memory is planned, and a paused worker would keep
#: its caches. Dask's profiler samples threads only 10 times a second: 100 times take 2 % of a core.
_WORKER_SETTINGS = {"distributed.worker.memory.pause": False, "distributed.worker.profile.interval": "100ms"}
#: Settings of workers and scheduler, which check for blocked event loops: 50 times a second take another 2 %.
_SERVER_SETTINGS = {"distributed.admin.tick.interval": "500ms"}
#: Seconds without a heartbeat after which a process on this machine is killed and restarted; Dask's default is 300.
_WORKER_TTL = 30
#: Seconds within which a worker on this machine must start; after which a missing one is reported; and to wait for one
#: that has died since, which is restarted while others work.
_START_SECONDS, _SLOW_START_SECONDS, _COME_AGAIN_SECONDS = 300, 10, 60
#: How often workers on this machine are started if one dies meanwhile, and Dask's message for that.
_STARTS, _DIED_AS_IT_STARTED = 3, "failed to start worker process"

logger = logging.getLogger(__name__)


class _DiedAsItStarted(ComputeError):
    """A worker ended before it had started."""


@contextmanager
def local_cluster(n_workers: int, n_threads: int, memory_limit: int | None) -> Iterator[Client]:
    """Start `n_workers` processes of `n_threads` each, and close them at the end of the context.

    Raises InputError for numbers below 1, and ComputeError if a process never starts.
    """
    from distributed import Client

    if n_workers < 1:
        raise InputError(f"workers={n_workers} should be >= 1; leave it out to run on threads")
    with (
        _settings(),
        _interruptible(),
        _start(n_workers, n_threads, memory_limit) as cluster,
        Client(cluster, direct_to_workers=True) as client,
    ):
        client.loop.add_callback(forgive_standstill, cluster.scheduler)
        list_workers(client, n_workers, _COME_AGAIN_SECONDS)
        try:
            yield client
        finally:
            cluster.sync(_kill_starting_workers, cluster)


@contextmanager
def _settings() -> Iterator[None]:
    """Make clusters on this machine restart a worker whenever it dies, and wake up less often than by default.

    By default Dask gives up on a worker that is missing a few seconds after a death, although it is only restarting.
    Workers end with this process.
    """
    import dask
    import distributed  # noqa: F401  else its other settings would go with this one in the end

    one_arena = {"distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1}  # see `allocator`
    settings = {"distributed.deploy.lost-worker-timeout": "365 days"} | _SERVER_SETTINGS | one_arena
    with dask.config.set(settings), spawned_end_with_parent():
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Kill the workers of a cluster whose start or shutdown is interrupted: Dask would wait for them at exit."""
    from distributed import SpecCluster

    before, clusters_before = active_children(), set(SpecCluster._instances)
    try:
        yield
    except KeyboardInterrupt:
        for cluster in set(SpecCluster._instances) - clusters_before:
            cluster.shutdown_on_close = False
        for process in active_children():
            if process not in before:
                process.kill()
        raise


def _start(n_workers: int, n_threads: int, memory_limit: int | None) -> LocalCluster:
    """Start a cluster on this machine, again if a worker dies at startup, for which Dask gives up all workers."""
    from distributed import LocalCluster

    for is_last in [*[False] * (_STARTS - 1), True]:
        try:
            with _starting(n_workers):
                return LocalCluster(
                    n_workers=n_workers,
                    memory_limit=memory_limit or int(memory.machine_memory() * 0.8) // n_workers,
                    scheduler_kwargs={"worker_ttl": _worker_ttl()},
                    death_timeout=_START_SECONDS,
                    config=_WORKER_SETTINGS | _SERVER_SETTINGS,
                    **_LOCAL | {"threads_per_worker": n_threads},
                )
        except _DiedAsItStarted:
            if is_last:
                raise
            emit("warning", message="a worker died while starting; all workers are restarted")
    raise AssertionError("the last start returns or raises")


async def _kill_starting_workers(cluster: Any) -> None:
    """Kill workers that are still starting, which Dask would let start before it closes them: one may be frozen."""
    from distributed import Status

    for nanny in cluster.workers.values():
        process = nanny.process
        if process is not None and process.status == Status.starting and process.pid is not None:
            nanny.close_gracefully()  # otherwise it would start another worker
            os.kill(process.pid, signal.SIGKILL)


@contextmanager
def _starting(n_workers: int) -> Iterator[None]:
    """Report workers that are slow to start; raises ComputeError if one never does, as Dask would wait forever."""
    slow = f"workers have not started after {_SLOW_START_SECONDS} s; waiting up to {_START_SECONDS} s"
    told = threading.Timer(_SLOW_START_SECONDS, emit, ("warning",), {"message": slow})
    told.daemon = True
    told.start()
    before, begin, started = active_children(), time.monotonic(), threading.Event()
    threading.Thread(target=_end_frozen, args=({process.pid for process in before}, started), daemon=True).start()
    try:
        yield
    except Exception as error:  # Dask has several for it, such as AssertionError
        for process in active_children():
            if process not in before:
                process.kill()  # Dask leaves it running
        first: BaseException = error  # Dask's last error says only that it failed
        while first.__cause__ is not None:
            first = first.__cause__
        late, died = time.monotonic() - begin >= _START_SECONDS, _DIED_AS_IT_STARTED in str(first)
        fact, remedy = ("one did not", "run the same command again") if late else (reason(first), "look at that first")
        if isinstance(first, OSError) and first.filename and not late:  # for example if the scratch disk is full
            fact, remedy = f"{fact} ({first.filename})", "fix that, or set DASK_TEMPORARY_DIRECTORY to another folder"
        if died:
            fact, remedy = "one died", "find out what ended it, such as the kernel when memory is low, and run again"
        message = f"workers={n_workers} should start within {_START_SECONDS} s: {fact}; {remedy}"
        raise (_DiedAsItStarted if died and not late else ComputeError)(message) from error
    finally:
        told.cancel()
        started.set()


def _end_frozen(before: set[int | None], started: threading.Event) -> None:
    """Kill children frozen during startup, after the time that workers may be silent later on."""
    from dask.utils import parse_timedelta

    ttl, looks = parse_timedelta(_worker_ttl()), dict[int, int]()
    while ttl is not None and not started.wait(1.0):
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                frozen = child.pid not in before and child.status() == psutil.STATUS_STOPPED
                looks[child.pid] = looks.get(child.pid, 0) + 1 if frozen else 0
                if looks[child.pid] > ttl:
                    child.kill()


def _worker_ttl() -> Any:
    """Return the worker TTL, unless it is set in Dask's configuration."""
    import dask
    from distributed.config import defaults

    ttl = dask.config.get("distributed.scheduler.worker-ttl")
    return _WORKER_TTL if ttl == defaults["distributed"]["scheduler"]["worker-ttl"] else ttl


@contextmanager
def local_cuda_cluster(preset: str, memory_limit: int | None) -> Iterator[Client]:
    """Start a worker on each GPU, and close them at the end of the context; `preset` is one of CUDA_PRESETS.

    Raises ComputeError if there is no GPU, or a package or a driver is missing.
    """
    options = _cuda_options(preset, memory_limit)
    _require_dask_cuda()
    from dask_cuda import LocalCUDACluster
    from distributed import Client

    with _settings(), _interruptible():
        try:
            cluster = LocalCUDACluster(**options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ComputeError(
                "local_cuda=True should start a worker on every GPU; look at `nvidia-smi` for what else runs there, "
                "leave such GPUs out by CUDA_VISIBLE_DEVICES, or take cuda_preset='capacity', which reserves no memory "
                f"({type(error).__name__}: {error})"
            ) from error
        with cluster, Client(cluster) as client:
            environment = {"HKM_DEVICE": "cuda"}
            if preset == "capacity":
                environment["HKM_STAGING_BLOCKS"] = os.environ.get("HKM_STAGING_BLOCKS", "8")
            tell_workers(client, environment)
            yield client


def _require_dask_cuda() -> None:
    """Raise an error with the reason if a LocalCUDACluster is not available."""
    try:
        from dask_cuda.utils import pynvml
    except ImportError as error:
        missing = "is not installed" if error.name == "dask_cuda" else f"cannot be imported ({error})"
        raise ComputeError(f"dask-cuda {missing}; pip install 'hkm-dask[cuda13]' or [cuda12]") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise ComputeError(
            "there is no GPU, or no driver for it; install the driver, and the matching extra: "
            f"hkm-dask[cuda13] (driver 580 or newer) or [cuda12] (525 or newer) (NVML says: {error})"
        ) from error
    require_cuda()


def _cuda_options(preset: str, memory_limit: int | None) -> dict[str, Any]:
    """Return the arguments of a LocalCUDACluster.

    No preset enables spilling of device memory: resident data is planned, and what does not fit is streamed.
    """
    options = _LOCAL | {"memory_limit": memory_limit or "auto", "device_memory_limit": 0, "rmm_managed_memory": False}
    if preset == "capacity":
        return options
    if find_spec("rmm") is not None:
        # The full pool from the start, since a worker plans with its size; the rest is for CUDA's own libraries.
        options |= {
            "rmm_pool_size": _POOL_SHARE,
            "rmm_maximum_pool_size": _POOL_SHARE,
            "rmm_allocator_external_lib_list": "cupy",
        }
    else:
        logger.info("cuda_preset=performance: RMM is not installed, workers use the memory pool of CuPy")
    if find_spec("distributed_ucxx") is not None:
        options["protocol"] = "ucx"
    return options
