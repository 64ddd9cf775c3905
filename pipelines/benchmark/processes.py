"""What the processes of a run hold and send: peak memory, by the kernel, and the largest message, as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distributed import Worker
from distributed.comm.tcp import TCP

_write = TCP.write
_largest = 0


def peak_mib(dask_worker: Worker | None = None, pid: int | str = "self") -> float:
    """Most memory that a process has held since its peak was forgotten, or since it began."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def forget_peak(pid: int | str = "self") -> None:
    """Let the peak of a process of the same user begin anew, from what it holds now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def weigh_messages() -> None:
    """Note the largest message that this process sends from now on."""

    async def write(self: TCP, *args: Any, **kwargs: Any) -> int:
        global _largest
        n_bytes: int = await _write(self, *args, **kwargs)
        _largest = max(_largest, n_bytes)
        return n_bytes

    TCP.write = write  # type: ignore[method-assign]


def largest_message() -> int:
    """Bytes of the largest message since this was asked before; those that are on their way do not count."""
    global _largest
    n_bytes, _largest = _largest, 0
    return n_bytes
