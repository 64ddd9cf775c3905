"""The CUDA search against the CPU's: labels and distances are the same bits, because both measure in the same order."""

import numpy as np
import pytest

from hkm_dask.kmeans.frame import Frame
from hkm_dask.kmeans.nearest import Search

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("n", "d", "k"), [(1000, 2, 50), (3000, 17, 130), (5000, 384, 1000), (300, 1024, 7)])
@pytest.mark.parametrize("ties", [False, True])
def test_the_device_finds_what_the_cpu_finds(n: int, d: int, k: int, ties: bool) -> None:
    from hkm_dask.kmeans.nearest_cuda import CudaSearch

    rng = np.random.default_rng(n + d)
    rows = rng.integers(-3, 4, (n, d)).astype(np.float32) if ties else rng.normal(5, 1, (n, d)).astype(np.float32)
    centroids = rows[rng.choice(n, k, replace=False)].copy()
    centroids[k // 2] = np.nan
    frame = Frame(rows.mean(axis=0), float(np.abs(rows).max()), n)
    some = rng.random(k) < 0.5
    found = []
    for kind in (Search, CudaSearch):
        labels, distances = np.full(n, -1, np.int32), np.full(n, np.inf)
        kind(centroids, frame).nearest(rows, labels, distances)
        kind(centroids, frame).only(some).nearest(rows, labels, distances)
        found.append((labels, distances))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_tiles_are_halved_when_the_device_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    from hkm_dask.kmeans import nearest_cuda

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 64)).astype(np.float32)
    frame = Frame(rows.mean(axis=0), float(np.abs(rows).max()), len(rows))
    search = nearest_cuda.CudaSearch(rows[:500], frame)
    whole, n_calls = search._nearest, []

    def full_at_first(*args: object) -> None:
        n_calls.append(args[-1])
        if len(n_calls) < 3:
            raise cupy.cuda.memory.OutOfMemoryError(1, 1, 1)
        whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(search, "_nearest", full_at_first)
    labels, distances = np.full(len(rows), -1, np.int32), np.full(len(rows), np.inf)
    search.nearest(rows, labels, distances)
    assert n_calls == [nearest_cuda._TILE_SCORES >> i for i in range(3)]
    squared = ((rows[:, None].astype(np.float64) - rows[:500].astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(labels, squared.argmin(axis=1))
