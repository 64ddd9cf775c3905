"""Near-duplicate pairs among selected rows of a pool: all pairs whose cosine reaches a threshold."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.compute.matmul import matmul
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.threads import single_threaded_blas
from hkm_dask.curation.cosines import measure_cosines
from hkm_dask.data.chunks import check_rows
from hkm_dask.data.pool import Pool
from hkm_dask.data.row_views import SubsetRows, unit_rows
from hkm_dask.data.rows import Rows
from hkm_dask.errors import ComputeError, InputError

#: Most rows per block; two blocks are multiplied at once.
_BLOCK_ROWS = 4096
#: Bytes per pair, including its copy during sorting.
_PAIR_BYTES = 3 * 24


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows, sorted by `i`, then `j`."""

    #: (n_pairs,): row numbers, i < j.
    i: NDArray[np.int64]
    j: NDArray[np.int64]
    cosine: NDArray[np.float64]  # (n_pairs,)

    def __len__(self) -> int:
        return len(self.i)


def check_threshold(threshold: object) -> list[str]:
    """Return the problem with a threshold, as a list that is empty if it is valid.

    >>> check_threshold(1.5)
    ['threshold=1.5 should be a cosine above 0, up to 1; give one like 0.95']
    """
    is_number = isinstance(threshold, int | float | np.integer | np.floating) and not isinstance(threshold, bool)
    if is_number and 0.0 < float(threshold) <= 1.0:  # type: ignore[arg-type]
        return []
    return [f"threshold={threshold!r} should be a cosine above 0, up to 1; give one like 0.95"]


def near_pairs(pool: Pool, rows: NDArray[np.integer], threshold: float, memory_limit: int | str | None = None) -> Pairs:
    """Find all pairs among selected rows of a pool whose cosine is at least `threshold`.

    All pairs are compared, so time grows with the square of the number of rows: use this for a sample, not for a pool.
    A float32 product finds candidates; the cosine of the rows as stored, computed in float64, decides. All-zero rows
    have no direction and are in no pair.

    Parameters
    ----------
    pool : Pool
    rows : ndarray of int, shape (n,)
        Row numbers, sorted and unique.
    threshold : float
        Cosine similarity, in (0, 1].
    memory_limit : int or str, optional
        Most bytes that this process may use.

    Returns
    -------
    Pairs
        By row numbers of the pool.

    Raises
    ------
    InputError
        If the threshold is invalid, or row numbers are unsorted, repeated or out of range.
    ComputeError
        If there are more pairs than fit in memory, as among thousands of copies of one row.

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool = hkm.ingest(np.float32([[1, 0], [0, 3], [9, 1], [0, 1]]), f"{folder}/pool.zarr")
    ...     pairs = near_pairs(pool, np.arange(4), 0.99)
    >>> pairs.i.tolist(), pairs.j.tolist(), pairs.cosine.round(3).tolist()
    ([0, 1], [2, 3], [0.994, 1.0])
    """
    if problems := check_threshold(threshold):
        raise InputError(problems)
    index = check_rows(rows, pool.n_samples)
    if len(index) == 0:
        return _concatenate([], index)
    some = SubsetRows(pool.rows(), index)
    with runner_for(None, memory_limit) as runner, runner.on_processors() as processors:
        return _concatenate(_pairs_of(some, threshold, processors), index)


def _concatenate(found: list[Pairs], index: NDArray[np.int64]) -> Pairs:
    empty = np.empty(0, np.int64)
    i, j = (index[np.concatenate([empty, *(getattr(part, name) for part in found)])] for name in "ij")
    cosine = np.concatenate([np.empty(0), *(part.cosine for part in found)])
    order = np.lexsort((j, i))
    return Pairs(i[order], j[order], cosine[order])


def _pairs_of(rows: Rows, threshold: float, runner: Runner) -> list[Pairs]:
    # Per thread: a block in three forms, a second block, and their product; and the pairs.
    share = runner.memory_budget // (3 * runner.n_threads)
    n = int(max(64, min(_BLOCK_ROWS, share // (20 * rows.n_features + 10 * _BLOCK_ROWS))))
    bounds = list(itertools.pairwise([*range(0, rows.n_rows, n), rows.n_rows]))

    def compare(first: int) -> Pairs:
        with single_threaded_blas():
            left = _Block.read(rows, *bounds[first])
            found, n_left = [], share // _PAIR_BYTES
            for k in range(first, len(bounds)):
                found.append(left.pairs(left if k == first else _Block.read(rows, *bounds[k]), threshold))
                n_left -= len(found[-1])
                if n_left < 0:
                    raise ComputeError(
                        f"threshold={threshold} gives more pairs than fit in memory; raise it, or raise memory_limit"
                    )
        return Pairs(*(np.concatenate([getattr(pairs, name) for pairs in found]) for name in ("i", "j", "cosine")))

    return runner.map(compare, range(len(bounds)), stage="compare")


@dataclass(frozen=True)
class _Block:
    """Rows from `start` on, as stored and scaled to unit length."""

    start: int
    rows: NDArray[np.float32]
    unit: NDArray[np.float32]

    @classmethod
    def read(cls, rows: Rows, low: int, high: int) -> _Block:
        block = rows.read(low, high)
        return cls(low, np.ascontiguousarray(block, np.float32), unit_rows(block))

    def pairs(self, other: _Block, threshold: float) -> Pairs:
        scores = matmul(self.unit, other.unit.T)
        # Rounding of unit-length float32 rows, and of a sum of that many products in any order.
        slack = (self.unit.shape[1] + 8) * 2.0**-23
        i, j = map(np.ascontiguousarray, np.nonzero(scores >= threshold - slack))
        kept = (self.start + i < other.start + j) & self.unit[i].any(axis=1) & other.unit[j].any(axis=1)
        i, j = i[kept], j[kept]
        cosine = np.empty(len(i))
        measure_cosines(self.rows, other.rows, i, j, cosine)
        near = cosine >= threshold
        return Pairs(self.start + i[near], other.start + j[near], cosine[near])
