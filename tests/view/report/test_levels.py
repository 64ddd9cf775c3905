"""Charts of the levels."""

import dataclasses
import re

import numpy as np
import pytest

from hkm_dask.view.report.facts import gather
from hkm_dask.view.report.levels import inertia_panels
from tests.view.report.conftest import Made


@pytest.mark.parametrize("n_iterations", [1, 2, 3, 4, 7, 50])
def test_iterations_are_counted_in_whole_numbers(made: Made, n_iterations: int) -> None:
    facts = gather(made.tree, "tree.zarr", made.pool, None)
    level = dataclasses.replace(facts.top, runs=(np.linspace(2.0, 1.0, n_iterations),))
    drawn = inertia_panels(dataclasses.replace(facts, levels=(level,)))
    ticks = [int(tick) for tick in re.findall(r'text-anchor="middle">(\d+)</text>', drawn)]
    assert 2 <= len(ticks) <= 7
    assert len(set(np.diff(ticks))) == 1
