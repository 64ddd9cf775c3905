"""Members of clusters in the layout of compressed sparse rows: an array of row numbers, and the clusters' offsets.

Tasks sort shares made up of whole chunks, and write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.memory import sort_stage
from hkm_dask.compute.runner import Runner
from hkm_dask.data.chunks import open_array
from hkm_dask.data.objects import Location
from hkm_dask.hierarchy.sorting import selection
from hkm_dask.hierarchy.sorting.external_sort import (
    Records,
    Run,
    Share,
    find_splitters,
    n_at_once,
    rows_at_once,
    shares_between,
)
from hkm_dask.search.smallest import bounds_of_labels
from hkm_dask.search.worker import engine_for

#: Floating-point operations that take as long as sorting one row.
_SORTED_FLOPS = 1e3


def starts(sizes: NDArray[Any]) -> NDArray[np.int64]:
    """Return the offsets of consecutive runs of these sizes, with the end of the last.

    >>> starts(np.array([2, 0, 3]))
    array([0, 2, 2, 5])
    """
    bounds = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=bounds[1:])
    return bounds


def _write_members(path: str, shares: Sequence[Share]) -> None:
    """Task: sort shares, which make up whole chunks of the array at `path`, and write their row numbers."""
    array = open_array(path)
    if len(shares) == 1:
        array.write(shares[0].start, _sorted_rows(shares[0]))
        return
    with array.writer(shares[0].start // array.spec.chunk_rows) as chunk:
        for share in shares:
            chunk.append(_sorted_rows(share))


def _sorted_rows(share: Share) -> NDArray[np.int64]:
    records = share.read()
    return records.rows[order_of(records)]


def order_of(records: Records) -> NDArray[np.int64]:
    """Return positions of rows sorted by cluster, then distance (whose bits are the keys), then row.

    May overwrite the labels.
    """
    engine = engine_for(_SORTED_FLOPS * len(records.rows))
    on_device = engine.order(records.labels, records.keys)
    if on_device is not None:
        return on_device
    order = np.empty(len(records.rows), np.int64)
    if len(order):
        distances = records.keys.astype(np.uint32).view(np.float32)
        records.labels[...] -= records.labels.min()
        n_clusters = int(records.labels.max()) + 1
        indptr = bounds_of_labels(records.labels, n_clusters)
        selection.group_members(records.labels, distances, indptr, 0, n_clusters, order)
    return order


def chunk_cuts(n_rows: int, chunk_rows: int, at_once: int) -> list[NDArray[np.int64]]:
    """Return the positions at which each task cuts its rows, the first and last of which lie between chunks.

    A task sorts `at_once` rows together: some chunks, or one part after another of a larger chunk.

    >>> [task.tolist() for task in chunk_cuts(10, 3, 7)], [task.tolist() for task in chunk_cuts(10, 6, 3)]
    ([[0, 6], [6, 10]], [[0, 3, 6], [6, 9, 10]])
    """
    step = max(1, at_once // chunk_rows) * chunk_rows
    tasks = [(low, min(low + step, n_rows)) for low in range(0, n_rows, step)]
    size = step if at_once >= chunk_rows else at_once
    return [np.append(np.arange(low, high, size), high) for low, high in tasks]


def write_members(path: Location, runs: Sequence[Run], indptr: NDArray[np.int64], n_total: int, runner: Runner) -> None:
    """Write the members of each cluster, closest first, to an array whose chunks are not written yet.

    `runs` hold the rows that have a label, out of `n_total`, with their distances.
    """
    n_rows = int(indptr[-1])
    if not n_rows:
        return
    tasks = chunk_cuts(n_rows, open_array(path).spec.chunk_rows, n_at_once(n_rows, runner))
    places = np.unique(np.concatenate([np.zeros(1, np.int64), *tasks]))
    clusters = np.searchsorted(indptr, places[1:-1], side="right") - 1
    splitters = find_splitters(
        runs, clusters.astype(np.int32), places[1:-1] - indptr[clusters], key_bits=32, n_rows=n_total, runner=runner,
        stage="members",
    )  # fmt: skip
    with shares_between(places, splitters, runs, runner=runner, stage="members") as shares:
        first = np.searchsorted(places, [task[0] for task in tasks])
        items = [shares[low : low + len(task) - 1] for low, task in zip(first.tolist(), tasks, strict=True)]
        runner.map(partial(_write_members, str(path)), items, stage="members", takes=sort_stage(rows_at_once(runner)))
