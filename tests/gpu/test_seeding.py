"""Seeding on a device: the same candidates as accepted by a walk on the CPU."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.kmeans.seeding import thinning
from hkm_dask.kmeans.seeding.thinning import thin
from hkm_dask.search.cuda.engine import CudaEngine
from hkm_dask.search.cuda.index import CudaIndex
from tests.gpu.inputs import twice
from tests.kmeans.seeding.test_thinning import candidates


@pytest.mark.usefixtures("little_work_on_the_device")
@pytest.mark.parametrize("d", [2, 24])
def test_candidates_are_accepted_as_on_the_cpu(cuda: Any, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    n_searched: list[int] = []
    search = CudaIndex.nearest

    def noted(self: CudaIndex, rows: Any, *others: Any, which: Any = None) -> None:
        if len(rows) == 500:  # on a device, forms are checked on other rows
            n_searched.append(len(which))
        search(self, rows, *others, which=which)

    monkeypatch.setattr(CudaIndex, "nearest", noted)
    monkeypatch.setattr(CudaEngine, "busy_rows", 200)
    monkeypatch.setattr(CudaEngine, "walked_rows", lambda *_: 60)
    monkeypatch.setattr(thinning, "_INDEXED", 60)
    vectors, limits, geometry = candidates(500, d, seed=1)
    on_cpu, on_device = twice(cuda, monkeypatch, lambda: thin(vectors, limits, 90, geometry=geometry))
    np.testing.assert_array_equal(on_device, on_cpu)
    assert len(n_searched) >= 2
