"""Pools, folders and photographs for the tests of embedding."""

from pathlib import Path

import numpy as np
from PIL import Image

from hkm_dask.data.pool import Pool


def read_all(pool: Pool) -> np.ndarray:
    return pool.rows().read(0, pool.n_samples)


def tidy(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def photographs(folder: Path, n: int, side: int) -> Path:
    """Noise in large grains: slow enough to decode that a run can be caught at it."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(n):
        small = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:03}.jpg", quality=90)
    return folder
