"""Members chosen on a device: the same as on the CPU, and only those are copied to the host."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.runner import Runner
from hkm_dask.compute.staging import ran_out
from hkm_dask.data.rows import ArrayRows
from hkm_dask.hierarchy.assign import LevelRows, assign
from hkm_dask.hierarchy.candidates import pick
from hkm_dask.search.geometry import make_geometry
from hkm_dask.search.worker import worker_engine
from tests.emulated import costs
from tests.emulated.plugin import Emulator
from tests.gpu.inputs import groups, twice


def labeled(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distances with ties, and labels; some rows have none, and one cluster has no member."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, k, n).astype(np.int32)
    labels[labels == k // 2] = 0
    keys = np.where(labels < 0, np.inf, rng.integers(0, 6, n) / 4.0)
    return keys, labels


@pytest.mark.parametrize("r", [1, 4, 1000])
def test_the_members_are_the_cpus(cuda: Any, r: int) -> None:
    keys, labels = labeled(400, 9)
    (expected,) = pick(9, r, keys, labels, range(100, 500))
    (actual,) = pick(9, r, cuda.asarray(keys), cuda.asarray(labels), range(100, 500))
    for name in ("keys", "labels", "rows"):
        values, wanted = getattr(actual, name), getattr(expected, name)
        assert type(values) is np.ndarray
        assert values.dtype == wanted.dtype
        np.testing.assert_array_equal(values, wanted)


def test_only_what_is_picked_comes_to_the_host(cuda: Any, emulator: Emulator) -> None:
    n, k, r = 50_000, 20, 3
    keys, labels = (cuda.asarray(values) for values in labeled(n, k))
    with costs.counted() as spent:
        (picked,) = pick(k, r, keys, labels, range(n))
    assert spent.downloaded <= 20 * len(picked.rows) + 8 * (k + 1) + 64


def test_a_sort_without_memory_tells_that_the_device_ran_out(cuda: Any, emulator: Emulator) -> None:
    n = 5000
    keys, labels = (cuda.asarray(values) for values in labeled(n, 9))
    emulator.limit_memory(cuda.get_default_memory_pool().used_bytes() + 24 * n)
    for work in (lambda: list(pick(9, 4, keys, labels, range(n))), lambda: worker_engine().furthest(keys, 3)):
        with pytest.raises(MemoryError) as error:
            work()
        assert ran_out(error.value)


@pytest.mark.usefixtures("little_work_on_the_device")
@pytest.mark.parametrize("random_key", [None, 7])
def test_a_pass_that_picks_brings_no_labels_to_the_host(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, random_key: int | None
) -> None:
    rows, centroids, n_bytes = ArrayRows(groups(3000, 8)), groups(12, 8, seed=3), []

    def compute() -> np.ndarray:
        with Runner(n_threads=1) as runner:
            level = LevelRows(rows, 3000, make_geometry(rows, runner, n_clusters=12), chunk_rows=3000)
            with costs.counted() as spent:
                chosen = assign(level, centroids, run="r", runner=runner, r=3, random_key=random_key).chosen
        n_bytes.append(spent.downloaded)
        assert chosen is not None
        return chosen.read()

    on_cpu, on_device = twice(cuda, monkeypatch, compute)
    np.testing.assert_array_equal(on_device, on_cpu)
    assert 20 * 36 <= n_bytes[1] < 4 * 3000
