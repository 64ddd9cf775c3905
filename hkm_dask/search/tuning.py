"""Measured choices: the fastest form of a search for some rows is measured once and remembered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from hkm_dask.compute.block_cache import host_cache

#: Head lengths of a pruned search that are tried.
_HEADS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)

_choosing = threading.Lock()


def chosen_once(group: Hashable, key: Hashable, budget: int, measure: Callable[[], Any] | None = None) -> Any:
    """Return a choice made before, or measure it: one thread measures while others wait for its result.

    The choice is dropped together with its group, such as the name of a geometry. Without `measure`, an unknown choice
    is None. `budget` is the size limit in bytes of the process's cache; a choice takes no space.
    """
    choice = host_cache.get(group, key)
    if choice is not None or measure is None:
        return choice
    with _choosing:
        choice = host_cache.get(group, key)
        if choice is None:
            choice = measure()
            host_cache.put(group, key, choice, 0, budget)
    return choice


def search_seconds(index: Any, rows: Any, labels: Any, distances: Any, operand: Any) -> float:
    """Time a search that leaves labels and distances unchanged."""
    labels, distances = labels.copy(), distances.copy()
    begin = time.perf_counter()
    index.nearest(rows, labels, distances, operand)
    return time.perf_counter() - begin


def best_head(n_features: int, seconds: Callable[[int], float], columns: int = 16) -> int:
    """Find the fastest number of coordinates in the head of the product; 0 means the plain form.

    The search starts at a third of the features and descends: a longer head makes each pair cost more, a shorter one
    excludes fewer pairs. `seconds` times a search with a given head, a multiple of `columns` or all features, and is
    called once for each length tried.

    >>> best_head(96, lambda n_head: 1.0 + abs(n_head - 48) if n_head else 99.0)
    48
    """
    times: dict[int, float] = {}

    def time_of(n_head: int) -> float:
        if n_head not in times:
            times[n_head] = seconds(n_head)
        return times[n_head]

    ladder = [*(n for n in _HEADS if n % columns == 0 and n <= 0.6 * n_features), n_features]
    at = int(np.abs(np.array(ladder) - n_features / 3).argmin())
    for step in (-1, 1):
        while 0 <= at + step < len(ladder) and time_of(ladder[at + step]) < time_of(ladder[at]):
            at += step
    return min(ladder[at], 0, key=time_of)
