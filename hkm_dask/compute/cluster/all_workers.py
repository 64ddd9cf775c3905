"""What concerns all workers of a Dask cluster at once, of which any may die meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hkm_dask.errors import ComputeError
from hkm_dask.version import __version__

if TYPE_CHECKING:
    from distributed import Client, WorkerPlugin

#: Seconds to wait for a worker after all have died, which then may only be starting, and between two looks.
_OTHERS_COME_WITHIN, _LOOK_EVERY = 120, 0.1
#: How often all workers may die as they are asked something.
_ATTEMPTS = 4


@contextmanager
def explained(client: Client, stage: str = "") -> Iterator[None]:
    """Turn what Dask raises where the scheduler of a client is lost into a ComputeError that names the remedy.

    An OSError of the tasks of a stage is their own.
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
        # Once a client is closed there is no scheduler to ask, which is an AttributeError.
        if not isinstance(error, lost if stage else lost | OSError) and client.status != "closed":
            raise
        fact = f"{stage}: " if stage else ""
        fact += "the connection to the Dask scheduler was lost"
        raise ComputeError(f"{fact}; restart it and its workers, and run again to resume") from error


def list_workers(
    client: Client, n_workers: int = 1, come_within: float = _OTHERS_COME_WITHIN, scheduler: str | None = None
) -> dict[str, Any]:
    """What the scheduler knows of every worker; where there are fewer, as all have died, wait for those to come.

    Those that there are after so many seconds will do. Raises ComputeError where there is none then, or the scheduler
    does not answer, or is not the one with the name in `scheduler` but one that was started in its place.
    """
    deadline = time.monotonic() + come_within
    while True:
        # Not `Client.scheduler_info`: its answer is shared with a timer that asks for no workers every two seconds. Nor
        # `wait_for_workers`: where a worker dies, it loses a LocalCluster's count of them, which fails as it is closed.
        with explained(client):
            identity = client.sync(client.scheduler.identity)  # type: ignore[union-attr]
        if scheduler not in (None, identity["id"]):  # who has none of the tasks, nor what workers were told
            raise ComputeError("the Dask scheduler was restarted during the run; run again to resume")
        workers = identity["workers"]
        if len(workers) >= n_workers or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_EVERY)
    if workers:
        return dict(workers)
    raise ComputeError(
        "workers=0 should be at least 1; start `dask worker ADDRESS` and run again, finished stages are kept"
    )


def ask_workers(client: Client, question: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Run a function on every worker; answers of those that live by address, of at least one.

    Raises ComputeError where a worker cannot import the function, or whatever it raises is not one.
    """
    for _ in range(_ATTEMPTS):
        answers = {}
        with explained(client):
            given = client.run(question, *args, on_error="return")
        for address, answer in given.items():
            if isinstance(answer, OSError):  # it died since the scheduler heard of it
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
    """Raise ComputeError where a worker has another version of this package: its results may be others."""

    # Sent by value, as a function within another one is, since another version may not have it.
    def version() -> str:
        from importlib import import_module

        return str(import_module("hkm_dask").__version__)

    for address, found in ask_workers(client, version).items():
        if found != __version__:
            raise ComputeError(
                f"worker={address} should have hkm_dask {__version__}, and has {found}; install the same packages on "
                "every worker"
            )


def set_up_workers(client: Client, plugin: WorkerPlugin, name: str) -> None:
    """Have every worker set up a plugin, and those that join later.

    `Client.register_plugin` raises where a worker dies meanwhile, and logs a traceback where two do.
    """
    from distributed.protocol.pickle import dumps

    # Sent by value, as a function within another one is, since the scheduler may not know this module.
    async def add(name: str, plugin: bytes, dask_scheduler: Any) -> dict[str, str]:
        dask_scheduler.worker_plugins[name] = plugin
        message = {"op": "plugin-add", "plugin": plugin, "name": name}
        answers = await dask_scheduler.broadcast(msg=message, on_error="ignore")
        return {address: answer["exception_text"] for address, answer in answers.items() if answer["status"] == "error"}

    with explained(client):
        problems = client.run_on_scheduler(add, name, dumps(plugin))
    for address, problem in problems.items():
        raise ComputeError(f"worker={address} should set up {name}: {problem}; check its log")
