"""What the model of a run says of starting kernels, against what the emulator counts; see hierarchy/test_cost.py."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.hierarchy.cost import (
    CHUNK_LAUNCHES,
    CHUNK_SYNCHRONIZATIONS,
    INDEX_LAUNCHES,
    INDEX_SYNCHRONIZATIONS,
)
from hkm_dask.kmeans.search.cuda import CudaEngine
from hkm_dask.kmeans.seeding import thinning
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import geometry_of, groups


@pytest.mark.usefixtures("little_work_on_the_device")
def test_thinning_starts_and_waits_as_often_as_the_model_says(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CudaEngine, "busy_rows", 200)
    monkeypatch.setattr(thinning, "_INDEXED", 100)
    candidates = groups(700, 16)
    with costs.counted() as spent:
        thinning.thin(candidates, np.full(700, 1e-9), 700, geometry=geometry_of(candidates))
    n_searches = sum(n for name, n in spent.by_name.items() if name.startswith("nearest_two"))
    n_chunks = spent.by_name["find_conflicts"]
    assert (n_searches, n_chunks) == (6, 4)
    assert spent.launches <= INDEX_LAUNCHES * n_searches + CHUNK_LAUNCHES * n_chunks
    assert spent.synchronizations <= INDEX_SYNCHRONIZATIONS * n_searches + CHUNK_SYNCHRONIZATIONS * n_chunks
