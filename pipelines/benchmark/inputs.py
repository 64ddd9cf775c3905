"""What is clustered: rows of a file, or random rows whose spectrum decays as that of embeddings does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Data:
    """Rows to cluster.

    Attributes
    ----------
    name : str
        What to call them in a table.
    rows : ndarray of float32, shape (n_rows, n_features)
        C-contiguous: every peer gets the same array.
    """

    name: str
    rows: NDArray[np.float32]


def load_rows(path: Path, n_rows: int | None = None) -> Data:
    """Read rows of a ``.npy`` file.

    Parameters
    ----------
    path : Path
        Of an array (n, n_features) of floats.
    n_rows : int, optional
        Take so many of them: drawn with seed 0, in their order.

    Returns
    -------
    Data
    """
    rows = np.load(path, mmap_mode="r")
    return pick_rows(Data(path.stem, rows), n_rows)


def pick_rows(data: Data, n_rows: int | None) -> Data:
    """Take some of the rows, drawn with seed 0, in their order; all where there are no more.

    Parameters
    ----------
    data : Data
    n_rows : int or None

    Returns
    -------
    Data

    Examples
    --------
    >>> pick_rows(Data("ten", np.arange(10, dtype=np.float32)[:, None]), 3).rows.shape
    (3, 1)
    """
    rows = data.rows
    if n_rows is not None and n_rows < len(rows):
        rows = rows[np.sort(np.random.default_rng(0).choice(len(rows), n_rows, replace=False))]
    return Data(data.name, np.ascontiguousarray(rows, dtype=np.float32))


def make_rows(n_rows: int, n_features: int, *, n_groups: int = 256) -> Data:
    """Draw rows around `n_groups` points; the variance of direction i, counted from 1, falls as 1/i.

    Parameters
    ----------
    n_rows, n_features : int
    n_groups : int

    Returns
    -------
    Data

    Examples
    --------
    >>> make_rows(100, 8).rows.dtype
    dtype('float32')
    """
    rng = np.random.default_rng(0)
    spread = (1.0 / np.sqrt(np.arange(1, n_features + 1))).astype(np.float32)
    # The directions are no axes, or whoever looks at the first coordinates first would be helped.
    turn = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0].astype(np.float32)
    groups = rng.standard_normal((n_groups, n_features), dtype=np.float32)
    rows = rng.standard_normal((n_rows, n_features), dtype=np.float32)
    rows += groups[rng.integers(n_groups, size=n_rows)]
    rows *= spread
    return Data(f"made, {n_features} features", np.ascontiguousarray(rows @ turn))
