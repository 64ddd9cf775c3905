"""A pool with images, captions and columns, some of them hostile, a tree, and a draw."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import hkm_dask as hkm
from hkm_dask.data.pool import Pool
from hkm_dask.embedding.embed import Encoder, embed

N = 400
HOSTILE = '</style></script><img src="http://evil.example/x" onerror="document.title=1">'


class Things:
    """Rows with ids that name images, captions, and columns of three kinds."""

    name, fingerprint = "things", "things-1"

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        captions = [HOSTILE if i % 2 else f"thing {i}" for i in range(N)]
        kinds = ["many"] * (N - 40) + ["few"] * 38 + [HOSTILE] * 2
        names = np.array([f"{i}.png" for i in range(N)], dtype=object)
        self.ids = lambda: iter([names])
        self.columns = {
            "caption": lambda: iter([np.array(captions, dtype=object)]),
            "kind": lambda: iter([np.array(kinds, dtype=object)]),
            "score": lambda: iter([np.where(np.arange(N) == 3, np.nan, np.arange(N) / N)]),
        }

    def __len__(self) -> int:
        return N

    def read(self, first: int, last: int) -> Sequence[np.ndarray]:
        return list(self.rows[first:last])


class AsTheyAre(Encoder):
    name, fingerprint, n_features = "rows", "rows-1", 4

    def encode(self, prepared: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(prepared)


class Made(NamedTuple):
    folder: Path
    pool: Pool
    tree: xr.DataTree
    rows: np.ndarray


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    # One kind holds most; the last two rows are copies.
    centers = np.repeat(rng.normal(size=(8, 4)) * 4, [260, 40, 30, 25, 20, 15, 8, 2], axis=0)
    rows = (centers + rng.normal(size=(N, 4)) * np.where(np.arange(N) < N - 2, 1, 0)[:, None]).astype("f4")
    pool = embed(Things(rows), folder / "pool.zarr", AsTheyAre())
    tree = hkm.build_hierarchy(pool.path, folder / "tree.zarr", hkm.Config.from_flags((60, 16, 6), n_resamples=2))
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for i in range(0, N, 2):
            file = io.BytesIO()
            Image.new("RGB", (8, 12), (i % 256, 80, 120)).save(file, "PNG")
            archive.writestr(f"{i}.png", file.getvalue())
    draw = np.union1d(hkm.sample(tree, 60), [N - 2, N - 1])
    return Made(folder, pool, tree, draw)
