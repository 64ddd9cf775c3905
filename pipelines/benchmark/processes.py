"""Peak memory of processes, as the kernel reports it, and the largest message they send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed import Worker
from distributed.comm.tcp import TCP

_write = TCP.write
_largest = 0


def peak_mib(dask_worker: Worker | None = None, pid: int | str = "self") -> float:
    """Return the peak memory of a process (MiB) since it started or since `forget_peak`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def forget_peak(pid: int | str = "self") -> None:
    """Reset the peak memory of a process of the same user to its present memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def weigh_messages() -> None:
    """Record the largest message that this process sends from now on."""

    async def write(self: TCP, *args: Any, **kwargs: Any) -> int:
        global _largest
        n_bytes: int = await _write(self, *args, **kwargs)
        _largest = max(_largest, n_bytes)
        return n_bytes

    TCP.write = write  # type: ignore[method-assign]


def largest_message() -> int:
    """Return the bytes of the largest message since the last call; messages still being sent do not count."""
    global _largest
    n_bytes, _largest = _largest, 0
    return n_bytes
