"""Workers that stand still: frozen ones, known by their heartbeats as they give neither answers nor errors; and paused.

Where a whole machine stood still, as one that slept, none of them is to blame.

Dask gives a worker whose memory is nearly full no tasks until some of it is free. What ours remember of rows would stay
there for ever, as only tasks forget it.
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

#: Seconds between two looks, and looks without a heartbeat after which a worker is named.
_LOOK_EVERY, _SILENT_LOOKS = 2.0, 5
#: Looks after which a paused worker is told to give way, each time.
_PAUSED_LOOKS = 3
#: Seconds between two ticks of a scheduler, and after how many without one it has stood still.
_TICK, _STOOD_STILL = 1.0, 4.0
_PAUSED = (
    "worker {} exceeds Dask's memory limit and gets no tasks; it drops its cache of rows. Give "
    "workers more memory (--memory-limit)"
)


class HeartbeatWatch:
    """Names workers whose heartbeats stop or that are paused, by events of kind ``warning``, until it is closed.

    A paused one is told to forget what it remembers, as long as it is paused.

    It looks from the event loop of the client, so it does not matter what waits for such a worker. What becomes of the
    worker is up to the scheduler, which restarts or drops it after its ``worker-ttl``.
    """

    def __init__(self, client: Client) -> None:
        from tornado.ioloop import PeriodicCallback

        self._client = client
        self._ttl: float | None = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.worker_ttl)
        self._heard: dict[str, tuple[float, int]] = {}  # time of its last heartbeat, and looks since, of each worker
        self._paused: dict[str, int] = {}  # looks since each worker that is paused was
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
        paused = [address for address, worker in workers.items() if worker["status"] == "paused"]
        self._paused = {address: self._paused.get(address, 0) + 1 for address in paused}
        # Told again and again: the task it is at may remember more after it forgot.
        for address in [address for address, looks in self._paused.items() if looks % _PAUSED_LOOKS == 0]:
            if self._paused[address] == _PAUSED_LOOKS:
                emit("warning", message=_PAUSED.format(address))
            with suppress(Exception):  # it has died, of which Dask tells those who wait, or does not answer
                told = self._client._run(_give_way, workers=[address], on_error="ignore")
                await asyncio.wait_for(told, _LOOK_EVERY)

    def _describe(self, address: str) -> str:
        pid = pid_listening_at(address)
        name = f"worker {address}" + ("" if pid is None else f" (pid {pid})")
        # The scheduler looks at its workers once in so many seconds, too.
        outlook = (
            f"waiting up to {2 * self._ttl:.0f} s, then its work goes to others"
            if self._ttl
            else "the scheduler has no worker-ttl, so its work waits until it continues or ends"
        )
        return f"{name} has not answered for {_LOOK_EVERY * _SILENT_LOOKS:.0f} s; {outlook}"


def forgive_standstill(scheduler: Scheduler) -> None:
    """Have a scheduler, by its own event loop, blame no worker for the time in which it stood still itself.

    Else it would restart all that it has not heard of meanwhile, before they could say anything.
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
    """Run on a worker: forget what its process can read and make again.

    In a thread of its own, as a task may be making what is to be forgotten: meanwhile the worker answers.
    """
    await asyncio.to_thread(_forget_all)


def _forget_all() -> None:
    host_cache.shrink(None, 0)
    forget_recent()
    trim()


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
