"""Choice, opening and closing of the place where work runs: this process, a new Dask cluster, or a running one."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hkm_dask.compute import memory
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.local import CUDA_PRESETS, local_cluster, local_cuda_cluster
from hkm_dask.compute.runner import Runner
from hkm_dask.data.objects import location
from hkm_dask.errors import ComputeError, InputError
from hkm_dask.untrusted import reason

if TYPE_CHECKING:
    from distributed import Client

#: Seconds within which a running scheduler must answer.
_ANSWER_SECONDS = 10.0


def runner_for(
    client: Client | None = None, memory_limit: int | str | None = None, work_dir: str | os.PathLike[str] | None = None
) -> Runner:
    """Choose where to run: on `client` if given, else on distributed's current client, else on threads.

    `memory_limit`, in bytes or as in ``"4GiB"``, is for this process; workers of a cluster have their own limits. All
    workers must have access to `work_dir`; a URL in an object store suits workers on other machines. Leaving the
    runner's context deletes temporary files and leaves the client open. InputError for anything but a client, and in
    the client's own event loop.

    Examples
    --------
    >>> with runner_for() as runner:
    ...     runner.map(abs, [-1, 2, -3], stage="demo")
    [1, 2, 3]
    """
    if client is None:
        client = _current_client()
    if client is None:
        folder = None if work_dir is None else location(work_dir)
        return Runner(memory_limit=_parse_limit(memory_limit), work_dir=folder if isinstance(folder, Path) else None)
    from distributed import Client

    if not isinstance(client, Client):
        raise InputError(f"client={client!r} should be a distributed.Client; make one by Client(address)")
    if client.asynchronous:
        raise InputError(f"client={client!r} should not be used in its own event loop; use asyncio.to_thread")
    return ClusterRunner(client, work_dir=work_dir)


def _current_client() -> Client | None:
    """Return distributed's current client; None if there is none, or distributed was never imported."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_client

    try:
        return get_client()
    except ValueError:
        return None


def _parse_limit(memory_limit: int | str | None) -> int | None:
    if memory_limit is None:
        return None
    from dask.utils import parse_bytes

    try:
        return int(parse_bytes(memory_limit))
    except ValueError as error:
        raise InputError(f"memory_limit={memory_limit!r} should be a number of bytes; write it as 4GiB") from error


@contextmanager
def connect(
    *,
    workers: int | None = None,
    threads_per_worker: int | None = None,
    local_cuda: bool = False,
    cuda_preset: Literal["performance", "capacity"] = "performance",
    scheduler: str | None = None,
    scheduler_file: str | Path | None = None,
    memory_limit: int | str | None = None,
) -> Iterator[Runner]:
    """Open the place where work runs, and close it at the end of the context.

    Parameters
    ----------
    workers : int, optional
        Start a LocalCluster with this many processes.
    threads_per_worker : int, optional
        Threads of each process, by default one; a task that runs alone uses the threads of all of them.
    local_cuda : bool
        Start a LocalCUDACluster, one worker per GPU.
    cuda_preset : {"performance", "capacity"}
        Use of memory by the CUDA workers. ``"performance"`` allocates device memory from an RMM pool and communicates
        by UCX, if these are installed. ``"capacity"`` leaves all device memory to the rows and stages more blocks in
        host memory. Results are the same.
    scheduler : str, optional
        Address of a running scheduler; ``DASK_SCHEDULER_ADDRESS`` is used as well.
    scheduler_file : path, optional
        File written by a running scheduler.
    memory_limit : int or str, optional
        Memory that one worker may use, in bytes or as in ``"4GiB"``.

    Raises
    ------
    InputError
        If more than one place is requested, the preset is unknown, or the memory limit is too small.
    ComputeError
        If the cluster cannot be reached or started.
    """
    places = places_asked_for(workers, local_cuda, scheduler, scheduler_file)
    if threads_per_worker is not None and (workers is None or threads_per_worker < 1):
        rule = "be >= 1" if workers is not None else "go with workers, which have as many"
        raise InputError(f"threads_per_worker={threads_per_worker} should {rule}; leave it out")
    if cuda_preset not in CUDA_PRESETS:
        raise InputError(f"cuda_preset={cuda_preset!r} should be one of {', '.join(CUDA_PRESETS)}; name one of them")
    limit = _parse_limit(memory_limit)
    if limit is not None:
        memory.budget_within(limit)
    with ExitStack() as stack:
        if scheduler is None and not places:
            scheduler = os.environ.get("DASK_SCHEDULER_ADDRESS") or None
        if workers is not None:
            client = stack.enter_context(local_cluster(workers, threads_per_worker or 1, limit))
        elif local_cuda:
            client = stack.enter_context(local_cuda_cluster(cuda_preset, limit))
        elif scheduler is not None or scheduler_file is not None:
            client = stack.enter_context(_existing_cluster(scheduler, scheduler_file))
        else:
            yield stack.enter_context(Runner(memory_limit=limit))
            return
        yield stack.enter_context(ClusterRunner(client))


