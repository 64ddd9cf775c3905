"""The ids of rows, integers or strings, and other values per row, in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO, Any

import numpy as np

from hkm_dask.errors import InputError

Pieces = Callable[[], Iterator[np.ndarray]]

#: The columns of sources that have none besides the ids.
NO_COLUMNS: Mapping[str, Pieces] = MappingProxyType({})

#: Number of ids held in memory at once.
ID_PIECE_ROWS = 2**16
#: Bytes of ids held in memory at once, if they have a fixed width.
ID_PIECE_BYTES = 2**24


def check_id_count(n_ids: int, n_rows: int, name: str) -> None:
    """Refuse ids whose number differs from that of the rows.

    >>> check_id_count(2, 3, "a.npy")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: a.npy: n_ids=2 should be 3, one per row; give ids for exactly these rows
    """
    if n_ids != n_rows:
        raise InputError(f"{name}: n_ids={n_ids} should be {n_rows}, one per row; give ids for exactly these rows")


def id_pieces(ids: Any, name: str) -> Pieces:
    """Split ids in memory (array-like of integers or strings) into pieces of int64 or object (str); or InputError."""
    array = as_array(ids)
    if array.ndim != 1:
        raise InputError(f"{name}: shape={array.shape} should have one dimension; give one id per row")
    if array.dtype.kind == "O" and not all(isinstance(value, str) for value in array.tolist()):
        raise InputError(f"{name}: some ids are neither integers nor strings; convert all to strings")
    if array.dtype.kind not in "iuUTO":
        raise InputError(f"{name}: dtype={array.dtype} should be integers or strings; convert them to strings")
    starts = range(0, len(array), ID_PIECE_ROWS)
    return lambda: (plain_ids(array[start : start + ID_PIECE_ROWS], name) for start in starts)


def as_array(ids: Any) -> np.ndarray:
    """Convert ids to an array; lists of strings become objects, as a fixed width would be that of the longest string.

    >>> as_array(["a", "bc"]), as_array([1, 2])
    (array(['a', 'bc'], dtype=object), array([1, 2]))
    """
    are_texts = isinstance(ids, list | tuple) and bool(ids) and all(isinstance(value, str) for value in ids)
    return np.array(ids, object) if are_texts else np.asarray(ids)


def stream_values(file: IO[bytes], dtype: np.dtype, n_values: int, label: str) -> Iterator[np.ndarray]:
    """Yield `n_values` values of a stream in pieces; InputError if there are fewer."""
    step = max(1, min(ID_PIECE_ROWS, ID_PIECE_BYTES // max(1, dtype.itemsize)))
    for start in range(0, n_values, step):
        n = min(step, n_values - start)
        data = file.read(n * dtype.itemsize)
        if len(data) < n * dtype.itemsize:
            raise InputError(f"{label} is cut short; copy or save it again")
        yield np.frombuffer(data, dtype) if dtype.itemsize else np.zeros(n, dtype)


def plain_ids(piece: np.ndarray, name: str) -> np.ndarray:
    """Convert ids to int64 or to objects (str), the two kinds that a pool stores; InputError if they are neither.

    >>> plain_ids(np.array(["a", "bc"]), "ids"), plain_ids(np.array([3], dtype="u2"), "ids")
    (array(['a', 'bc'], dtype=object), array([3]))
    """
    if piece.dtype.kind in "iu":
        if piece.dtype.kind == "u" and piece.size and piece.max() > np.iinfo(np.int64).max:
            raise InputError(f"{name}: id={piece.max()} should be below 2**63; give the ids as strings")
        return piece.astype(np.int64)
    if piece.dtype.kind in "UTO":
        values = piece.tolist()
        if not all(isinstance(value, str) for value in values):
            raise InputError(f"{name}: some ids are neither integers nor strings; convert all to strings")
        check_unicode(values, name)
        return np.array(values, dtype=object)
    raise InputError(f"{name}: dtype={piece.dtype} should be integers or strings; convert them to strings")


def check_unicode(values: Sequence[str], name: str) -> None:
    """Refuse strings with lone surrogates (halves of characters), which cannot be encoded.

    >>> check_unicode(["\\ud800"], "ids")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: ids: '\\ud800' should be valid Unicode; fix it
    """
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        first = next(value for value in values if any("\ud800" <= c <= "\udfff" for c in value))
        raise InputError(f"{name}: {first!r:.80} should be valid Unicode; fix it") from None


def id_keys(ids: np.ndarray) -> np.ndarray:
    """Return the ids, or a hash of each, as int64; two different strings collide once in 2**64 pairs."""
    if ids.dtype.kind == "O":
        return np.fromiter(map(hash, ids.tolist()), np.int64, len(ids))
    return ids.astype(np.int64, copy=False)


def with_keys(pieces: Iterable[np.ndarray], keys: np.ndarray) -> Iterator[np.ndarray]:
    """Pass the pieces on, and fill `keys` with the keys of the first ids."""
    n = 0
    for piece in pieces:
        some = id_keys(piece)[: len(keys) - n]
        keys[n : n + len(some)] = some
        n += len(some)
        yield piece


def repeated(keys: np.ndarray) -> np.ndarray:
    """Return every key that occurs more than once; sorts `keys` in place.

    >>> repeated(np.array([3, 1, 3, 2, 3]))
    array([3])
    """
    keys.sort()
    return np.unique(keys[1:][keys[1:] == keys[:-1]])


def name_repeated(pieces: Iterable[np.ndarray], keys: np.ndarray, n_named: int) -> list[str]:
    """Name up to `n_named` ids that occur twice, among those with one of these keys, and two rows of each.

    >>> ids = [np.array(["a", "b"], object), np.array(["c", "a"], object)]
    >>> name_repeated(ids, id_keys(np.array(["a", "c"], object)), 3)
    ["'a' (rows 0 and 3)"]
    """
    seen: dict[Any, int] = {}
    named: dict[Any, str] = {}
    row = 0
    for piece in pieces:
        for place in np.flatnonzero(np.isin(id_keys(piece), keys)).tolist():
            value = piece[place] if piece.dtype == object else int(piece[place])
            if value in seen:
                named.setdefault(value, f"{value!r:.80} (rows {seen[value]:,} and {row + place:,})")
            if len(named) == n_named:
                return list(named.values())
            seen.setdefault(value, row + place)
        row += len(piece)
    return list(named.values())
