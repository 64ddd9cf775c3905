"""Choices that are measured: which form of a search is fastest for some rows, found once and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from hkm_dask.compute.block_cache import host_cache

#: Numbers of coordinates tried as the head of a pruned search.
_HEADS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512)

_choosing = threading.Lock()


def chosen_once(group: Hashable, key: Hashable, budget: int, measure: Callable[[], Any] | None = None) -> Any:
    """Return a choice made before, or measure it: one thread measures, others wait for what it chooses.

    Parameters
    ----------
    group : hashable
        What the choice is forgotten with, such as the name of a geometry.
    key : hashable
    budget : int
        Bytes that all the process remembers may take; a choice takes none.
    measure : callable, optional
        Makes the choice; without it nothing is measured.

    Returns
    -------
    object
        None where the choice is neither known nor to be measured.
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


def best_head(n_features: int, seconds: Callable[[int], float]) -> int:
    """Find the fastest number of coordinates in the head of the product; 0 for the plain form.

    From a third of the features downhill: with a longer head each pair costs more, with a shorter one more are left.

    Parameters
    ----------
    n_features : int
    seconds : callable
        Time of a search with so many coordinates in its head; called once for each that is tried.

    Returns
    -------
    int

    Examples
    --------
    >>> best_head(96, lambda n_head: 1.0 + abs(n_head - 48) if n_head else 99.0)
    48
    """
    times: dict[int, float] = {}

    def time_of(n_head: int) -> float:
        if n_head not in times:
            times[n_head] = seconds(n_head)
        return times[n_head]

    ladder = [*(n for n in _HEADS if n <= 0.6 * n_features), n_features]
    at = int(np.abs(np.array(ladder) - n_features / 3).argmin())
    for step in (-1, 1):
        while 0 <= at + step < len(ladder) and time_of(ladder[at + step]) < time_of(ladder[at]):
            at += step
    return min(ladder[at], 0, key=time_of)