def places_asked_for(
    workers: int | None, local_cuda: bool, scheduler: str | None, scheduler_file: str | Path | None
) -> list[str]:
    """Return the place to run requested from `connect`, if any; rejects more than one.

    Examples
    --------
    >>> places_asked_for(2, False, None, None)
    ['workers=2']
    """
    options = {
        "workers": workers,
        "local_cuda": local_cuda or None,
        "scheduler": scheduler,
        "scheduler_file": scheduler_file,
    }
    places = [f"{name}={value}" for name, value in options.items() if value is not None]
    if len(places) > 1:
        raise InputError(f"{' and '.join(places)} should be one place to run; keep one of them")
    return places


@contextmanager
def _existing_cluster(
    scheduler: str | None, scheduler_file: str | Path | None, seconds: float = _ANSWER_SECONDS
) -> Iterator[Client]:
    from distributed import Client
    from distributed.utils import silence_logging_cmgr

    address = scheduler if scheduler is not None else _address_in(Path(str(scheduler_file)))
    try:
        _knock(address, seconds)
        client = Client(address, timeout=seconds)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        remedy = "start `dask scheduler` or fix the address"
        if address.startswith("tls"):
            remedy += ", and check the certificates in Dask's settings distributed.comm.tls"
        elif isinstance(error.__cause__ or error, ConnectionError | EOFError):
            remedy += ", which begins with tls:// if the scheduler requires certificates"
        why = re.sub(r"^in <[^>]*>: (\w+: )?(\[Errno \d+\] )?", "", reason(error))  # strips Dask's names of its objects
        raise ComputeError(f"scheduler={address} should answer; {remedy} ({why})") from error
    # For a lost scheduler Dask logs tracebacks; this package reports it in one line.
    with silence_logging_cmgr(logging.CRITICAL), client:
        yield client


def _knock(address: str, seconds: float) -> None:
    """Open a connection and close it: a Client that gets none remains Dask's current client, and hangs on exit."""
    from distributed.comm.core import connect as open_comm
    from distributed.security import Security
    from distributed.utils import LoopRunner

    async def greet() -> None:
        comm = await open_comm(address, timeout=seconds, **Security().get_connection_args("client"))
        await comm.close()

    loop = LoopRunner()
    loop.start()
    try:
        loop.run_sync(greet)
    finally:
        loop.stop()


def _address_in(path: Path) -> str:
    """Read the address from a scheduler file."""
    if not path.exists():
        raise InputError(f"scheduler_file={path} should exist; start `dask scheduler --scheduler-file {path}` first")
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule = "be a scheduler file with an address"
        raise InputError(
            f"scheduler_file={path} should {rule}; start `dask scheduler --scheduler-file {path}`"
        ) from error
