"""The device that the workers of a cluster compute on, one kind for all, set in each worker's environment.

Workers started by dask-cuda, with a LocalCUDACluster or `dask cuda worker`, are recognized by its preload. There is one
per GPU, bound to the CPU cores near it, as are the workers of neighboring GPUs, so each is given its share of the
cores.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from hkm_dask.compute.backend import require_cuda
from hkm_dask.compute.cluster.all_workers import ask_workers, set_up_workers
from hkm_dask.errors import ComputeError

if TYPE_CHECKING:
    from distributed import Client

_DEVICE, _PROCESSORS = "HKM_DEVICE", "HKM_PROCESSORS"
_PLUGIN = "hkm-device"
_PRELOAD_OF_CUDA_WORKERS = "dask_cuda.initialize"


def agree_on_device(client: Client) -> str:
    """Make all workers of a cluster, also those that join later, compute on the device they were started for.

    A worker started by dask-cuda computes on its GPU, any other on the CPU; ``HKM_DEVICE`` in the worker's original
    environment overrides both. Returns ``"cpu"`` or ``"cuda"``.

    Raises ComputeError if only some workers are CUDA workers, a CUDA worker has no CuPy or no GPU, or a worker cannot
    import this package.
    """
    devices = ask_workers(client, _devices)  # for each, the device it was started for, and the one assigned
    n_cuda = sum(device == "cuda" for device, _ in devices.values())
    if 0 < n_cuda < len(devices):
        raise ComputeError(
            f"the workers, {n_cuda} CUDA and {len(devices) - n_cuda} CPU, should be all of one kind; start all with "
            "`dask cuda worker` or all with `dask worker`"
        )
    device = "cuda" if n_cuda else "cpu"
    assigned = {assignment for _, assignment in devices.values()}
    # Workers already configured are left alone, as another run may be using them.
    if assigned <= {device} or (device == "cpu" and assigned == {None}):
        return device
    if device == "cuda":
        for address, problem in ask_workers(client, _cuda_problem).items():
            if problem is not None:
                raise ComputeError(f"worker={address}: {problem}")
    tell_workers(client, {_DEVICE: device})
    return device


def tell_workers(client: Client, environment: dict[str, str]) -> None:
    """Set environment variables, such as ``HKM_DEVICE``, in every worker and in those that join later."""
    from distributed import WorkerPlugin

    class SetEnvironment(WorkerPlugin):
        def __init__(self) -> None:
            self.environment = environment
            self.previous: dict[str, str | None] = {}

        def setup(self, worker: Any) -> None:
            values = self.environment
            if _is_cuda_worker(worker) and _PROCESSORS not in os.environ:
                values = {_PROCESSORS: str(_share_of_processors(os.environ.get("CUDA_VISIBLE_DEVICES", ""))), **values}
            self.previous = {name: os.environ.get(name) for name in values}
            os.environ.update(values)

        def teardown(self, worker: Any) -> None:
            for name, value in self.previous.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    set_up_workers(client, SetEnvironment(), _PLUGIN)


def _devices(dask_worker: Any) -> tuple[str, str | None]:
    """Run on a worker: return the device it was started for, and the device assigned to it since."""
    plugin = dask_worker.plugins.get(_PLUGIN)
    by_hand = os.environ.get(_DEVICE) if plugin is None else plugin.previous[_DEVICE]
    started_for = by_hand or ("cuda" if _is_cuda_worker(dask_worker) else "cpu")
    return started_for, None if plugin is None else plugin.environment[_DEVICE]


def _is_cuda_worker(dask_worker: Any) -> bool:
    return _PRELOAD_OF_CUDA_WORKERS in {preload.name for preload in dask_worker.preloads}


def _share_of_processors(visible: str) -> int:
    """Return this worker's share of its machine's cores, one of as many workers as there are GPUs in ``0,1,2,3``."""
    bound = len(os.sched_getaffinity(0))
    with suppress(psutil.Error, OSError):  # the worker's parent process is not bound to the cores of a GPU
        return min(bound, max(1, len(psutil.Process(os.getppid()).cpu_affinity()) // len(visible.split(","))))
    return bound


def _cuda_problem() -> str | None:
    """Run on a worker: describe what it lacks to compute on a GPU, and where to get it."""
    try:
        require_cuda()
    except ComputeError as error:
        return str(error)
    return None
