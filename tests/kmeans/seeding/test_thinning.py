"""Thinning, against a walk through the candidates one by one."""

import numpy as np
import pytest

from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.seeding import thinning
from hkm_dask.kmeans.seeding.thinning import thin
from hkm_dask.search.cpu import engine as cpu
from hkm_dask.search.cpu.engine import CpuEngine
from hkm_dask.search.cpu.operand import Operand, make_operand
from hkm_dask.search.geometry import Geometry, make_geometry, with_basis


def walk(vectors: np.ndarray, limits: np.ndarray, wanted: int) -> list[int]:
    taken: list[int] = []
    for i, (vector, limit) in enumerate(zip(vectors.astype(np.float64), limits, strict=True)):
        if len(taken) < wanted and (((vectors[taken] - vector) ** 2).sum(axis=1) > limit).all():
            taken.append(i)
    return taken


def candidates(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Whole numbers, so that many candidates lie at their very limit, or in one place."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (n, d)).astype(np.float32)
    vectors[n // 2 :: 5] = vectors[: len(vectors[n // 2 :: 5])]
    limits = np.where(rng.random(n) < 0.1, 0.0, rng.integers(0, 3 * d, n)).astype(np.float64)
    return vectors, limits, Geometry(np.zeros(d, np.float32), 2.0, n)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize(("walked", "indexed", "busy"), [(128, 1024, 256), (2, 4, 3), (8, 1, 100)])
@pytest.mark.parametrize(("n", "d"), [(0, 2), (1, 5), (400, 2), (300, 24)])
def test_candidates_are_accepted_as_one_by_one(
    n: int, d: int, walked: int, indexed: int, busy: int, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuEngine, "walked_rows", lambda *_: walked)
    monkeypatch.setattr(thinning, "_INDEXED", indexed)
    monkeypatch.setattr(thinning, "_THREAD_ROWS", 5)
    monkeypatch.setattr(CpuEngine, "busy_rows", busy)
    vectors, limits, geometry = candidates(n, d, seed=n)
    all_of_them = walk(vectors, limits, n)
    for wanted in {n, len(all_of_them), len(all_of_them) // 2, 1}:
        actual = thin(vectors, limits, wanted, geometry=geometry, n_threads=n_threads)
        assert actual.tolist() == all_of_them[:wanted]


@pytest.mark.parametrize("walked", [1024, 100])
@pytest.mark.parametrize("n_head", [16, 48, 64])
@pytest.mark.parametrize("far", [0.0, 1e4])
def test_candidates_are_accepted_by_products_as_one_by_one(
    walked: int, n_head: int, far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some arrive twice, some lie at their very limit, and some so far that 16 bits do not hold them."""
    rng = np.random.default_rng(n_head)
    vectors = (rng.integers(-3, 4, (1500, 64)) + 5 * rng.integers(0, 2, (1500, 1))).astype(np.float32)
    vectors[700:760] = vectors[:60]
    vectors[1::3] = vectors[::3]
    vectors[[5, 6]] += np.float32(far)
    limits = rng.integers(0, 700, 1500).astype(np.float64)
    limits[::7] = ((vectors[::7].astype(np.float64) - vectors[0]) ** 2).sum(axis=1)
    measured: list[int] = []
    by_scores = cpu.kernels.accept_by_scores
    monkeypatch.setattr(
        cpu.kernels, "accept_by_scores", lambda rows, *rest: (measured.append(len(rows)), by_scores(rows, *rest))
    )
    monkeypatch.setattr(CpuEngine, "walked_rows", lambda *_: walked)
    rows = ArrayRows(vectors[:700])
    with Runner(n_threads=1) as runner:
        geometry = with_basis(make_geometry(rows, runner, n_clusters=2000), rows, runner)
    vectors[900] += np.float32(100.0 * far)  # beyond the grid
    host_cache.put(geometry.name, "last head", n_head, 0, 1 << 20)
    try:
        actual = thin(vectors, limits, 1500, geometry=geometry, n_threads=2)
    finally:
        host_cache.clear()
    assert actual.tolist() == walk(vectors, limits, 1500)
    assert 100 < len(actual) < 1400
    assert max(measured) > 60


def test_what_is_kept_of_the_rows_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotated rows of a pass serve the candidates that it drew, and those accepted are the same."""
    rng = np.random.default_rng(3)
    rows = ArrayRows((rng.normal(size=(5000, 64)) + 3 * rng.integers(0, 2, (5000, 1))).astype(np.float32))
    with Runner(n_threads=1) as runner:
        geometry = with_basis(make_geometry(rows, runner, n_clusters=2000), rows, runner)
    numbers = rng.permutation(5000)[:2000]
    vectors, limits = rows.array[numbers], rng.uniform(40, 90, 2000)
    made: list[int] = []

    def noting(some: np.ndarray, geometry: Geometry, width: int) -> Operand:
        made.append(len(some))
        return make_operand(some, geometry, width)

    monkeypatch.setattr(cpu, "make_operand", noting)
    host_cache.put(geometry.name, "last head", 32, 0, 1 << 20)
    try:
        plain = thin(vectors, limits, 500, geometry=geometry, origin=(rows.key, numbers))
        n_made = sum(made)
        for low in range(0, 5000, 1000):
            operand = make_operand(rows.array[low : low + 1000], geometry, 64)
            host_cache.put(rows.key, ("operand", geometry.name, low, low + 1000), operand, 0, 1 << 20)
        kept = thin(vectors, limits, 500, geometry=geometry, origin=(rows.key, numbers))
    finally:
        host_cache.clear()
    assert plain.tolist() == kept.tolist() == walk(vectors, limits, 500)
    assert len(kept) == 500
    assert (n_made, sum(made)) == (2000, 2000)
