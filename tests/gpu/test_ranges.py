"""Lloyd's iteration by ranges of clusters on a device gives the same bits as on the CPU over all clusters."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.lloyd import iterate
from hkm_dask.kmeans.ranges import iterate_by_ranges, put_ranges
from hkm_dask.search.geometry import make_geometry
from tests.gpu.inputs import groups, twice

pytestmark = pytest.mark.usefixtures("little_work_on_the_device")


@pytest.mark.parametrize(("dtype", "far"), [("f2", 1.0), ("f4", 1.0), ("f4", 1e15)])
def test_it_has_the_bits_of_the_cpu(cuda: Any, monkeypatch: pytest.MonkeyPatch, dtype: str, far: float) -> None:
    rows = groups(260, 24, dtype)
    rows[[3, 77]] *= rows.dtype.type(far)
    start = np.concatenate([rows[:30].astype("f4"), np.full((4, 24), 50, np.float32)])

    def compute() -> Any:
        table = ArrayRows(rows)
        with Runner(n_threads=1) as runner:
            geometry = make_geometry(table, runner, n_clusters=len(start))
            how = {"geometry": geometry, "runner": runner, "max_iter": 3, "tol": 0.0}
            ranges = iterate_by_ranges(table, put_ranges(start, 3, runner.array_store, "start"), **how)  # type: ignore[arg-type]
            return iterate(table, start.copy(), **how), ranges  # type: ignore[arg-type]

    (on_cpu, _), (_, by_ranges) = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(by_ranges.centroids.read(), on_cpu.centroids)
    np.testing.assert_array_equal(by_ranges.inertia, on_cpu.inertia)
    assert by_ranges.n_relocated == on_cpu.n_relocated
