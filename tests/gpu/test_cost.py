"""The cost model's number of kernel launches, against the emulator's count; see planning/test_cost.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.kmeans.seeding import thinning
from hkm_dask.planning import cost
from hkm_dask.planning.cost import (
    CHUNK_LAUNCHES,
    CHUNK_SYNCHRONIZATIONS,
    INDEX_LAUNCHES,
    INDEX_SYNCHRONIZATIONS,
)
from hkm_dask.planning.rates import Work
from hkm_dask.search.cuda import forms as cuda_forms
from hkm_dask.search.cuda.engine import CudaEngine
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


@pytest.mark.slow
@pytest.mark.usefixtures("little_work_on_the_device")
def test_forms_are_tried_on_as_many_pairs_as_the_model_says(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[int] = []

    def search_of_a_form(form: str, search: Any, tile: Any, centroids: Any) -> Any:
        tried.append(min(len(tile.rows), cuda_forms.MOST_TRIAL_ROWS) * len(centroids) * (form == "fused"))
        return lambda _: {"fused": 1.0, "half": 4.0, "single": 10.0}[form]

    monkeypatch.setattr(cuda_forms, "_timed_search", search_of_a_form)
    for module, most, least in ((cuda_forms, "MOST_TRIAL_ROWS", "LEAST_TRIAL_ROWS"),
                                (cost, "_TRIAL_ROWS", "_LEAST_TRIAL_ROWS")):  # fmt: skip
        monkeypatch.setattr(module, most, 128)
        monkeypatch.setattr(module, least, 100)
    np.save(tmp_path / "rows.npy", groups(3000, 8, np.float16))
    hkm.ingest([tmp_path / "rows.npy"], tmp_path / "pool.zarr")
    config = hkm.Config(levels=(hkm.Level(n_clusters=90, n_resamples=2, max_iter=2),))
    hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", config)
    steps = cost.run_steps(3000, 8, "float16", config.levels)
    work = sum((step.work for step in steps if step.name == "forms chosen"), Work())
    predicted = work.products / 2 / 8 / cost.TRIAL
    assert 0.6 < sum(tried) / predicted < 1.2
