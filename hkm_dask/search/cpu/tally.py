"""Counts of the work done by searches on CPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Numbers of scores (pairs of row and centroid), of distances computed directly, and of multiplications to rotate.

    >>> with counting() as tally:
    ...     count(pairs=6)
    ...     count(projected=2)
    >>> tally.pairs, tally.measured, tally.projected
    (6, 0, 2)
    """

    pairs: int = 0
    measured: int = 0
    projected: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, pairs: int, measured: int, projected: int) -> None:
        """Add to the counts; safe to call from several threads."""
        with self._lock:
            self.pairs += pairs
            self.measured += measured
            self.projected += projected


_tallies: list[Tally] = []


def count(*, pairs: int = 0, measured: int = 0, projected: int = 0) -> None:
    """Add to the counts of all tallies that are active."""
    for tally in _tallies:
        tally.add(pairs, measured, projected)


@contextmanager
def counting() -> Iterator[Tally]:
    """Count the work of all threads of this process."""
    tally = Tally()
    _tallies.append(tally)
    try:
        yield tally
    finally:
        _tallies[:] = [one for one in _tallies if one is not tally]
