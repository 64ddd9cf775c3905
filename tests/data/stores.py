"""Small arrays on disk and disks that fail, for the tests of this folder."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hkm_dask.data import chunks, store
from hkm_dask.data.chunks import open_array

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, values: np.ndarray, chunk_rows: int, name: str = "a", **options: object) -> chunks.StoredArray:
    store.create_array(
        folder,
        name,
        shape=values.shape,
        dtype=str if values.dtype == object else values.dtype,
        chunks=(chunk_rows, *values.shape[1:]),
        dims=[f"axis_{axis}" for axis in range(values.ndim)],
        **options,
    )
    array = open_array(folder / name)
    array.write(0, values)
    return array


def table(n_rows: int = 10, n_features: int = 3) -> np.ndarray:
    return np.arange(n_rows * n_features, dtype=np.float32).reshape(n_rows, n_features)


def run_python(code: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
        check=False,
        timeout=120,
    )


class Flaky:
    """Fails a few times, as a network mount does."""

    def __init__(self, real: Callable, times: int, code: int) -> None:
        self.real, self.left, self.code, self.calls = real, times, code, 0

    def __call__(self, *args: object) -> object:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*args)
