"""What a pass costs beside its arithmetic: launches, synchronizations, bytes sent to the device."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.compute import staging
from hkm_dask.compute.runner import Runner
from hkm_dask.kmeans.lloyd import iterate
from hkm_dask.kmeans.search.cuda import CudaEngine, CudaSearch
from hkm_dask.kmeans.search.geometry import make_geometry
from hkm_dask.kmeans.search.traffic import lloyd_traffic
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import Stored, groups


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_block_in_the_middle_of_a_fit_takes_few_launches(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, dtype: type
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
    monkeypatch.setattr(CudaSearch, "form", lambda *_: "fused")
    monkeypatch.setattr("hkm_dask.compute.memory.block_bytes", lambda *_: 300 * table.row_bytes)
    with costs.counted() as spent, Runner(n_threads=1) as runner:
        geometry = make_geometry(table, runner, n_clusters=24)
        iterate(table, start, geometry=geometry, runner=runner, max_iter=5, tol=0.0)
    assert len(passes) == 5
    # The first block of a pass has the centroids made ready to be searched.
    steady = [after - before for marks in passes[2:] for before, after in itertools.pairwise(marks[1:])]
    assert len(steady) == 3 * 3
    assert sum(block.by_name["settle"] for block in steady) > 0
    assert sum(block.by_name["nearest_two"] for block in steady) > len(steady)
    for block in steady:
        assert block.synchronizations <= 2
        assert block.launches <= 12, block.by_name
        assert block.uploaded == 0
    kernels = {name for block in steady for name in block.by_name} - {"take", "gemm"}  # these two belong to `settle`
    assert kernels == set(lloyd_traffic(1200, 24, 16).by_kernel)


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
    monkeypatch.setattr("hkm_dask.kmeans.search.worker._TINY_FLOPS", 1e4)
    monkeypatch.setattr("hkm_dask.compute.memory.block_bytes", lambda *_: 130 * 16)
    config = hkm.Config(levels=(hkm.Level(n_clusters=4, max_iter=2),))
    hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", config)
    assert len(sent) > 2
    assert sum(sent) == 384
