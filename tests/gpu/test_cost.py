"""What the model of a run says of starting kernels, against what the emulator counts; see hierarchy/test_cost.py."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.hierarchy.cost import INDEX_LAUNCHES, INDEX_SYNCHRONIZATIONS
from hkm_dask.kmeans.seeding.thinning import thin
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import geometry_of, groups


@pytest.mark.usefixtures("little_work_on_the_device")
def test_a_search_of_candidates_starts_and_waits_as_often_as_the_model_says(cuda: Any, emulator: Emulator) -> None:
    candidates = groups(700, 16)
    with costs.counted() as spent:
        thin(candidates, np.full(700, 1e-9), 700, geometry=geometry_of(candidates))
    n_searches = sum(n for name, n in spent.by_name.items() if name.startswith("nearest_two"))
    assert n_searches > 3
    assert spent.launches <= INDEX_LAUNCHES * n_searches
    assert spent.synchronizations <= INDEX_SYNCHRONIZATIONS * n_searches
