"""Operations on all workers of a Dask cluster at once, any of which may die meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hkm_dask.errors import ComputeError
from hkm_dask.version import __version__

if TYPE_CHECKING:
    from distributed import Client, WorkerPlugin

#: Seconds to wait for a worker after all have died, as some may just be starting, and between two polls.
_OTHERS_COME_WITHIN, _LOOK_EVERY = 120, 0.1
#: Dask's reason for cancelling results whose scheduler is gone.
_LOST = "scheduler-connection-lost"
#: How often all workers may die during a request.
_ATTEMPTS = 4


@contextmanager
def explained(client: Client, stage: str = "") -> Iterator[None]:
    """Convert errors of Dask that mean a lost scheduler, or lost tasks, to a ComputeError that names the remedy.

    An OSError raised by the tasks of a stage is not converted.
    """
    from distributed import CancelledError, TimeoutError
    from distributed.client import ClosedClientError
    from distributed.comm.core import CommClosedError

    try:
        yield
    except ComputeError:
        raise
    except Exception as error:
        lost = CancelledError | TimeoutError | CommClosedError | ClosedClientError
        # A closed client has no scheduler to ask, which raises AttributeError.
        if not isinstance(error, lost if stage else lost | OSError) and client.status != "closed":
            raise
        fact = f"{stage}: " if stage else ""
        if isinstance(error, CancelledError) and not _connection_lost(error):
            fact += "its tasks were cancelled, for example by Client.restart in another process"
            raise ComputeError(f"{fact}; run again to resume") from error
        fact += "the connection to the Dask scheduler was lost"
        raise ComputeError(f"{fact}; restart it and its workers, and run again to resume") from error


def _connection_lost(error: BaseException) -> bool:
    """Tell whether Dask cancelled results because the scheduler is gone, and not because somebody asked for it."""
    groups = getattr(error, "error_groups", [error])
    return any(getattr(group, "reason", _LOST) == _LOST for group in groups)


def list_workers(
    client: Client, n_workers: int = 1, come_within: float = _OTHERS_COME_WITHIN, scheduler: str | None = None
) -> dict[str, Any]:
    """Return what the scheduler knows of every worker; if there are fewer, as all have died, wait for them to return.

    If there is none, a task asks adaptive clusters for one. After `come_within` seconds, fewer are accepted. Raises
    ComputeError if there is none then, or the scheduler does not answer, or is not the one with the id `scheduler` but
    was started in its place.
    """
    deadline, task = time.monotonic() + come_within, None
    while True:
        # `Client.scheduler_info` shares its answer with a timer that requests it without workers every two seconds.
        # When a worker dies, `wait_for_workers` breaks a LocalCluster's count of workers, which then fails to close.
        with explained(client):
            identity = client.sync(client.scheduler.identity)  # type: ignore[union-attr]
        if scheduler not in (None, identity["id"]):  # a new one has no tasks, nor settings of the workers
            raise ComputeError("the Dask scheduler was restarted during the run; run again to resume")
        workers = identity["workers"]
        if len(workers) >= n_workers or time.monotonic() > deadline:
            break
        if not workers and task is None:
            task = client.submit(int, pure=False)
        time.sleep(_LOOK_EVERY)
    if workers:
        return dict(workers)
    raise ComputeError(
        "workers=0 should be at least 1; start `dask worker ADDRESS` and run again (finished stages are kept)"
    )


def ask_workers(client: Client, question: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Run a function on every worker; returns the answers of live workers by address, at least one.

    Raises ComputeError if a worker cannot import the function, and converts any other error it raises to one.
    """
    for _ in range(_ATTEMPTS):
        answers = {}
        with explained(client):
            given = client.run(question, *args, on_error="return")
        for address, answer in given.items():
            if isinstance(answer, OSError):  # it has died since the scheduler last heard of it
                continue
            if isinstance(answer, ComputeError):
                raise answer
            if isinstance(answer, Exception):
                raise ComputeError(
                    f"worker={address} should have hkm_dask; install the same packages on every worker "
                    f"({type(answer).__name__}: {answer})"
                ) from answer
            answers[address] = answer
        if answers:
            return answers
        list_workers(client)
    raise ComputeError(f"all workers died {_ATTEMPTS} times during a request; check their logs and run again")


def require_same_version(client: Client) -> None:
    """Raise ComputeError if a worker has another version of this package, as its results may differ."""

    # Nested, so that it is pickled by value, as another version may not have it.
    def version() -> str:
        from importlib import import_module

        return str(import_module("hkm_dask").__version__)

    for address, found in ask_workers(client, version).items():
        if found != __version__:
            raise ComputeError(
                f"worker={address} should have hkm_dask {__version__}, but has {found}; install the same packages on "
                "every worker"
            )


def set_up_workers(client: Client, plugin: WorkerPlugin, name: str) -> None:
    """Install a plugin on every worker, and on those that join later.

    `Client.register_plugin` raises if a worker dies meanwhile, and logs a traceback if two do.
    """
    from distributed.protocol.pickle import dumps

    # Nested, so that it is pickled by value, as the scheduler may not have this module.
    async def add(name: str, plugin: bytes, dask_scheduler: Any) -> dict[str, str]:
        dask_scheduler.worker_plugins[name] = plugin
        message = {"op": "plugin-add", "plugin": plugin, "name": name}
        answers = await dask_scheduler.broadcast(msg=message, on_error="ignore")
        return {address: answer["exception_text"] for address, answer in answers.items() if answer["status"] == "error"}

    with explained(client):
        problems = client.run_on_scheduler(add, name, dumps(plugin))
    for address, problem in problems.items():
        raise ComputeError(f"worker={address} should set up {name}: {problem}; check its log")
