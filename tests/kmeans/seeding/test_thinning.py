"""Thinning against a walk through the candidates, one by one."""

import numpy as np
import pytest

from hkm_dask.kmeans.search.cpu.engine import CpuEngine
from hkm_dask.kmeans.search.geometry import Geometry
from hkm_dask.kmeans.seeding import thinning
from hkm_dask.kmeans.seeding.thinning import thin


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
    monkeypatch.setattr(CpuEngine, "walked_rows", walked)
    monkeypatch.setattr(thinning, "_INDEXED", indexed)
    monkeypatch.setattr(thinning, "_THREAD_ROWS", 5)
    monkeypatch.setattr(CpuEngine, "busy_rows", busy)
    vectors, limits, geometry = candidates(n, d, seed=n)
    all_of_them = walk(vectors, limits, n)
    for wanted in {n, len(all_of_them), len(all_of_them) // 2, 1}:
        actual = thin(vectors, limits, wanted, geometry=geometry, n_threads=n_threads)
        assert actual.tolist() == all_of_them[:wanted]
