"""Workers that stand still: found by their heartbeats, since a frozen process gives neither an answer nor an error."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from hkm_dask.events import emit

if TYPE_CHECKING:
    from distributed import Client

#: Seconds between two looks, and looks without a heartbeat after which a worker is named.
_LOOK_EVERY, _SILENT_LOOKS = 2.0, 5


class HeartbeatWatch:
    """Names workers whose heartbeats stop, by events of kind ``warning``, until it is closed.

    It looks from the event loop of the client, so it does not matter what waits for such a worker. What becomes of the
    worker is up to the scheduler, which restarts or drops it after its ``worker-ttl``.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Client) -> None:
        from tornado.ioloop import PeriodicCallback

        self._client = client
        self._ttl: float | None = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl)
        self._heard: dict[str, tuple[float, int]] = {}  # time of its last heartbeat, and looks since, of each worker
        self._timer = PeriodicCallback(self._look, 1000 * _LOOK_EVERY)
        client.loop.add_callback(self._timer.start)  # type: ignore[union-attr]

    def close(self) -> None:
        """Stop looking."""
        with suppress(RuntimeError):  # the client was closed before
            self._client.loop.add_callback(self._timer.stop)  # type: ignore[union-attr]

    async def _look(self) -> None:
        try:
            workers: dict[str, dict[str, Any]] = (await self._client.scheduler.identity())["workers"]  # type: ignore[union-attr]
        except (OSError, AttributeError):  # there is no scheduler any more, of which Dask tells those who wait
            return
        # Looks are counted, not seconds: where this process stood still as well, nobody is to blame.
        heard, self._heard = self._heard, {}
        for address, worker in workers.items():
            last, looks = heard.get(address, (None, 0))
            self._heard[address] = worker["last_seen"], looks + 1 if last == worker["last_seen"] else 0
            if self._heard[address][1] == _SILENT_LOOKS:
                emit("warning", message=self._describe(address))

    def _describe(self, address: str) -> str:
        pid = pid_listening_at(address)
        name = f"worker {address}" + ("" if pid is None else f" (pid {pid})")
        # The scheduler looks at its workers once in so many seconds, too.
        outlook = (
            f"waiting up to {2 * self._ttl:.0f} s, then its work goes to others"
            if self._ttl
            else "the scheduler has no worker-ttl, so its work waits until it goes on or ends"
        )
        return f"{name} has not answered for {_LOOK_EVERY * _SILENT_LOOKS:.0f} s; {outlook}"


def pid_listening_at(address: str) -> int | None:
    """Process of this machine that listens at an address like ``tcp://127.0.0.1:8786``; None where there is none.

    >>> pid_listening_at("tcp://127.0.0.1:0") is None
    True
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr == (host.strip("[]"), int(port)):
            return connection.pid
    return None
