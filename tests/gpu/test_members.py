"""Members sorted by cluster on a device: the same order as on the CPU."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.hierarchy.sorting import members
from hkm_dask.hierarchy.sorting.external_sort import Records
from hkm_dask.hierarchy.sorting.members import order_of
from hkm_dask.search.worker import worker_engine
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import twice


def records_of(n: int, n_clusters: int, n_distances: int, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    distances = rng.random(n_distances).astype(np.float32)[rng.integers(n_distances, size=n)]
    distances[::7] = 0.0
    labels = rng.integers(5, 5 + n_clusters, size=n).astype(np.int32)
    return Records(np.arange(100, 100 + n), distances.view(np.uint32).astype(np.uint64), labels)


@pytest.mark.usefixtures("little_work_on_the_device")
@pytest.mark.parametrize(("n", "n_clusters", "n_distances"), [(5000, 40, 9), (5000, 1, 5000), (800, 2**31 - 6, 3)])
def test_members_are_in_the_order_of_the_cpu(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, n: int, n_clusters: int, n_distances: int
) -> None:
    records = records_of(n, n_clusters, n_distances)
    expected = np.lexsort((records.rows, records.keys, records.labels))
    if n_clusters < n:  # a counting sort has a place for every label
        on_cpu, _ = twice(cuda, monkeypatch, lambda: order_of(records_of(n, n_clusters, n_distances)))
        np.testing.assert_array_equal(on_cpu, expected)
    np.testing.assert_array_equal(order_of(records), expected)
    np.testing.assert_array_equal(worker_engine().order(records.labels, records.keys), expected)  # not None


def test_few_rows_are_sorted_by_a_processor(cuda: Any, emulator: Emulator) -> None:
    with costs.counted() as spent:
        order_of(records_of(500, 9, 9))
    assert not spent.launches


@pytest.mark.parametrize("allocator", ["cupy", "rmm"])
@pytest.mark.parametrize(
    "n_bytes", [30_000, 100_000]
)  # for no keys; for these and places, and not for what a sort takes
def test_where_device_memory_runs_out_a_processor_sorts(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, allocator: Any, n_bytes: int
) -> None:
    monkeypatch.setattr(members, "_SORTED_FLOPS", 1e6)
    expected = order_of(records_of(3000, 9, 9))
    emulator.allocate_with(allocator)
    emulator.limit_memory(cuda.get_default_memory_pool().used_bytes() + n_bytes)
    np.testing.assert_array_equal(order_of(records_of(3000, 9, 9)), expected)
