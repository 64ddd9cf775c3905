"""Workers of a planned run: their number, threads or GPUs, and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hkm_dask.compute.memory import machine_memory
from hkm_dask.compute.planned_runner import PlannedRunner
from hkm_dask.compute.runner import n_processors
from hkm_dask.data import layout
from hkm_dask.data.rows import Rows
from hkm_dask.planning.gpus import Gpu
from hkm_dask.planning.processor_rates import Calibration
from hkm_dask.planning.processor_work import Part
from hkm_dask.planning.rates import Rates

#: Default bytes of host memory per GPU.
GPU_HOST_MEMORY = 128 << 30
#: Seconds for Dask to distribute the tasks of a pass and collect results; negligible with threads.
_ROUND_TRIP = 0.06
#: Units of work that count rounds of tasks.
_ROUNDS = ("pass", "draw", "walk", "assignment", "gather", "step")


@dataclass(frozen=True)
class Workers:
    """Identical workers."""

    #: Number of workers, and threads of each.
    n_workers: int
    n_threads: int
    memory_limit: int  # most bytes of each
    gpu: Gpu | None = None
    is_cluster: bool = False  # processes of a Dask cluster, not threads of this process
    network: float = 12.5e9  # bytes per second that each sends and receives
    n_threads_alone: int | None = None  # threads of all workers on one host; by default those of one worker

    @classmethod
    def here(cls, memory_limit: int | None = None) -> Workers:
        """Return the threads of this process, the default of commands."""
        return cls(1, n_processors(), memory_limit or int(machine_memory() * 0.6))

    @classmethod
    def processes(cls, n_workers: int, n_threads: int, memory_limit: int | None = None) -> Workers:
        """Return processes, which by default divide this machine's memory, and are on it if they fit."""
        n_all = n_workers * n_threads
        return cls(
            n_workers, n_threads, memory_limit or int(machine_memory() * 0.8) // n_workers, is_cluster=True,
            n_threads_alone=n_all if n_all <= n_processors() else n_threads,
        )  # fmt: skip

    @classmethod
    def of_gpus(cls, gpu: Gpu, n: int, memory_limit: int | None = None) -> Workers:
        """Return one worker per GPU."""
        return cls(n, 1, memory_limit or GPU_HOST_MEMORY, gpu, is_cluster=True)

    def __str__(self) -> str:
        each = f"{self.n_threads} thread{'s' if self.n_threads > 1 else ''}"
        if not self.is_cluster:
            return f"{each} of this process"
        each = f"one {self.gpu.source}" if self.gpu else each
        return f"{self.n_workers} worker{'s' if self.n_workers > 1 else ''} of {each}"

    def runner(self) -> PlannedRunner:
        """Return a runner that plans as that of these workers would."""
        size = None if self.gpu is None else self.gpu.size
        return PlannedRunner(
            self.n_workers, self.n_threads, self.memory_limit, size, is_cluster=self.is_cluster,
            n_threads_alone=self.n_threads_alone,
        )  # fmt: skip

    @property
    def rates(self) -> Rates | None:
        """Rates of one GPU from its data sheet; None for processors, whose rates are measured."""
        return None if self.gpu is None else replace(self.gpu.rates, network=self.network)

    def seconds(self, part: Part, calibration: Calibration) -> float:
        """Predict the seconds of a part on processors like the measured ones, including its reads from files."""
        n_rounds = 0.0 if part.in_one_task else sum(part.units.get(unit, 0.0) for unit in _ROUNDS)
        # The bytes are per thread already; each thread reads ahead what it processes next.
        read = part.units.get("reread", 0.0) / calibration.read
        return calibration.seconds_of(part) + read + _ROUND_TRIP * self.is_cluster * n_rounds


class PlannedRows(Rows):
    """Rows of which only the shape is known: those of a future pool, or of an array in a file.

    Rows of an array in a file can be read individually: their `chunk_rows` is 1.

    >>> rows = PlannedRows(10**9, 1024, "float16")
    >>> rows.chunk_rows, rows.row_bytes
    (32768, 2048)
    """

    def __init__(self, n_rows: int, n_features: int, dtype: str, chunk_rows: int | None = None) -> None:
        self._describe((n_rows, n_features), np.dtype(dtype), "planned rows")
        self.chunk_rows = chunk_rows or layout.chunk_rows(n_rows, self.row_bytes)
        self.key = ("planned", n_rows, n_features, dtype)

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Raise TypeError, as there is nothing to read."""
        raise TypeError("planned rows have a shape, and no values")

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Raise TypeError, as there is nothing to read."""
        raise TypeError("planned rows have a shape, and no values")
