"""Column constraints of a draw: best rows first, a cap on rows with the same value, and quotas of values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import random_bits
from hkm_dask.config.problems import nearest
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.eligible import Mask, row_blocks
from hkm_dask.hierarchy.tree.arrays import TreeArrays

SortKeys = Callable[[NDArray[np.int64]], NDArray[np.uint64]]

#: Values are counted in this many passes, so that no second copy of them is needed.
_TURNS = 16
_LAST = np.uint64(2**64 - 1)


class DrawColumns:
    """Columns available to a draw: those of the pool, and the clusters at each level of the tree."""

    def __init__(self, pool: Pool | None, arrays: TreeArrays) -> None:
        self._pool, self._arrays, self.n_samples = pool, arrays, arrays.n_rows(1)
        #: Names that no column of a pool can have.
        self.levels = tuple(f"level_{t}" for t in range(1, arrays.n_levels + 1))

    def blocks(self, column: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield runs of rows with their values of a column, or their clusters at a level."""
        for rows in row_blocks(self.n_samples):
            if column in self.levels:
                labels = self._arrays.part(1, "labels", rows.start, rows.stop)
                yield rows, self._arrays.ancestors(labels, self.levels.index(column) + 1)[-1]
            else:
                assert self._pool is not None
                yield rows, self._pool.column(column, np.arange(rows.start, rows.stop))


# -- best first --------------------------------------------------------------------------------------------------------


def best_first(pool: Pool, by: str) -> SortKeys:
    """Read a numeric column; returns a function from rows to sort keys, largest value first, missing values last.

    With ``-`` before the name, the smallest come first.
    """
    name, rising = column_to_sort(by, pool.columns)
    values = pool.column(name)
    if values.dtype.kind not in "iufb":
        raise InputError(f"by={by!r} should be a column of numbers, it has texts; choose another")
    return lambda rows: sort_keys(values[rows], rising=rising)


def column_to_sort(by: str, columns: Collection[str]) -> tuple[str, bool]:
    """Return the column named by `by`, and whether its smallest values come first.

    >>> column_to_sort("score", ["score"]), column_to_sort("-score", ["score"])
    (('score', False), ('score', True))
    """
    rising = by.startswith("-") and by not in columns
    return by[rising:], rising


def sort_keys(values: np.ndarray, *, rising: bool) -> NDArray[np.uint64]:
    """Return keys that sort like the values, descending unless `rising`, with missing values last.

    >>> sort_keys(np.ma.masked_equal([0, -(2**63), 7], 0), rising=False).argsort(kind="stable")
    array([2, 1, 0])
    """
    ordered = _in_order(np.ma.getdata(values))
    # The greatest key is reserved for missing values, so the two greatest int64 values share one.
    ordered = np.minimum(ordered if rising else ~ordered, _LAST - np.uint64(1))
    ordered[missing(values)] = _LAST
    return ordered


def _in_order(values: np.ndarray) -> NDArray[np.uint64]:
    """Return unsigned integers that sort like the numbers.

    >>> _in_order(np.array([-1.5, -0.0, 0.0, 2])).argsort(kind="stable").tolist()
    [0, 1, 2, 3]
    """
    top = np.uint64(1 << 63)
    if values.dtype.kind != "f":
        return values.astype(np.int64).view(np.uint64) ^ top
    bits = (values.astype(np.float64) + 0.0).view(np.uint64)  # -0.0 is 0.0
    return np.where(bits & top, ~bits, bits | top)


def missing(values: np.ndarray) -> Mask:
    """Tell for which rows the value is missing or NaN."""
    masked = np.ma.getmaskarray(values)
    return masked | np.isnan(np.ma.getdata(values)) if values.dtype.kind == "f" else masked


# -- caps --------------------------------------------------------------------------------------------------------------


