"""Costs of using a device: kernels launched, synchronizations, bytes sent.

`LAUNCHES` has the number of kernels, memsets and device copies of a CuPy call, according to its source (14.2:
`_core/_routines_*.pyx`, `cuda/cupy_thrust.cu`). Copies to and from the host are counted by bytes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: A ufunc, `fill`, `astype`, a gather by indices, `arange` or `where` is one kernel; a copy or `zeros` one memcpy or
#: memset. Calls not listed count as one. A reduction over all elements takes two kernels, and so does a scan.
_REDUCTIONS = "sum mean min max any all argmin argmax prod count_nonzero nanmin nanmax amin amax nansum std var"
LAUNCHES: dict[str, int] = {
    **dict.fromkeys(_REDUCTIONS.split(), 2),
    "cumsum": 2,
    "nonzero": 4,  # a comparison, a scan, and the kernel that writes the indices
    "mask": 3,  # `array[flags]`: a scan, and the kernel that copies
    "argsort": 9,  # a copy of the keys, the indices, and Thrust's 32-bit radix sort: a histogram, its scan, passes
    "sort": 8,
    "partition": 8,
    "argpartition": 9,
    "unique": 16,
    "bincount": 4,
}
#: Calls that wait for the device although they return no scalar, because the length of their result is one.
SYNCHRONIZES = frozenset({"nonzero", "mask", "unique", "bincount"})


@dataclass
class Costs:
    """Counts; `by_name` has the launches of each kernel or call."""

    by_name: Counter[str] = field(default_factory=Counter)
    synchronizations: int = 0
    uploaded: int = 0
    downloaded: int = 0

    @property
    def launches(self) -> int:
        """Total number of launches."""
        return self.by_name.total()

    def __sub__(self, other: Costs) -> Costs:
        return Costs(
            self.by_name - other.by_name,
            self.synchronizations - other.synchronizations,
            self.uploaded - other.uploaded,
            self.downloaded - other.downloaded,
        )

    def copy(self) -> Costs:
        """Return a snapshot of the counts."""
        return Costs(Counter(self.by_name), self.synchronizations, self.uploaded, self.downloaded)


_lock = threading.Lock()
_counting: list[Costs] = []


@contextmanager
def counted() -> Iterator[Costs]:
    """Count within this context, over all threads."""
    costs = Costs()
    _counting.append(costs)
    try:
        yield costs
    finally:
        _counting.remove(costs)


def launched(name: str, times: int | None = None) -> None:
    """Count a kernel, or a CuPy call with the launches in `LAUNCHES`."""
    with _lock:
        for costs in _counting:
            costs.by_name[name] += LAUNCHES.get(name, 1) if times is None else times
            costs.synchronizations += name in SYNCHRONIZES


def synchronized() -> None:
    """Count a wait of the host for its stream."""
    with _lock:
        for costs in _counting:
            costs.synchronizations += 1


def copied(uploaded: int = 0, downloaded: int = 0) -> None:
    """Count bytes sent to the device, or fetched from it."""
    with _lock:
        for costs in _counting:
            costs.uploaded += uploaded
            costs.downloaded += downloaded
