"""What reading rows block by block takes: the least a block can have, and how many of them are under way."""

from __future__ import annotations

from hkm_dask.compute.staging import device_dtype
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows, Rows


def memory_of_blocks(rows: Rows) -> tuple[int, int, int]:
    """Bytes of a storage chunk of rows, how many blocks a task has under way, and bytes the rows themselves hold.

    Those are row numbers, unless they are read from a file. Rows of other rows are read, and then made or chosen,
    before they are put where a block is kept.

    >>> import numpy as np
    >>> rows = ArrayRows(np.zeros((9, 2)))
    >>> memory_of_blocks(rows), memory_of_blocks(SubsetRows(rows, np.arange(4)))
    ((0, 0, 0), (16, 1, 32))
    """
    if isinstance(rows, ArrayRows):
        return 0, 0, 0
    least = min(rows.chunk_rows, rows.n_rows) * rows.row_bytes
    if isinstance(rows, SubsetRows):
        base, n_blocks, _ = memory_of_blocks(rows.base)
        return max(least, base), n_blocks + 1, rows.index.nbytes if rows.index_path is None else 0
    if isinstance(rows, UnitRows):
        base, n_blocks, _ = memory_of_blocks(rows.base)
        return max(least, base), n_blocks + 2, 0
    return least, 2, 0


def memory_of_staging(rows: Rows, n_staged: int) -> tuple[int, int, int]:
    """Do as `memory_of_blocks`, where `n_staged` blocks are in pinned memory on their way to a device, if any.

    All but one of those are read at once; what is read as it is lies nowhere else.

    >>> import numpy as np
    >>> memory_of_staging(SubsetRows(ArrayRows(np.zeros((9, 2))), np.arange(4)), 4)
    (16, 7, 32)
    """
    least_block, n_blocks, held = memory_of_blocks(rows)
    if n_staged:
        is_read = not isinstance(rows, ArrayRows)
        n_made = max(0, n_blocks - 2) + (is_read and device_dtype(rows.dtype) != rows.dtype)
        n_blocks = n_staged + (n_staged - 1) * n_made
    return least_block, n_blocks, held
