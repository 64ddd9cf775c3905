"""A subset of a pool beside the pool: how many of its rows each cluster holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.browsing.clusters import Clusters
from hkm_dask.data.npy import read_npy_header
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.steering import Cluster
from hkm_dask.untrusted import open_regular, reading

#: Rows whose clusters are counted at a time.
_BLOCK_ROWS = 2**20


def read_rows(path: str | os.PathLike[str], n_rows: int) -> NDArray[np.int64]:
    """Read row numbers of a pool from a file that `hkm sample` wrote, sorted.

    ``.npy``, or the column ``row`` of ``.parquet`` and ``.csv``. InputError where the file is something else, or has
    other numbers.
    """
    suffix = Path(path).suffix
    wanted = f"subset={path} should be an .npy, .parquet or .csv file of `hkm sample`"
    with reading(f"{wanted}, it cannot be read", "write it again"):
        if suffix == ".npy":
            rows = _read_npy(path)
        elif suffix in (".parquet", ".csv"):
            import pyarrow.dataset as ds

            open_regular(path).close()
            table = ds.dataset(str(path), format=suffix[1:]).to_table(columns=["row"])
            rows = table.column("row").to_numpy()
        else:
            raise InputError(f"{wanted}; write one of these")
    if rows.dtype.kind not in "iu":
        raise InputError(f"subset={path} should hold whole numbers, it holds {rows.dtype}; write row numbers")
    outside = int(np.count_nonzero((rows < 0) | (rows >= n_rows)))
    if outside:
        raise InputError(f"subset={path} should be row numbers below {n_rows}, {outside} are not; is it of this pool?")
    return np.sort(rows.astype(np.int64))


def _read_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    with open_regular(path) as file:
        try:
            header = read_npy_header(file, "it", os.fstat(file.fileno()).st_size)
        except InputError as error:
            raise ValueError(str(error)) from None
        if len(header.shape) != 1:
            raise ValueError(f"its shape is {header.shape}")
        file.seek(header.offset)
        return np.frombuffer(file.read(header.data_bytes), header.dtype)


class Subset:
    """Rows of a subset, counted in every cluster; a row that comes twice counts twice.

    Attributes
    ----------
    n_samples : int
        Rows of the subset that the tree has a cluster for.
    """

    def __init__(self, rows: NDArray[np.int64], clusters: Clusters) -> None:
        n_clusters = clusters.n_clusters
        self._counts = [np.zeros(n_clusters[0], np.int64)]
        labels = clusters.ask.labels(1)
        for start in range(0, clusters.n_rows, _BLOCK_ROWS):
            first, last = np.searchsorted(rows, [start, start + _BLOCK_ROWS])
            if last > first:
                block = labels[start : start + _BLOCK_ROWS].to_numpy()[rows[first:last] - start]
                self._counts[0] += np.bincount(block[block >= 0], minlength=n_clusters[0])
        for t in range(1, len(n_clusters)):
            parents = clusters.ask.clusters(t)["parent"].to_numpy()
            used = parents >= 0
            counts = np.bincount(parents[used], weights=self._counts[-1][used], minlength=n_clusters[t])
            self._counts.append(counts.astype(np.int64))
        self.n_samples = int(self._counts[-1].sum())

    def count(self, cluster: Cluster) -> int:
        """Rows of the subset below a cluster, or of all where it is the root."""
        return self.n_samples if cluster.level > len(self._counts) else int(self._counts[cluster.level - 1][cluster[1]])

    def counts(self, level: int, clusters: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the subset below clusters of a level."""
        return self._counts[level - 1][clusters]
