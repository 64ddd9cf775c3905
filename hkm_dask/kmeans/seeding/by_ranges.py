"""Seeds of a k-means whose clusters are shared out in ranges: rows drawn at random, each range gathered by a task."""

from __future__ import annotations

import itertools
import uuid
from functools import partial

import numpy as np

from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.range_memory import gathering_bytes, range_offsets, rows_of_range, seeding_by_ranges
from hkm_dask.compute.resident import take
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray, SharedArrayStore, SharedPieces
from hkm_dask.data.rows import Rows
from hkm_dask.errors import InputError
from hkm_dask.kmeans.seeding.random_rows import random_rows

#: Seedings that need no more than a range of clusters at a time.
INITS = ("random",)


def _gather_range(
    rows: Rows, numbers: SharedArray, n_numbers: int, store: SharedArrayStore, name: str,
    item: tuple[int, tuple[int, int]],
) -> SharedArray:  # fmt: skip
    """Task: gather the rows of one range of clusters; NaN where there are fewer rows than clusters."""
    number, (first, stop) = item
    centroids = np.full((stop - first, rows.n_features), np.nan, np.float32)
    some = numbers.read(min(first, n_numbers), min(stop, n_numbers))
    centroids[: len(some)] = take(rows, some)
    return store.put(f"{name}-{number}", centroids)


def seed_by_ranges(rows: Rows, n_clusters: int, n_ranges: int, *, init: str, key: int, runner: Runner) -> SharedPieces:
    """Choose where k-means starts, to the bits of `seed.seed`, whose parameters these are; the caller deletes them."""
    if init not in INITS:
        raise InputError(f"init={init!r} should be 'random' for centroids that no worker holds; give that")
    stage = seeding_by_ranges(runner.n_own(rows), n_clusters, rows.n_features, n_ranges)
    runner.make_room_for(stage)
    numbers = random_rows(rows, n_clusters, key=key, runner=runner)
    name, store = uuid.uuid4().hex, runner.scratch_store(4 * n_clusters * rows.n_features)
    offsets = range_offsets(n_clusters, n_ranges)
    takes = StageBytes(0, gathering_bytes(rows_of_range(n_clusters, n_ranges), rows.n_features))
    with store.lent("numbers", numbers) as shared:
        gather = partial(_gather_range, rows, shared, len(numbers), store, f"centroids-{name}")
        arrays = runner.map(gather, list(enumerate(itertools.pairwise(offsets))), stage="gather", takes=takes)
    return SharedPieces(store.series(f"centroids-{name}", arrays), offsets)
