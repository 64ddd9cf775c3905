"""Random numbers that belong to a row instead of a stream: keyed by (seed, purpose, row).

Such a draw does not depend on the order of rows, blocks, workers or earlier draws, so a run that is interrupted,
resumed or distributed differently draws the same numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hkm_dask.compute.backend import array_module

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _mix(z: int) -> int:
    """Mix 64 bits with the finalizer of SplitMix64, on Python integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def stream_key(*parts: int | str) -> int:
    """Hash a seed and the names of a purpose, in order, to a key in [0, 2**64).

    >>> stream_key(0, 1, "seeding") == stream_key(0, 1, "seeding") != stream_key(1, 1, "seeding")
    True
    """
    key = _mix(len(parts) + 1)  # so that a leading 0 matters
    for part in parts:
        # A Python integer: NumPy's would overflow.
        value = zlib.crc32(part.encode()) + (1 << 32) if isinstance(part, str) else int(part) & _MASK
        key = _mix((key ^ _mix((value + _GOLDEN) & _MASK)) + _GOLDEN & _MASK)
    return key


def random_bits(key: int, rows: Any) -> Any:
    """Draw 64 random bits (uint64) per row number with a key from `stream_key`; on the device if `rows` is there."""
    return _bits(np.uint64(key), np.uint64(_mix(key ^ _GOLDEN)), array_module(rows).asarray(rows))


def random_bits_by_group(keys: Sequence[int], groups: Any, rows: Any) -> Any:
    """Draw random bits for each row i with the key ``keys[groups[i]]``; see `random_bits`.

    >>> both = random_bits_by_group([7, 8], np.array([1, 0]), np.array([3, 5]))
    >>> bool(both[0] == random_bits(8, np.array(3)) and both[1] == random_bits(7, np.array(5)))
    True
    """
    xp = array_module(rows)
    words = xp.asarray(np.array([(key, _mix(key ^ _GOLDEN)) for key in keys], np.uint64))
    return _bits(words[groups, 0], words[groups, 1], rows)


def _bits(low: Any, high: Any, rows: Any) -> Any:
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) * np.uint64(_GOLDEN) + low
        for salt in (high, np.uint64(0)):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = (z ^ (z >> np.uint64(31))) + salt
    return z


def random_uniform(key: int, rows: Any) -> Any:
    """Draw a uniform float64 in the open interval (0, 1) for each row number; see `random_bits`.

    >>> u = random_uniform(stream_key(0), np.arange(4))
    >>> bool(((u > 0) & (u < 1)).all()), float(random_uniform(stream_key(0), np.array([3]))[0]) == float(u[3])
    (True, True)
    """
    return uniform(random_bits(key, rows))


def uniform(bits: Any) -> Any:
    """Convert 64 random bits (uint64) to uniform float64 numbers in the open interval (0, 1).

    >>> bool(0 < uniform(np.uint64(0)) < uniform(np.uint64(2**64 - 1)) < 1)
    True
    """
    # 52 bits plus one half: with 53 bits the largest would round up to 1.
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
