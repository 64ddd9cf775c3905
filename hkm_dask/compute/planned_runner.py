"""A runner for planning only: it plans like one with real workers, but cannot run anything."""

from __future__ import annotations

from hkm_dask.compute.block_cache import REMEMBERED_BYTES
from hkm_dask.compute.memory import PROCESS_BASE_BYTES, StageBytes
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.staging import RESIDENT_SHARE, device_row_bytes
from hkm_dask.data.rows import Rows

#: Blocks in pinned memory in transit to a device, and the share of its memory that a worker may use.
_STAGED, DEVICE_SHARE = 4, 0.8


class PlannedRunner(Runner):
    """Plans for `n_workers` of `n_threads` each, with `memory_limit` bytes, and `device_memory` bytes on a GPU.

    With `is_cluster`, workers are separate processes that exchange data through files; `n_threads_alone` is the number
    of threads on one host.

    >>> with PlannedRunner(4, 2, 1 << 30) as runner:
    ...     runner.n_workers, runner.threads_per_worker, runner.memory_budget >> 20
    (4, 2, 599)
    """

    def __init__(
        self, n_workers: int, n_threads: int, memory_limit: int, device_memory: int | None = None, *,
        is_cluster: bool = False, n_threads_alone: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(n_threads=n_workers * n_threads, memory_limit=memory_limit)
        self.n_workers, self.in_process = n_workers, not is_cluster
        self._n_threads_alone = n_threads_alone or n_threads
        on_device = device_memory is not None
        self.device_budget = int(DEVICE_SHARE * device_memory) if device_memory is not None else None
        self.n_staged = _STAGED if on_device else 0

    def __enter__(self) -> PlannedRunner:
        return self

    def fits_in_memory(self, n_bytes: int, beside: StageBytes | None = None) -> bool:
        """See `Runner.fits_in_memory`; assumes that devices have room."""
        return self.device_budget is not None or super().fits_in_memory(n_bytes, beside)

    @property
    def n_threads_alone(self) -> int:
        """See `Runner.n_threads_alone`."""
        return self._n_threads_alone

    def resident_shares(self, rows: Rows, stage: StageBytes) -> tuple[float, float]:
        """Return the share of the rows that stay where they are computed, and the share not read again, in a stage."""
        own, planned = self.n_own(rows), self.plan(rows, stage)
        of_rows, kept = own * rows.row_bytes, 0
        if planned is not None:
            kept = min(of_rows, max(0, planned.resident_bytes - REMEMBERED_BYTES * own))
        if planned is not None and kept < of_rows:
            kept -= kept % planned.block_bytes  # only whole blocks stay
        on_host = kept / of_rows
        if self.device_budget is None:
            return (min(1.0, on_host),) * 2
        on_device = RESIDENT_SHARE * self.device_budget / (own * device_row_bytes(rows))
        return min(1.0, on_device), min(1.0, on_device + on_host)

    def keeps_both(self, both: Rows, stage: StageBytes, n_bytes: int, budget: int) -> bool:
        """Tell whether two tables stay cached, `n_bytes` per worker; on a device, if the single table `both` would."""
        return n_bytes <= budget if self.device_budget is None else self.resident_shares(both, stage)[1] == 1.0

    def peak(self, rows: Rows, stage: StageBytes) -> int:
        """Return the peak bytes of a worker in a stage over rows, with as many tasks as fit, and resident rows."""
        planned = self.plan(rows, stage)
        if planned is None:
            return PROCESS_BASE_BYTES + self.input_bytes(rows) + stage.total()
        _, n_blocks, held = self.memory_of_blocks(rows)
        own = self.n_own(rows) * rows.row_bytes
        blocks = min(n_blocks * planned.n_tasks * planned.block_bytes, n_blocks * own)
        stays = 0 if self.device_budget is not None and self.resident_shares(rows, stage)[0] == 1.0 else own
        return PROCESS_BASE_BYTES + held + stage.total(planned.n_tasks) + blocks + min(stays, planned.resident_bytes)

    def peak_above(self, stage: StageBytes) -> int:
        """Return the same for a stage of a higher level, whose rows are included in the stage."""
        return PROCESS_BASE_BYTES + stage.total(self.threads_per_worker)
