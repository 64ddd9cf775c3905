"""Near-duplicate pairs, against all cosines in float64."""

from pathlib import Path

import numpy as np
import pytest

from hkm_dask.curation.near_pairs import near_pairs
from hkm_dask.data.pool import Pool
from hkm_dask.errors import ComputeError, InputError
from hkm_dask.ingestion.ingest import ingest


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 20))
    x[100:200] = 3 * x[:100] + 0.2 * rng.normal(size=(100, 20))
    x[250], x[260:264] = 0.0, x[7]
    path: Path = tmp_path_factory.mktemp("pairs") / "pool.zarr"
    return ingest(x.astype(np.float16), path)


def brute_force(pool: Pool, rows: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    x = pool.rows().take(rows).astype(np.float64)
    x = x[(kept := x.any(axis=1))]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    i, j = np.nonzero(np.triu(x @ x.T >= threshold - 1e-14, 1))
    return list(zip(rows[kept][i].tolist(), rows[kept][j].tolist(), strict=True))


@pytest.mark.parametrize("threshold", [0.5, 0.99, 1.0])
def test_all_pairs_are_found_and_no_others(pool: Pool, threshold: float) -> None:
    rows = np.flatnonzero(np.arange(300) % 7)
    found = near_pairs(pool, rows, threshold)
    pairs = list(zip(found.i.tolist(), found.j.tolist(), strict=True))
    assert pairs == brute_force(pool, rows, threshold)
    assert len(pairs) > 5
    assert 250 in rows
    assert (found.cosine >= threshold).all()
    assert (found.cosine <= 1).all()


def test_copies_have_cosine_one_and_no_rows_have_no_pairs(pool: Pool) -> None:
    assert near_pairs(pool, np.array([7, 260, 263]), 1.0).cosine.tolist() == [1.0, 1.0, 1.0]
    assert len(near_pairs(pool, np.array([], np.int64), 0.9)) == 0


def test_what_is_no_threshold_is_refused(pool: Pool) -> None:
    with pytest.raises(InputError, match=r"^threshold=0 should be a cosine above 0, up to 1"):
        near_pairs(pool, np.arange(3), 0)


def test_more_pairs_than_memory_holds_are_refused(tmp_path: Path) -> None:
    pool = ingest(np.ones((2500, 2), np.float32), tmp_path / "pool.zarr")
    with pytest.raises(ComputeError, match=r"^threshold=0.9 gives more pairs than fit in memory; raise it, or raise"):
        near_pairs(pool, np.arange(2500), 0.9, memory_limit="450MiB")
