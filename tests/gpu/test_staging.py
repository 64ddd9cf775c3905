"""Blocks of rows on a device: resident, streamed, and out of memory."""

from collections import deque
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute import staging
from hkm_dask.compute.block_cache import device_cache, host_cache
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.staging import iter_device_blocks, ran_out
from hkm_dask.errors import ComputeError
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.search.geometry import make_geometry
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import Stored, groups, twice


@pytest.mark.parametrize("budget", ["1KiB", "20KiB", "64MiB"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_blocks_on_the_device_are_the_rows(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, budget: str, dtype: type
) -> None:
    monkeypatch.setenv("HKM_DEVICE_MEMORY", budget)
    rows = Stored(groups(100, 8, dtype))
    part = Part(rows, (0, 10, 35, 36, 60, 100), budget=1 << 20)
    for _ in range(3):
        actual = np.zeros((100, 8), np.float32)
        for start, block in iter_device_blocks(part):
            actual[start : start + len(block)] = block.get()
        np.testing.assert_array_equal(actual, rows.array.astype(np.float32))
    assert rows.n_reads == 5  # what the device has no room for stays in host memory


def test_blocks_that_fit_stay_on_the_device_and_come_first(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HKM_DEVICE_MEMORY", "5KiB")
    rows = Stored(groups(60, 8))
    part = Part(rows, (0, 20, 40, 60), budget=0)
    orders = [[start for start, _ in iter_device_blocks(part)] for _ in range(3)]
    kept = [pair for pair in [(0, 20), (20, 40), (40, 60)] if device_cache.get(rows.key, pair) is not None]
    assert 0 < len(kept) < 3
    assert orders[1][: len(kept)] == [start for start, _ in kept]
    assert rows.n_reads == 3 + 2 * (3 - len(kept))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_what_stays_in_host_memory_is_sent_from_where_it_lies(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    monkeypatch.setenv("HKM_DEVICE_MEMORY", "1KiB")
    rows = Stored(groups(100, 8, dtype))
    part = Part(rows, (0, 30, 60, 100), budget=1 << 20)
    host_cache.put(rows.key, (0, 30), rows.array[:30], rows.array[:30].nbytes, part.budget)  # by a pass on the host
    deque(iter_device_blocks(part), maxlen=0)
    for buffer in staging._staging().pinned:
        if buffer._memory is not None:
            buffer._memory[:] = 0x7F
    with costs.counted() as spent:
        for start, block in iter_device_blocks(part):
            expected = rows.array[start : start + len(block)].astype(block.dtype)
            np.testing.assert_array_equal(block.get(), expected)
    assert rows.n_reads == 2
    assert spent.uploaded == 100 * 8 * staging.device_dtype(rows.dtype).itemsize
    buffers = [buffer._memory for buffer in staging._staging().pinned]
    assert all(memory is None or (memory == 0x7F).all() for memory in buffers)
    kept = host_cache.blocks(rows.key)
    assert [pair for pair, _ in kept] == [(0, 30), (30, 60), (60, 100)]
    assert part.budget - host_cache.room(rows.key, part.budget) == sum(block.nbytes for _, block in kept)


def test_a_system_that_pins_no_more_is_served_through_the_buffers(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size: int, flags: int = 0) -> None:
        raise cuda.cuda.runtime.CUDARuntimeError(2)

    monkeypatch.setattr(cuda.cuda, "PinnedMemory", refuse)
    monkeypatch.setenv("HKM_DEVICE_MEMORY", "1KiB")
    rows = Stored(groups(100, 8))
    for _ in range(2):
        for start, block in iter_device_blocks(Part(rows, (0, 60, 100), budget=1 << 20)):
            np.testing.assert_array_equal(block.get(), rows.array[start : start + len(block)])
    assert rows.n_reads == 4


def test_settings_of_the_device_that_make_no_sense_are_refused(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(Stored(groups(10, 8)), (0, 10), budget=0)
    monkeypatch.setenv("HKM_DEVICE_MEMORY", "plenty")
    with pytest.raises(ComputeError, match="HKM_DEVICE_MEMORY='plenty' should be a number of bytes"):
        list(iter_device_blocks(part))


def test_cupys_own_error_says_that_device_memory_ran_out(cuda: Any) -> None:
    assert ran_out(cuda.cuda.memory.OutOfMemoryError(1, 1, 1))


@pytest.mark.usefixtures("little_work_on_the_device")
@pytest.mark.parametrize("allocator", ["cupy", pytest.param("rmm", marks=pytest.mark.slow)])
def test_a_fit_keeps_less_on_a_device_that_turns_out_too_small(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, allocator: str
) -> None:
    emulator.allocate_with(allocator)
    array = groups(600, 32)

    def compute() -> Any:
        rows = Stored(array)
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(rows, runner, n_clusters=20)
            return fit(rows, Settings(20, max_iter=3), geometry=geometry, runner=runner).centroids

    monkeypatch.setattr("hkm_dask.compute.memory.block_bytes", lambda *_: 1 << 14)
    with monkeypatch.context() as patch:
        patch.setenv("HKM_DEVICE_MEMORY", "1GiB")  # which it has not
        emulator.limit_memory(cuda.get_default_memory_pool().used_bytes() + 150_000)  # rows and operands take more
        on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device, on_cpu)
    assert staging._most_resident is not None
    emulator.limit_memory(20_000)
    with pytest.raises(ComputeError, match=r"out of device memory \(.*\); free some"):
        compute()
