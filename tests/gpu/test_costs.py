"""Overhead of a pass: launches, synchronizations, bytes sent to the device."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.compute import staging
from hkm_dask.compute.memory import DEVICE_ROW_BYTES
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.lloyd import iterate
from hkm_dask.search.cuda import hopper as cuda_hopper
from hkm_dask.search.cuda import index as cuda_index
from hkm_dask.search.cuda import kernels as cuda_kernels
from hkm_dask.search.cuda.engine import CudaEngine, CudaSearch
from hkm_dask.search.cuda.index import CudaIndex
from hkm_dask.search.cuda.traffic import lloyd_traffic
from hkm_dask.search.engine import Assignment, RowTile
from hkm_dask.search.geometry import make_geometry
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import Stored, geometry_of, groups, search_on_cpu


@pytest.mark.parametrize(("form", "dtype"), [("fused", np.float16), ("fused", np.float32), ("hopper", np.float32)])
def test_a_block_in_the_middle_of_a_fit_takes_few_launches(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, form: str, dtype: type
) -> None:
    table = Stored(groups(1200, 16, dtype))
    start = table.array[np.random.default_rng(2).choice(1200, 24, replace=False)].astype(np.float32)
    passes: list[list[costs.Costs]] = []
    blocks = CudaEngine.blocks

    def marked(engine: CudaEngine, part: Any) -> Iterator[tuple[int, Any]]:
        passes.append([])
        for block in blocks(engine, part):
            passes[-1].append(spent.copy())
            yield block
        passes[-1].append(spent.copy())

    monkeypatch.setattr(CudaEngine, "blocks", marked)
    monkeypatch.setattr(CudaSearch, "form", lambda *_: form)
    monkeypatch.setattr(cuda_hopper, "LEAST_FOR_GATHERED", 16)
    monkeypatch.setattr("hkm_dask.compute.memory.block_bytes", lambda *_: 300 * table.row_bytes)
    with costs.counted() as spent, Runner(n_threads=1) as runner:
        geometry = make_geometry(table, runner, n_clusters=24)
        iterate(table, start, geometry=geometry, runner=runner, max_iter=5, tol=0.0)
    assert len(passes) == 5
    # The first block of a pass has the centroids made ready to be searched.
    steady = [after - before for marks in passes[2:] for before, after in itertools.pairwise(marks[1:])]
    assert len(steady) == 3 * 3
    assert sum(block.by_name["settle"] for block in steady) > 0
    kernel = "nearest_two" if form == "fused" else "nearest_two_hopper"
    assert sum(block.by_name[kernel] for block in steady) > len(steady)
    for block in steady:
        assert block.synchronizations <= 2
        assert block.launches <= 12, block.by_name
        assert block.uploaded == 0
    kernels = {name for block in steady for name in block.by_name} - {"take", "gemm"}  # these two belong to `settle`
    expected = lloyd_traffic(1200, 24, 16)
    assert {name.removesuffix("_hopper") for name in kernels} == set(expected.by_kernel)
    for before, after in itertools.pairwise(marks[0] for marks in passes[2:]):  # a whole iteration
        beside = (after - before).uploaded - expected.uploaded, (after - before).downloaded - expected.downloaded
        assert 0 <= beside[0] <= 17 * 24  # numbers and flags of centroids
        assert 0 <= beside[1] <= 256  # counters and bounds, and the sum of the distances


def test_rows_that_are_left_open_are_settled_at_once_where_their_scores_find_room(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        cuda.cuda.Device.attributes, "L2CacheSize", 2 << 20
    )  # as small beside the scores as on a device
    rows = groups(100, 8, np.float16)
    centroids = np.tile(groups(2000, 8, seed=1), (2, 1))  # no score tells one from the other
    index, on_device = CudaIndex(centroids, geometry_of(rows), "fused"), cuda.asarray(rows)
    labels, distances = cuda.full(100, -1, cuda.int32), cuda.full(100, cuda.inf)
    with costs.counted() as spent:
        index.nearest(on_device, labels, distances)
    assert spent.by_name["settle"] == 1
    assert spent.launches <= 12
    expected = search_on_cpu(rows, centroids, geometry_of(rows))
    np.testing.assert_array_equal(labels.get(), expected[0])
    np.testing.assert_array_equal(distances.get(), expected[1])


def test_resident_rows_are_sent_once_for_a_level(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", groups(384, 8, np.float16))
    pool = hkm.ingest([tmp_path / "rows.npy"], tmp_path / "pool.zarr", chunk_mb=5e-4)
    key, sent = pool.rows().key, list[int]()
    assert pool.rows().chunk_rows < 40  # labels are written in such chunks, too
    read = staging._Staging.read

    def counted(self: Any, part: Any, pair: tuple[int, int], *arguments: Any) -> Any:
        if part.rows.key == key:
            sent.append(pair[1] - pair[0])
        return read(self, part, pair, *arguments)

    monkeypatch.setattr(staging._Staging, "read", counted)
    monkeypatch.setattr(CudaSearch, "form", lambda *_: "fused")
    monkeypatch.setattr("hkm_dask.search.worker._TINY_FLOPS", 1e4)
    monkeypatch.setattr("hkm_dask.compute.memory.block_bytes", lambda *_: 130 * 16)
    config = hkm.Config(levels=(hkm.Level(n_clusters=4, n_resamples=2, max_iter=2),))
    hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", config)
    assert len(sent) > 2
    assert sum(sent) == 384


@pytest.mark.parametrize("n_stayed", [4, 0], ids=["split", "whole"])
def test_a_pass_makes_of_a_row_what_is_planned_for_it(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, n_stayed: int
) -> None:
    n, rows = 20_000, groups(20_000, 8, np.float16)
    before = rows[:8].astype(np.float32)
    now = before + np.float32(np.arange(8) >= n_stayed)[:, None]
    geometry, table = geometry_of(rows), ArrayRows(rows)
    monkeypatch.setattr(CudaSearch, "form", lambda *_: "fused")
    for module in (cuda_index, cuda_kernels):  # memory is taken before a kernel runs
        monkeypatch.setattr(module, "launch", lambda *_, **__: None)
    engine = CudaEngine()
    assignment = Assignment(cuda.zeros(n, cuda.int32), cuda.zeros(n))
    search = engine.search(Part(table, (0, n), 1 << 20), geometry, "lloyd", assignment)
    tile = RowTile(0, n, cuda.asarray(rows), assignment.labels, assignment.distances, cuda.empty(0, cuda.int64))
    sums, counts = cuda.zeros((8, 8), cuda.int64), cuda.zeros(8, cuda.int64)
    centroids = SharedArray(array=now), SharedArray(array=before)
    for _ in range(2):  # once to have the centroids made ready
        tile.previous_labels = None
        used = emulator.pool._peak = emulator.pool.used_bytes()
        search.update(tile, *centroids)
        moved = tile.previous_labels, tile.labels, tile.weights
        geometry.units.move_rows(engine, tile.rows, *moved, sums, counts)
        made = emulator.pool._peak - used
        del moved
    assert 0.4 * DEVICE_ROW_BYTES * n < made < DEVICE_ROW_BYTES * n + 20_000
