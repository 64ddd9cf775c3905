"""Rows in device memory are used from there."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.block_cache import device_cache, forget
from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.partition import Part
from hkm_dask.compute.placement import discard, gather, take_rows
from hkm_dask.compute.resident import take
from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.hierarchy.assign import LevelRows, assign
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.search.geometry import make_geometry
from hkm_dask.search.worker import worker_engine
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import Stored, groups, twice

N = 300
INDEX = np.flatnonzero(np.random.default_rng(0).random(N) < 0.4)


def put_on_device(rows: Stored, n_rows: int, n_blocks: int = 3) -> None:
    """Have the first rows pass through the device in blocks, as a pass over them does."""
    cuts = tuple(n_rows * i // n_blocks for i in range(n_blocks + 1))
    for _ in worker_engine().blocks(Part(rows, cuts, 1 << 30)):
        pass


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_on_the_device_are_not_read_again(cuda: Any, dtype: type) -> None:
    array = groups(N, 8, dtype)
    rows = Stored(array)
    put_on_device(rows, 200)
    rows.n_reads = 0
    some = INDEX[INDEX < 200]
    np.testing.assert_array_equal(take(rows, some), array[some])
    assert rows.n_reads == (dtype is np.float64)  # the device has them in float32
    np.testing.assert_array_equal(take(rows, INDEX), array[INDEX])
    np.testing.assert_array_equal(take(SubsetRows(rows, INDEX), np.arange(5)), array[INDEX[:5]])


@pytest.mark.parametrize("n_resident", [N, 200])
def test_some_rows_of_those_on_the_device_are_gathered_there(cuda: Any, emulator: Emulator, n_resident: int) -> None:
    array = groups(N, 8, np.float16)
    rows = Stored(array)
    put_on_device(rows, n_resident)
    rows.n_reads = 0
    with Runner(n_threads=1) as runner:
        some = gather(rows, INDEX, runner)
        assert isinstance(some, SubsetRows)
        (part,) = runner.split(some, 4)
        with costs.counted() as spent:
            for _ in worker_engine().blocks(part):
                pass
        assert (spent.uploaded, spent.downloaded) == ((8 if n_resident == N else 2 * 8) * len(INDEX), 0)
        for _ in range(2):
            blocks = sorted(worker_engine().blocks(part), key=lambda block: block[0])
            np.testing.assert_array_equal(np.concatenate([block.get() for _, block in blocks]), array[INDEX])
        discard(some)
    assert rows.n_reads == (n_resident < N)


@pytest.mark.usefixtures("little_work_on_the_device")
def test_a_step_on_resampled_rows_reads_nothing(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array, centroids = groups(N, 16, np.float16), groups(12, 16, seed=3)
    n_reads = []

    def compute() -> list[np.ndarray]:
        rows = Stored(array)
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(rows, runner, n_clusters=12)
            level = LevelRows(rows, N, geometry, chunk_rows=100)
            chosen = assign(level, centroids, run="r", runner=runner, r=9).chosen
            assert chosen is not None
            rows.n_reads = 0
            members = gather(rows, chosen, runner)
            settings = Settings(12, init="random", max_iter=1)
            centers = fit(members, settings, geometry=geometry, runner=runner).centroids
            taken = take_rows(rows, INDEX, runner)
            n_reads.append(rows.n_reads)
            return [chosen.read(), centers, taken]

    for on_cpu, on_device in zip(*twice(cuda, monkeypatch, compute), strict=True):
        np.testing.assert_array_equal(on_device, on_cpu)
    assert n_reads[1] == 0
    assert device_cache.used > 0


def test_rows_are_copied_where_the_device_or_the_host_lacks_room(cuda: Any) -> None:
    rows = Stored(groups(N, 8, np.float16))
    n_bytes = int(np.ceil((N + len(INDEX)) * (2 * 8 + 48) / 0.75))
    with Runner(n_threads=1) as runner:
        needs = runner.input_bytes(SubsetRows(rows, INDEX)) + 1000
        for device_budget, memory_budget, stays in (
            (n_bytes, needs, True), (n_bytes - 1, needs, False), (n_bytes, needs - 1, False)
        ):  # fmt: skip
            runner.device_budget, runner.memory_budget = device_budget, memory_budget
            some = gather(rows, INDEX, runner, StageBytes(1000))
            assert isinstance(some, SubsetRows) is stays
            np.testing.assert_array_equal(some.read(0, some.n_rows), rows.array[INDEX])
            forget(some.key)
            discard(some)
