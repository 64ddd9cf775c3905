"""Small arrays on disk and failing disks, for the tests of this folder."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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


class Disk:
    """Knows what a loss of power would leave: of every file and folder, what it held when it was last synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._synced: dict[int, object] = {}
        fsync = os.fsync

        def noted(fd: int) -> None:
            fsync(fd)
            self._synced[os.fstat(fd).st_ino] = self._content(Path(f"/proc/self/fd/{fd}"))

        monkeypatch.setattr(os, "fsync", noted)

    @staticmethod
    def _content(path: Path) -> object:
        return sorted((entry.name, entry.inode()) for entry in os.scandir(path)) if path.is_dir() else path.read_bytes()

    def lost(self, path: Path) -> list[Path]:
        """What would be gone, or older than it looks now, among a file or folder and all below it."""
        everything = [path, *path.rglob("*")] if path.is_dir() else [path]
        return [one for one in everything if self._synced.get(one.stat().st_ino) != self._content(one)]
