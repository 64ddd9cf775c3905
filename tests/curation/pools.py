"""Pools with further columns."""

from pathlib import Path
from typing import Any

import numpy as np

from hkm_dask.data.ids import Pieces
from hkm_dask.data.pool import Pool
from hkm_dask.embedding.embed import Encoder, embed


class _Rows:
    """Items that are embeddings already."""

    name, fingerprint = "rows", "rows-1"

    def __init__(self, x: np.ndarray, columns: dict[str, np.ndarray], prefix: str) -> None:
        self.x = x
        ids = np.array([f"{prefix}{i}" for i in range(len(x))], object)
        self.ids: Pieces = lambda: iter([ids])
        self.columns: dict[str, Pieces] = {
            name: lambda values=values: iter([values])  # type: ignore[misc]
            for name, values in columns.items()
        }

    def __len__(self) -> int:
        return len(self.x)

    def read(self, first: int, last: int) -> Any:
        return list(self.x[first:last])


class _AsTheyAre(Encoder):
    name, fingerprint = "as they are", "as they are"

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features

    def encode(self, prepared: Any) -> np.ndarray:
        return np.array(prepared, np.float32)


def pool_with_columns(path: Path, x: np.ndarray, prefix: str = "id-", **columns: np.ndarray) -> Pool:
    """Make a pool with ids, a prefix and the number of the row, and columns."""
    return embed(_Rows(x, columns, prefix), path, _AsTheyAre(x.shape[1]), dtype="float32")
