"""Bytes a step needs, as pure functions of shapes, and the budget a worker has for them."""

from __future__ import annotations

from pathlib import Path

import psutil

from hkm_dask.errors import ComputeError

#: Bytes an idle process with NumPy, numba, Zarr and Dask holds, measured.
PROCESS_BASE_BYTES = 220 << 20
#: Scores one thread makes before it looks at them: they should stay in a core's share of the cache.
TILE_SCORES = 1 << 20
#: Centroids scored at once.
TILE_CENTROIDS = 4096
#: Bytes of rows one thread holds while it works on them, at most; a GPU wants more work at once.
MAX_BLOCK_BYTES, MAX_DEVICE_BLOCK_BYTES = 64 << 20, 256 << 20


def machine_memory() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's where that is less."""
    total = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def tile_rows(n_clusters: int) -> int:
    """Rows scored at once by one thread.

    Parameters
    ----------
    n_clusters : int

    Returns
    -------
    int
        Few enough for a tile of scores to stay in a core's cache, many enough for a matrix product to be worth it.

    Examples
    --------
    >>> tile_rows(4096), tile_rows(1000), tile_rows(10)
    (256, 1048, 2048)
    """
    return max(256, min(2048, TILE_SCORES // max(n_clusters, 1)))


def fold_bytes(n_clusters: int, n_features: int, *, with_sums: bool = True) -> int:
    """Bytes one thread needs to assign rows to centroids and add them up, besides its blocks.

    The search operand and its score tile, the float32 centroids and, `with_sums`, an int64 sum per centroid and
    feature.

    Parameters
    ----------
    n_clusters, n_features : int
        Shape of the centroids.
    with_sums : bool, default True
        Whether rows are added up as well.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> fold_bytes(2000, 384) < 40 << 20
    True
    """
    n_operand = n_clusters * (n_features + 2)
    tile = tile_rows(n_clusters) * (min(n_clusters, TILE_CENTROIDS) + 3 * n_features)
    sums = 8 * n_clusters * (n_features + 1) if with_sums else 0
    return 4 * (2 * n_operand + tile) + sums


def block_bytes(budget: int, n_threads: int, device_budget: int | None = None) -> int:
    """Bytes of a block of rows, so that every thread can hold the one it works on and the one it reads ahead.

    Parameters
    ----------
    budget : int
        Bytes the process may hold above its idle size.
    n_threads : int
        Threads that read blocks at once.
    device_budget : int, optional
        Bytes the process may hold on its GPU, where it computes on one: blocks under way, and what a pass makes of
        them, take a fraction of that.

    Returns
    -------
    int
        Bytes, between 1 and 64 MiB, or 256 MiB for a GPU.

    Examples
    --------
    >>> block_bytes(1 << 30, 2) >> 20
    64
    >>> block_bytes(64 << 20, 2) >> 20
    4
    >>> block_bytes(64 << 30, 1, device_budget=1 << 30) >> 20
    64
    """
    if device_budget is None:
        return max(1 << 20, min(MAX_BLOCK_BYTES, budget // (8 * n_threads)))
    return max(1 << 20, min(MAX_DEVICE_BLOCK_BYTES, budget // (8 * n_threads), device_budget // 16))


def threads_that_fit(budget: int, n_threads: int, n_clusters: int, n_features: int) -> int:
    """Count the threads of a worker that may fold at once without passing its budget.

    Parameters
    ----------
    budget : int
        Bytes the worker may hold above its idle size.
    n_threads : int
        Threads it has.
    n_clusters, n_features : int
        Shape of the centroids.

    Returns
    -------
    int
        At least 1, at most `n_threads`.

    Raises
    ------
    ComputeError
        Not even one thread fits; the message gives the bytes it would take.

    Examples
    --------
    >>> threads_that_fit(4 << 30, 8, 4096, 384)
    8
    >>> threads_that_fit(100 << 20, 8, 4096, 384)
    2
    """
    one = fold_bytes(n_clusters, n_features)
    fit = int(budget * 0.75) // one
    if fit < 1:
        need = (one * 4 // 3 + PROCESS_BASE_BYTES) >> 20
        have = (budget + PROCESS_BASE_BYTES) >> 20
        raise ComputeError(
            f"memory_limit={have}MiB should be at least {need}MiB for n_clusters={n_clusters} of {n_features} "
            "features; raise --memory-limit or lower n_clusters"
        )
    return min(n_threads, fit)
