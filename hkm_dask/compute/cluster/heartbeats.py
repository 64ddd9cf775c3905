"""Detection of frozen workers, which give neither answers nor errors, by their heartbeats, and of paused workers.

If a whole machine stood still, for example asleep, no worker is blamed.

Dask gives a worker whose memory is nearly full no tasks until some is freed. Cached data of this package would stay
there forever, as only tasks drop it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from hkm_dask.compute.block_cache import host_cache, trim
from hkm_dask.compute.shared_arrays import forget_recent
from hkm_dask.events import emit

if TYPE_CHECKING:
    from distributed import Client, Scheduler

#: Seconds between two checks, and checks without a heartbeat after which a worker is reported.
_LOOK_EVERY, _SILENT_LOOKS = 2.0, 5
#: Number of checks after which a paused worker is told to drop its caches, each time.
_PAUSED_LOOKS = 3
#: Seconds between two ticks of a scheduler, and without a tick after which it has stood still.
_TICK, _STOOD_STILL = 1.0, 4.0
_PAUSED = (
    "worker {} exceeds Dask's memory limit and gets no tasks; it drops its cache of rows. Give "
    "workers more memory (--memory-limit)"
)


class HeartbeatWatch:
    """Reports workers that are paused or send no heartbeats, with ``warning`` events, until it is closed.

    A paused worker is told to drop its caches, for as long as it is paused.

    Checks run in the event loop of the client, independently of whatever waits for such a worker. What happens to the
    worker is up to the scheduler, which restarts or drops it after its ``worker-ttl``.
    """

    def __init__(self, client: Client) -> None:
        from tornado.ioloop import PeriodicCallback

        self._client = client
        self._ttl: float | None = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl)
        self._heard: dict[str, tuple[float, int]] = {}  # for each worker, its last heartbeat, and checks since then
        self._paused: dict[str, int] = {}  # for each paused worker, checks since it was paused
        self._timer = PeriodicCallback(self._look, 1000 * _LOOK_EVERY)
        client.loop.add_callback(self._timer.start)  # type: ignore[union-attr]

    def close(self) -> None:
        """Stop checking."""
        with suppress(RuntimeError):  # the client may be closed already
            self._client.loop.add_callback(self._timer.stop)  # type: ignore[union-attr]

    async def _look(self) -> None:
        try:
            workers: dict[str, dict[str, Any]] = (await self._client.scheduler.identity())["workers"]  # type: ignore[union-attr]
        except (OSError, AttributeError):  # a lost scheduler is reported where results are awaited
            return
        # Counts checks instead of seconds: if this process stood still as well, no worker is to blame.
        heard, self._heard = self._heard, {}
        for address, worker in workers.items():
            last, looks = heard.get(address, (None, 0))
            self._heard[address] = worker["last_seen"], looks + 1 if last == worker["last_seen"] else 0
            if self._heard[address][1] == _SILENT_LOOKS:
                emit("warning", message=self._describe(address))
        paused = [address for address, worker in workers.items() if worker["status"] == "paused"]
        self._paused = {address: self._paused.get(address, 0) + 1 for address in paused}
        # Repeatedly, as the running task may cache more afterwards.
        for address in [address for address, looks in self._paused.items() if looks % _PAUSED_LOOKS == 0]:
            if self._paused[address] == _PAUSED_LOOKS:
                emit("warning", message=_PAUSED.format(address))
            with suppress(Exception):  # it does not answer, or has died, which is reported where results are awaited
                told = self._client._run(_give_way, workers=[address], on_error="ignore")
                await asyncio.wait_for(told, _LOOK_EVERY)

    def _describe(self, address: str) -> str:
        pid = pid_listening_at(address)
        name = f"worker {address}" + ("" if pid is None else f" (pid {pid})")
        # The scheduler checks its workers periodically as well.
        outlook = (
            f"waiting up to {2 * self._ttl:.0f} s, then its work goes to other workers"
            if self._ttl
            else "the scheduler has no worker-ttl, so its work waits until it continues or ends"
        )
        return f"{name} has not answered for {_LOOK_EVERY * _SILENT_LOOKS:.0f} s; {outlook}"


def forgive_standstill(scheduler: Scheduler) -> None:
    """Make a scheduler, in its own event loop, blame no worker for a time in which it stood still itself.

    Otherwise it would restart all workers it has not heard of meanwhile, before they could report.
    """
    from distributed.metrics import time
    from tornado.ioloop import PeriodicCallback

    if "worker-ttl" not in scheduler.periodic_callbacks:
        return
    last = time()

    def tick() -> None:
        nonlocal last
        now = time()
        if now - last > _STOOD_STILL:
            for worker in scheduler.workers.values():
                worker.last_seen = now
        last = now

    async def look_after_workers() -> None:
        tick()
        await scheduler.check_worker_ttl()

    scheduler.periodic_callbacks["worker-ttl"].callback = look_after_workers
    scheduler.periodic_callbacks["standstill"] = ticking = PeriodicCallback(tick, 1000 * _TICK)
    ticking.start()


async def _give_way() -> None:
    """Run on a worker: drop everything the process can read or compute again.

    In a separate thread, as a task may be making what is to be dropped: meanwhile the worker answers.
    """
    await asyncio.to_thread(_forget_all)


def _forget_all() -> None:
    host_cache.shrink(None, 0)
    forget_recent()
    trim()


def pid_listening_at(address: str) -> int | None:
    """Return the process of this machine that listens at an address like ``tcp://127.0.0.1:8786``; None if none does.

    >>> pid_listening_at("tcp://127.0.0.1:0") is None
    True
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr == (host.strip("[]"), int(port)):
            return connection.pid
    return None
