"""Five kinds of faults, each inflicted on a running build."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Maximum bytes of a file on a full disk; shares of file operations that fail on a flaky store.
_FILE_SIZES = (500, 4_000, 40_000, 400_000)
FLAKY_SHARES = (0.02, 0.2, 0.6)


@dataclass(frozen=True)
class Run:
    """A running build: its driver, and the file that tells it that the disk is full."""

    driver: psutil.Process
    full: Path

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes; none if the driver is gone."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in self.driver.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if "resource_tracker" not in " ".join(child.cmdline()):
                        found.append(child)
        return found


def kill_worker(run: Run, rng: random.Random) -> bool:
    """Kill one worker, or all at once."""
    workers = run.workers()
    for worker in workers if rng.random() < 0.25 else rng.sample(workers, min(1, len(workers))):
        worker.kill()
    return bool(workers)


def kill_driver(run: Run, rng: random.Random) -> bool:
    """Kill the driver; in a quarter of the cases while a worker is frozen."""
    if rng.random() < 0.25:
        for worker in run.workers()[:1]:
            worker.suspend()
    run.driver.kill()
    return True


def fill_disk(run: Run, rng: random.Random) -> bool:
    """Limit the size of files for every process, which waits for this signal, see `driver`."""
    run.full.write_text(str(rng.choice(_FILE_SIZES)), encoding="utf-8")
    return True


def freeze_worker(run: Run, rng: random.Random) -> bool:
    """Freeze one worker: half of the time for a moment, otherwise until the run gives it up."""
    workers = run.workers()
    for worker in rng.sample(workers, min(1, len(workers))):
        worker.suspend()
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0.1, 3))
            with suppress(psutil.NoSuchProcess):
                worker.resume()
    return bool(workers)


def flaky_store(run: Run, rng: random.Random) -> bool:
    """Do nothing, because the environment of the run makes the store flaky from the start, see `driver`."""
    return True


#: Functions that inflict a fault of each kind; they return whether they could.
KINDS: dict[str, Callable[[Run, random.Random], bool]] = {
    "worker killed": kill_worker,
    "driver killed": kill_driver,
    "disk full": fill_disk,
    "store flaky": flaky_store,
    "worker frozen": freeze_worker,
}


def survivors(mark: str, grace: float = 10.0) -> list[psutil.Process]:
    """Return processes with ``NAME=value`` in their environment that still run `grace` seconds after their driver."""
    name, _, value = mark.partition("=")
    found: list[psutil.Process] = []
    deadline = time.monotonic() + grace
    while True:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(name) == value:
                    found.append(process)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def end(processes: list[psutil.Process]) -> None:
    """Kill processes, including frozen ones."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)