class Cap:
    """Limits a draw to a number of rows for every value of a column, with 8 bytes of memory per row.

    Values are compared by a 64-bit hash; values whose hashes collided would share one limit. Rows without a value share
    one as well.
    """

    def __init__(self, columns: DrawColumns, column: str, most: int) -> None:
        self.most = most
        self._values = np.empty(columns.n_samples, np.uint64)
        for rows, block in columns.blocks(column):
            plain = np.ma.getdata(block)
            if plain.dtype.kind == "f":
                plain = plain + 0.0  # -0.0 is 0.0
            hashed = pd.util.hash_array(plain.astype(object) if plain.dtype.kind in "UT" else plain, categorize=False)
            hashed[missing(block)] = _LAST
            self._values[rows] = hashed
        self._taken = np.empty(0, np.uint64)  # hashed values of the rows already drawn, sorted

    def _room(self, values: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return how many more rows each of `values` allows."""
        return self.most - (np.searchsorted(self._taken, values, "right") - np.searchsorted(self._taken, values))

    def available(self, mask: Mask) -> int:
        """Return how many rows of a mask can be drawn together."""
        total = 0
        for turn in range(_TURNS):
            blocks = (self._values[rows][mask[rows]] for rows in row_blocks(len(mask)))
            values = np.concatenate([block[block % _TURNS == turn] for block in blocks])
            values, counts = np.unique(values, return_counts=True)
            total += int(np.minimum(counts, self._room(values)).sum())
        return total

    def take(self, rows: NDArray[np.int64]) -> None:
        """Count rows as drawn."""
        self._taken = np.sort(np.concatenate([self._taken, self._values[rows]]))

    def thin(self, rows: NDArray[np.int64], mask: Mask, key: int, best: SortKeys | None) -> bool:
        """Remove from a mask the excess among `rows` of every value; tells whether there was any.

        The rows that stay are random, or the best.
        """
        values, places, counts = np.unique(self._values[rows], return_inverse=True, return_counts=True)
        room = self._room(values)
        over = counts > room
        if not over.any():
            return False
        rows, places = rows[over[places]], places[over[places]]
        order = np.lexsort((random_bits(key, rows), *([best(rows)] if best else []), places))
        rank = np.arange(len(order)) - np.searchsorted(places[order], places[order])
        full = pd.Index(values[over])
        for some in row_blocks(len(mask)):
            mask[some] &= full.get_indexer(pd.Index(self._values[some])) < 0
        mask[rows[order[rank < room[places[order]]]]] = True
        return True


# -- quotas ------------------------------------------------------------------------------------------------------------


def quota_sizes(quotas: Mapping[Any, int | Fraction], size: int) -> list[int]:
    """Return the rows for each value and, last, for all others; rounds shares by largest remainder to sum to `size`.

    >>> quota_sizes({"web": Fraction(1, 3), "books": Fraction(1, 3)}, 10)
    [4, 3, 3]
    """
    exact: list[Fraction] = [Fraction(share) if isinstance(share, int) else share * size for share in quotas.values()]
    exact.append(size - sum(exact, Fraction()))
    whole = [int(amount) for amount in exact]
    order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    for i in order[: size - sum(whole)]:
        whole[i] += 1
    return whole


def quota_codes(columns: DrawColumns, column: str, names: list[Any]) -> NDArray[np.integer]:
    """Return for every row the index of its value in `names`, or their number for any other value.

    A name may be the text of a number. Raises InputError if no row has one of them, or if two are the same value.
    """
    codes = np.empty(columns.n_samples, np.min_scalar_type(len(names)))
    found, some = np.zeros(len(names) + 1, np.int64), np.empty(0, object)
    wanted: pd.Index | None = None
    for rows, block in columns.blocks(column):
        plain = np.ma.getdata(block)
        if wanted is None:
            wanted, some = pd.Index([_like(plain, name) for name in names], dtype=object), pd.unique(plain)
            again = [name for name, known in zip(names, wanted.duplicated(), strict=True) if known]
            if again:
                rule = f"another value of column {column} than those before it; name each once"
                raise InputError([f"quotas={name!r} should be {rule}" for name in again])
        places = wanted.get_indexer(pd.Index(plain, dtype=object))
        places[(places < 0) | missing(block)] = len(names)
        codes[rows] = places
        found += np.bincount(places, minlength=len(found))
    values = [str(value) for value in some[:1000]]
    few = f"it has {', '.join(values[:8])}" + (", ..." if len(values) > 8 else "")
    if unknown := [name for name, n in zip(names, found, strict=False) if not n]:
        wanted_values = f"should be a value of column {column}"
        raise InputError([f"quotas={name!r} {wanted_values}; {nearest(str(name), values) or few}" for name in unknown])
    return codes


def _like(values: np.ndarray, name: Any) -> Any:
    """Convert a name to the kind of value that a column has, or return it unchanged if that is impossible.

    >>> [_like(np.array([True, False]), name) for name in ("True", "yes")], _like(np.array([1]), "01")
    ([True, 'yes'], 1)
    >>> _like(np.float32([0.1]), "0.1")
    0.10000000149011612
    """
    kind, is_text = values.dtype.kind, isinstance(name, str)
    if kind not in "ifb":
        return str(name)
    if kind == "b":
        return {"true": True, "false": False}.get(name.lower(), name) if is_text else name
    try:
        with np.errstate(over="ignore"):  # 0.1 is another number in float32
            value = int(name) if kind == "i" else values.dtype.type(float(name)).item()
    except (TypeError, ValueError, OverflowError):
        return name
    return value if is_text or value == name or kind == "f" else name
