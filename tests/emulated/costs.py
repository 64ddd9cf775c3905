"""What the work of a host with its device costs: kernels launched, synchronizations, bytes sent.

`LAUNCHES` says what a call of CuPy's costs in kernels, memsets and copies within the device, as far as the sources tell
(14.2: `_core/_routines_*.pyx`, `cuda/cupy_thrust.cu`). Copies to and from the host are counted by their bytes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: A ufunc, `fill`, `astype`, a gather by numbers, `arange` or `where` is one kernel; a copy or `zeros` one memcpy or
#: memset; so is what is not named here. A reduction over everything takes two kernels, a scan too.
_REDUCTIONS = "sum mean min max any all argmin argmax prod count_nonzero nanmin nanmax amin amax nansum std var"
LAUNCHES: dict[str, int] = {
    **dict.fromkeys(_REDUCTIONS.split(), 2),
    "cumsum": 2,
    "nonzero": 4,  # a comparison, a scan, and the kernel that writes the places
    "mask": 3,  # `array[flags]`: a scan, and the kernel that copies
    "argsort": 9,  # a copy of the keys, the places, and Thrust's radix sort of 32 bits: a histogram, its scan, passes
    "sort": 8,
    "partition": 8,
    "argpartition": 9,
    "unique": 16,
    "bincount": 4,
}
#: What waits for the device although it returns no number to the host: the length of its result is one.
SYNCHRONIZES = frozenset({"nonzero", "mask", "unique", "bincount"})


@dataclass
class Costs:
    """What was counted; `by_name` has the launches of each kernel or call."""

    by_name: Counter[str] = field(default_factory=Counter)
    synchronizations: int = 0
    uploaded: int = 0
    downloaded: int = 0

    @property
    def launches(self) -> int:
        """Launches of all."""
        return self.by_name.total()

    def __sub__(self, other: Costs) -> Costs:
        return Costs(
            self.by_name - other.by_name,
            self.synchronizations - other.synchronizations,
            self.uploaded - other.uploaded,
            self.downloaded - other.downloaded,
        )

    def copy(self) -> Costs:
        """What was counted until now."""
        return Costs(Counter(self.by_name), self.synchronizations, self.uploaded, self.downloaded)


_lock = threading.Lock()
_counting: list[Costs] = []


@contextmanager
def counted() -> Iterator[Costs]:
    """Count within this context, in all threads."""
    costs = Costs()
    _counting.append(costs)
    try:
        yield costs
    finally:
        _counting.remove(costs)


def launched(name: str, times: int | None = None) -> None:
    """Note a kernel, or a call of CuPy's that launches what `LAUNCHES` says."""
    with _lock:
        for costs in _counting:
            costs.by_name[name] += LAUNCHES.get(name, 1) if times is None else times
            costs.synchronizations += name in SYNCHRONIZES


def synchronized() -> None:
    """Note that the host waited for the stream it computes on."""
    with _lock:
        for costs in _counting:
            costs.synchronizations += 1


def copied(uploaded: int = 0, downloaded: int = 0) -> None:
    """Note bytes sent to the device, or fetched from it."""
    with _lock:
        for costs in _counting:
            costs.uploaded += uploaded
            costs.downloaded += downloaded
