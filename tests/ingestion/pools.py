"""Inputs and outputs of the ingestion tests."""

from pathlib import Path

import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.pool import Pool

ROOT = Path(__file__).resolve().parents[2]
D = 4
TINY = 10 * D * 4 / layout.MIB  # chunks of ten float32 rows


def values(n: int = 57, seed: int = 0, dtype: str = "f4") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)).astype(dtype)


def read_all(pool: Pool) -> np.ndarray:
    return pool.rows().read(0, pool.n_samples)


def ids_of(pool: Pool) -> list:
    ids = pool.ids()
    assert ids is not None
    return ids.tolist()


def tidy(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def facts(pool: Pool) -> tuple:
    return pool.fingerprint, pool.mean.tobytes(), pool.max_abs, pool.n_zero_rows
