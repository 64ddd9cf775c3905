"""Shares of the rows for workers: the same in every pass, and proportional to the speed of the worker."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from hkm_dask.compute.jit_child import compile_in_children
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import run_task
from hkm_dask.errors import StoreError

#: Shares are recomputed if the slowest worker takes this many times as long as equal finish times would: rows that move
#: to another worker are read again there, and searched without cached data.
_UNEVEN = 1.2
#: Passes for which the share of a dead worker is kept for a replacement.
_KEPT_FOR = 3


@dataclass
class _Share:
    worker: str
    n_threads: int
    weight: float  # speed of the worker, its number of threads until it has been measured
    n_missed: int = 0  # passes since the worker died


class WorkerShares:
    """A contiguous share of the rows for each worker, proportional to its speed.

    The share of a dead worker is kept for a replacement; until then the other workers, which keep theirs, process it,
    and after a few passes it is given up. Additional workers get shares in the middle, where the fewest rows change
    owner.

    >>> shares = WorkerShares({"a": 1, "b": 3})
    >>> places = np.array([0.1, 0.3, 0.6, 0.9])
    >>> shares.owners(places, {"a": 1, "b": 3}), shares.ends(4).tolist()
    (['a', 'b', 'b', 'b'], [0.25, 0.5, 0.75, 1.0])
    >>> shares.owners(places, {"b": 3, "c": 1}), shares.owners(places, {"b": 3})
    (['c', 'b', 'b', 'b'], ['b', 'b', 'b', 'b'])
    """

    def __init__(self, threads: Mapping[str, int]) -> None:
        self._shares = [_Share(worker, n, float(n)) for worker, n in sorted(threads.items())]
        self.n_cuts = 0  # how often the shares have changed, so that users know when to cut rows again
        self._n_cuts_weighed = 0

    @property
    def threads(self) -> list[int]:
        """Threads of each worker that has a share."""
        return [share.n_threads for share in self._shares]

    def ends(self, most: int) -> np.ndarray:
        """Return the ends of the parts of all threads, `most` per worker, as shares of the rows; float64, last 1."""
        n_parts = [min(share.n_threads, most) for share in self._shares]
        each = np.repeat([share.weight / n for share, n in zip(self._shares, n_parts, strict=True)], n_parts)
        ends = np.cumsum(each / each.sum())
        ends[-1] = 1.0
        return ends

    def owners(self, places: np.ndarray, threads: Mapping[str, int]) -> list[str]:
        """Choose a worker for each of some positions in [0, 1); `threads` are those of the current workers."""
        self._assign(threads)
        chosen, within = _find(places, [share.weight for share in self._shares])
        present = [share for share in self._shares if share.worker in threads]
        stand_ins, _ = _find(within, [share.weight for share in present])
        return [
            (self._shares[i] if self._shares[i].worker in threads else present[j]).worker
            for i, j in zip(chosen.tolist(), stand_ins.tolist(), strict=True)
        ]

    def _assign(self, threads: Mapping[str, int]) -> None:
        """Give shares to workers that have joined, and give up shares that were vacant for too long."""
        present = [share for share in self._shares if share.worker in threads]
        speed = float(np.median([share.weight / share.n_threads for share in present or self._shares]))
        vacant = [share for share in self._shares if share.worker not in threads]
        for worker in sorted(set(threads) - {share.worker for share in self._shares}):
            share = _Share(worker, threads[worker], speed * threads[worker])
            if vacant:
                i = self._shares.index(vacant.pop(0))
                self.n_cuts += share.weight != self._shares[i].weight
                self._shares[i] = share
            else:
                self._shares.insert(len(self._shares) // 2, share)
                self.n_cuts += 1
        for share in vacant:
            share.n_missed += 1
            if share.n_missed > _KEPT_FOR:
                self._shares.remove(share)
                self.n_cuts += 1

    def weigh(self, speeds: Mapping[str, float]) -> None:
        """Recompute the shares from measured speeds, in rows per second, if that pays off.

        Speeds measured right after a change of shares are ignored, as rows had moved.
        """
        changed, self._n_cuts_weighed = self._n_cuts_weighed != self.n_cuts, self.n_cuts
        if changed or any(share.worker not in speeds for share in self._shares):
            return
        measured = np.array([speeds[share.worker] for share in self._shares])
        weights = np.array([share.weight for share in self._shares])
        if (weights / measured).max() * measured.sum() / weights.sum() >= _UNEVEN:
            for share, speed in zip(self._shares, measured.tolist(), strict=True):
                share.weight = speed
            self.n_cuts += 1


def _find(places: np.ndarray, weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the share that contains each position in [0, 1), and the relative position within that share."""
    ends = np.cumsum(weights) / np.sum(weights)
    chosen = np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)
    begins = np.concatenate([[0], ends[:-1]])[chosen]
    return chosen, (places - begins) / (ends[chosen] - begins)


def places_of(items: Sequence[Any]) -> np.ndarray:
    """Return the positions of items in [0, 1): of parts by their rows, of others evenly spaced."""
    if items and isinstance(items[0], Part):
        return np.array([(part.start + part.stop) / (2 * part.rows.n_rows) for part in items])
    return (np.arange(len(items)) + 0.5) / len(items)


class _Tally:
    """Rows processed by tasks of this process, and the thread-seconds that this took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.rows, self.seconds = 0, 0.0

    def add(self, rows: int, seconds: float) -> None:
        with self._lock:
            self.rows += rows
            self.seconds += seconds

    def take(self) -> float:
        """Return the rows per second of one thread since the last call, 0 if there were none."""
        with self._lock:
            speed = self.rows / self.seconds if self.seconds else 0.0
            self.rows, self.seconds = 0, 0.0
            return speed


_tally = _Tally()


def has_nanny() -> bool:
    """Tell whether this process is a worker watched by a nanny, which restarts it when it ends."""
    if "distributed" not in sys.modules:
        return False
    from distributed import get_worker

    try:
        return get_worker().nanny is not None
    except ValueError:
        return False


@contextmanager
def named_worker() -> Iterator[None]:
    """Name this worker in errors of files and object stores, which may fail on one host only."""
    from distributed import get_worker

    try:
        yield
    except StoreError as error:
        if error.__cause__ is None:
            raise
        raise StoreError(f"{error} (worker {get_worker().address})") from error.__cause__


def run_timed(task: Callable[[Any], Any], item: Any, memory_budget: int) -> Any:
    """Run a task on a worker as `run_task` does, and record the time it took for its rows."""
    if has_nanny():
        compile_in_children()
    begin = time.perf_counter()
    with named_worker():
        result = run_task(task, item, memory_budget)
    if isinstance(item, Part):
        _tally.add(item.stop - item.start, time.perf_counter() - begin)
    return result


def take_speed() -> float:
    """Return the rows per second of a thread of this process since the last call; 0 if there were none."""
    return _tally.take()
