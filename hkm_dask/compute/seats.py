"""Who has which share of the rows: neighbors, the same in every pass, and more of them for workers that are faster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import run_task

#: Shares are cut anew where the slowest worker takes so many times what all would if they ended together: rows that go
#: to another worker are read again there, and searched without what was remembered of them.
_UNEVEN = 1.2


@dataclass
class _Seat:
    worker: str
    weight: float  # how fast the worker is, by threads until it has been measured


class Seats:
    """A seat for each worker, side by side along the rows; its share is as wide as the worker is fast.

    A seat whose worker has died is kept for one that comes; until then its share is dealt out among the others, who
    keep theirs. Workers that come beside these get seats in the middle, where the fewest rows change hands.

    Examples
    --------
    >>> seats = Seats()
    >>> seats.owners(4, {"a": 1, "b": 3})
    ['a', 'b', 'b', 'b']
    >>> seats.owners(4, {"b": 3, "c": 1}), seats.owners(4, {"b": 3})
    (['c', 'b', 'b', 'b'], ['b', 'b', 'b', 'b'])
    """

    def __init__(self) -> None:
        self._seats: list[_Seat] = []
        self._changed = False  # since speeds were last looked at

    def owners(self, n_items: int, threads: Mapping[str, int]) -> list[str]:
        """Choose the worker of each of some items in a row; `threads` are those of the workers there are."""
        self._seat(threads)
        places = (np.arange(n_items) + 0.5) / n_items
        chosen, within = _find(places, [seat.weight for seat in self._seats])
        there = [seat for seat in self._seats if seat.worker in threads]
        stand_ins, _ = _find(within, [seat.weight for seat in there])
        return [
            self._seats[i].worker if self._seats[i].worker in threads else there[j].worker
            for i, j in zip(chosen.tolist(), stand_ins.tolist(), strict=True)
        ]

    def _seat(self, threads: Mapping[str, int]) -> None:
        """Give seats to workers that have come."""
        taken = {seat.worker for seat in self._seats}
        vacant = [seat for seat in self._seats if seat.worker not in threads]
        a_thread = float(np.median([s.weight / threads[s.worker] for s in self._seats if s.worker in threads] or [1.0]))
        for worker in sorted(set(threads) - taken):
            seat = _Seat(worker, a_thread * threads[worker])
            self._changed = bool(taken)
            if vacant:
                self._seats[self._seats.index(vacant.pop(0))] = seat
            else:
                self._seats.insert(len(self._seats) if not taken else len(self._seats) // 2, seat)

    def weigh(self, speeds: Mapping[str, float]) -> bool:
        """Cut the shares by measured speeds, in rows a second, where that pays; tell whether it was done.

        What is measured right after shares have changed does not count, as rows came to new places.
        """
        changed, self._changed = self._changed, False
        if changed or any(seat.worker not in speeds for seat in self._seats):
            return False
        measured = np.array([speeds[seat.worker] for seat in self._seats])
        weights = np.array([seat.weight for seat in self._seats])
        if (weights / measured).max() * measured.sum() / weights.sum() < _UNEVEN:
            return False
        for seat, speed in zip(self._seats, measured.tolist(), strict=True):
            seat.weight = speed
        self._changed = True
        return True


def _find(places: np.ndarray, weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Find the share in which each place in [0, 1) is, and where in that share."""
    ends = np.cumsum(weights) / np.sum(weights)
    chosen = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
    begins = np.concatenate([[0], ends[:-1]])[chosen]
    return chosen, (places - begins) / (ends[chosen] - begins)


class _Tally:
    """Rows that tasks of this process went over, and the seconds of its threads that this took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.rows, self.seconds = 0, 0.0

    def add(self, rows: int, seconds: float) -> None:
        with self._lock:
            self.rows += rows
            self.seconds += seconds

    def take(self) -> float:
        """Rows a second of one thread since it was last asked, 0 if there were none."""
        with self._lock:
            speed = self.rows / self.seconds if self.seconds else 0.0
            self.rows, self.seconds = 0, 0.0
            return speed


_tally = _Tally()


def run_timed(task: Callable[[Any], Any], item: Any, memory_budget: int) -> Any:
    """Run a task as `run_task` does, and remember how long it took for its rows."""
    begin = time.perf_counter()
    result = run_task(task, item, memory_budget)
    if isinstance(item, Part):
        _tally.add(item.stop - item.start, time.perf_counter() - begin)
    return result


def take_speed() -> float:
    """Rows a second that a thread of this process went over since this was last asked; 0 if there were none."""
    return _tally.take()
