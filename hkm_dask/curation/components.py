"""Connected components of near-duplicate pairs, by union-find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hkm_dask.compute.jit import kernel


@njit(inline="always")
def root_of(parent: Any, i: Any) -> Any:
    """Return the root of `i`'s tree, with path halving."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kernel("void(i8[::1], i8[::1], i8[::1])")
def _unite(parent, i, j):  # type: ignore[no-untyped-def]
    for p in range(i.shape[0]):
        a, b = root_of(parent, i[p]), root_of(parent, j[p])
        parent[max(a, b)] = min(a, b)


@kernel("void(i8[::1])")
def _flatten(parent):  # type: ignore[no-untyped-def]
    for i in range(parent.shape[0]):  # a parent has a lower number, so its own parent is already the root
        parent[i] = parent[parent[i]]


@dataclass(frozen=True)
class Components:
    """Connected components of at least two rows; every other row is a component of its own."""

    rows: NDArray[np.int64]  # (n,): sorted
    first: NDArray[np.int64]  # (n,): the lowest row of each row's component, which identifies it

    def __len__(self) -> int:
        return int((self.rows == self.first).sum())

    def chosen(self, *keys: NDArray[Any]) -> NDArray[np.int64]:
        """Return the row of each component with the least key, in the order of `first`.

        Ties are broken by further keys, then by the row number. Keys belong to `rows`.
        """
        order = np.lexsort((self.rows, *keys[::-1], self.first))
        return self.rows[order[np.diff(self.first[order], prepend=-1) != 0]]


class UnionFind:
    """Union-find over rows, with edges added in batches; 8 bytes per row.

    >>> union = UnionFind(10)
    >>> union.unite(np.array([5, 9, 1]), np.array([7, 5, 3]))
    >>> found = union.components()
    >>> found.rows.tolist(), found.first.tolist(), len(found)
    ([1, 3, 5, 7, 9], [1, 1, 5, 5, 5], 2)
    """

    def __init__(self, n_rows: int) -> None:
        self._parent = np.arange(n_rows)

    def unite(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> None:
        """Add edges between rows."""
        _unite(self._parent, np.ascontiguousarray(i), np.ascontiguousarray(j))

    def components(self) -> Components:
        """Return the components of more than one row."""
        _flatten(self._parent)
        others = np.flatnonzero(self._parent != np.arange(len(self._parent)))
        rows = np.union1d(others, self._parent[others])
        return Components(rows, self._parent[rows])
