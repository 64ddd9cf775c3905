"""The inner loops of the GPU engine: the counterparts of `cpu.kernels`, with the same names, arguments and bits.

The kernels are CUDA C++, in the files `FILES`; CuPy compiles them on first use and caches them on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.compute.backend import device_argsort, device_attribute
from hkm_dask.compute.jit import kernel
from hkm_dask.compute.staging import ran_out
from hkm_dask.errors import ComputeError

#: Source files, in the order in which they are concatenated.
FILES = ("scores.cu", "distances.cu", "conflicts.cu", "walks.cu", "operands.cu", "sums.cu", "search.cu")
#: Source files of the Hopper kernel; see `hopper`.
HOPPER_FILES = ("scores.cu", "search_hopper.cu")
#: Threads per block where the number does not matter.
_THREADS = 256
#: Threads per block of `count_entries`; for `add_entries`, entries per block and step, and most threads and blocks.
_COUNT_THREADS, _RUN, _ADD_THREADS, _ADD_BLOCKS = 1024, 64, 256, 4096
#: Most blocks of `add_limbs`.
_LIMB_BLOCKS = 1024
#: Bytes of a pipeline stage of the fused search, and the number of stages beyond which more do not help.
STAGE_BYTES, _MOST_STAGES = (128 + 256) * 128, 4
#: Bytes of dynamic shared memory that a block gets by default.
_SHARED_UNASKED = 48 << 10
#: Rows and columns of a tile of `find_conflicts`: one word of bits.
_CONFLICT_TILE = 32
#: An older NVRTC takes only one -arch option, which is CuPy's.
_OLDEST_NVRTC = (12, 9)
#: Asynchronous copies and 16 × 8 × 16 products need compute capability 8.0 (Ampere), "80" in CuPy.
_OLDEST_CAPABILITY = 80


@cache
def n_stages() -> int:
    """Return the stages of the fused search that fit in shared memory: 4 on Hopper, 3 on an A100, 2 on smaller GPUs."""
    return min(_MOST_STAGES, device_attribute("MaxSharedMemoryPerBlockOptin") // STAGE_BYTES)


def source(files: tuple[str, ...] = FILES) -> str:
    """Return the concatenated CUDA C++ of some files; compiler messages refer to file and line."""
    folder = resources.files("hkm_dask.search.cuda")
    return "".join(f'#line 1 "{name}"\n{folder.joinpath(name).read_text(encoding="utf-8")}' for name in files)


@cache
def _compiled(half: bool) -> Any:
    import cupy

    capability = int(cupy.cuda.Device().compute_capability)
    if capability < _OLDEST_CAPABILITY:
        raise ComputeError(
            f"compute_capability={capability / 10} should be 8.0 or newer; use a newer GPU, or leave --local-cuda out"
        )
    options = ["--std=c++17", f"-DSTAGES={n_stages()}", *(["-DHALF_ROWS"] if half else [])]
    return cupy.RawModule(code=source(), options=tuple(options))


@cache
def _compiled_for_hopper() -> Any:
    import cupy

    version = cupy.cuda.nvrtc.getVersion()
    if version < _OLDEST_NVRTC:
        raise ComputeError(
            f"NVRTC={'.'.join(map(str, version))} should be 12.9 or newer; install hkm-dask[cuda12] anew"
        )
    # CuPy adds an -arch option without the instructions of sm_90a; NVRTC uses the first one.
    return cupy.RawModule(code=source(HOPPER_FILES), options=("-arch=sm_90a", "--std=c++17"))


def compile_kernels(device: int, halves: Iterable[bool], *, for_hopper: bool) -> None:
    """Compile the kernels for some row dtypes in parallel; compilation errors are raised where a kernel is used."""
    import cupy

    jobs = [partial(_compiled, half) for half in halves] + [_compiled_for_hopper] * for_hopper

    def compile_module(job: Callable[[], Any]) -> None:
        cupy.cuda.Device(device).use()  # the current device is per thread
        with suppress(Exception):
            job().compile()

    with ThreadPoolExecutor(len(jobs), "hkm-compile") as threads:
        list(threads.map(compile_module, jobs))


@cache
def _function(name: str, half: bool, takes_much_shared: bool) -> Any:
    kernel = (_compiled_for_hopper() if name.endswith("_hopper") else _compiled(half)).get_function(name)
    if takes_much_shared:  # request all there is, once: the limit belongs to the kernel, not to its caller
        most = device_attribute("MaxSharedMemoryPerBlockOptin")
        kernel.max_dynamic_shared_size_bytes = most - kernel.shared_size_bytes
    return kernel


def launch(
    name: str, rows: Any, n_blocks: int | tuple[int, ...], n_threads: int, *arguments: Any, shared_bytes: int = 0
) -> None:
    """Launch a kernel, compiled for the dtype of `rows`, on the current stream.

    The other arguments are CuPy arrays, and NumPy scalars of exactly the types of the kernel's parameters;
    `shared_bytes` is the dynamic shared memory of a block.
    """
    grid = (n_blocks,) if isinstance(n_blocks, int) else n_blocks
    half = rows.dtype == np.float16
    kernel = _function(name, half, shared_bytes > _SHARED_UNASKED)
    kernel(grid, (n_threads,), arguments, shared_mem=shared_bytes)


def launch_by_row(name: str, rows: Any, lanes: int, *arguments: Any, n: int | None = None) -> None:
    """Launch a kernel with `lanes` threads, 8 or 32, for each of `n` items, by default one per row; see `launch`."""
    launch(name, rows, -(-(len(rows) if n is None else n) * lanes // _THREADS), _THREADS, *arguments)


def unused(dtype: Any) -> Any:
    """Return an array for a parameter that the kernel is told to ignore."""
    import cupy

    return cupy.empty(1, dtype)


def if_there_is_room(make: Callable[[], Any]) -> Any | None:
    """Return what `make` allocates on the device; None if memory runs out."""
    try:
        return make()
    except MemoryError as error:
        if not ran_out(error):
            raise
        return None


class RowList:
    """List of row numbers to which kernels append; `n_listed` is a zero counter (uint64), made if not given."""

    def __init__(self, most: int, n_listed: Any | None = None) -> None:
        import cupy

        self.rows = cupy.empty(most, cupy.int64)
        self.n_listed = cupy.zeros(1, cupy.uint64) if n_listed is None else n_listed

    def get(self) -> Any:
        """Return the numbers, int64 on the device, in any order; synchronizes to learn how many there are."""
        return self.rows[: int(self.n_listed[0])]


def label_distances(rows: Any, centroids: Any, stayed: Any, labels: Any, distances: Any) -> None:
    """Write each row's squared distance to the centroid of its label; see `cpu.kernels.label_distances`."""
    nothing = unused(np.int32), unused(np.int64), unused(np.uint64)
    _label_distances(rows, centroids, stayed, labels, distances, False, *nothing, 0, None, None)


def split_rows(
    rows: Any, centroids: Any, stayed: Any, labels: Any, distances: Any, n_listed: Any, gathers: int = 0,
    operands: Any = None, gathered: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Do what `label_distances` does, and split the rows into those now further from their centroid, and others.

    `n_listed` are two zero counters (uint64). With `gathers` 1, the operands (float16) of the former are copied to
    `gathered`, with 2, those of the others after them as well. Returns the previous labels (int32), and the numbers of
    the rows that are further and of the others (int64), in any order.
    """
    import cupy

    previous, which = cupy.empty(len(rows), cupy.int32), cupy.empty(len(rows), cupy.int64)
    listed = previous, which, n_listed, gathers, operands, gathered
    _label_distances(rows, centroids, stayed, labels, distances, True, *listed)
    n_further = int(n_listed[1])
    return previous, which[:n_further], which[n_further:]


def _label_distances(
    rows: Any, centroids: Any, stayed: Any, labels: Any, distances: Any, splits: bool, previous: Any, which: Any,
    n_listed: Any, gathers: int, operands: Any, gathered: Any,
) -> None:  # fmt: skip
    flags = stayed if len(stayed) else unused(np.bool_)
    nothing = unused(np.float16)
    copied = (operands, operands.shape[1], gathered) if gathers else (nothing, 0, nothing)
    launch_by_row(
        "label_distances", rows, 8, rows, centroids, flags, np.int32(len(stayed) > 0), labels, distances,
        np.int64(len(rows)), np.int32(rows.shape[1]), np.int32(splits), previous, which, n_listed, np.int32(gathers),
        copied[0], np.int32(copied[1]), copied[2],
    )  # fmt: skip


def accept_in_order(rows: Any, limits: Any) -> NDArray[np.bool_]:
    """Return, on the host, which rows lie beyond their squared-distance limit from all accepted rows before them.

    The device finds the pairs that are too close, and the host scans their bits in order.
    """
    import cupy

    n, n_words = len(rows), -(-len(rows) // _CONFLICT_TILE)
    conflicts = cupy.empty((n, n_words), cupy.uint32)
    launch(
        "find_conflicts", rows, (n_words, n_words), 256, rows, limits, np.int32(n), np.int32(rows.shape[1]), conflicts
    )
    accepted = np.ones(n, np.bool_)
    _accept_by_conflicts(conflicts.get(), accepted)
    return accepted


@kernel("void(u4[:,::1], b1[::1])")
def _accept_by_conflicts(conflicts, accepted):  # type: ignore[no-untyped-def]
    """Do what `cpu.kernels.accept_in_order` does, given bits (n_rows, n_words) of the rows too close before each."""
    words = np.zeros(conflicts.shape[1], np.uint32)
    for i in range(conflicts.shape[0]):
        own = i >> 5
        if (words[own] >> np.uint32(i & 31)) & np.uint32(1):
            accepted[i] = False
        else:
            for w in range(own, conflicts.shape[1]):
                words[w] |= conflicts[i, w]


def order(labels: NDArray[np.int32], keys: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Return row positions sorted by label (none negative), then key (below 2^32), then position.

    All arrays are on the host; None if device memory runs out.
    """
    import cupy

    try:
        both = cupy.asarray(labels).astype(cupy.int64)
        both *= 1 << 32
        both += cupy.asarray(keys.view(np.int64))
        places: NDArray[np.int64] = device_argsort(both).get()
        return places
    except MemoryError as error:
        if not ran_out(error):
            raise
        return None


def add_rows(rows: Any, labels: Any, weights: Any, scale: float, sums: Any, counts: Any, fine: float = 0.0) -> None:
    """Add rows, in fixed point, to the sums of their clusters; see `cpu.kernels.add_rows`.

    With `fine` fine units per unit, sums have two columns per feature; see `fixed_point.RowUnits`.
    """
    _add_entries(rows, None, labels, weights, (scale, fine), sums, counts)


def move_rows(
    rows: Any, before: Any, after: Any, weights: Any, scale: float, sums: Any, counts: Any, fine: float = 0.0
) -> None:
    """Update sums for the rows whose label changed; see `cpu.kernels.move_rows` and `add_rows`."""
    _add_entries(rows, before, after, weights, (scale, fine), sums, counts)


_thread = threading.local()


def _counters(n: int) -> Any:
    """Return zero counters (uint32) for `count_entries`, which resets them; each thread has its own."""
    import cupy

    device = cupy.cuda.runtime.getDevice()
    if getattr(_thread, "device", None) != device or len(_thread.counters) < n:
        _thread.counters, _thread.device = cupy.zeros(n, cupy.uint32), device
    return _thread.counters


def _add_entries(
    rows: Any, before: Any | None, after: Any, weights: Any, units: tuple[float, float], sums: Any, counts: Any
) -> None:
    """Add rows to the sums of the clusters they join, and subtract them from those they leave, sorted by cluster.

    Sorting keeps atomic additions to memory few. The device counts the entries itself, so nothing synchronizes.
    """
    import cupy

    (n, n_features), k = rows.shape, len(counts)
    if not n:
        return
    most = n if before is None else 2 * n
    counters, starts, entries = _counters(k + 1), cupy.empty(k + 1, cupy.uint32), cupy.empty(most, cupy.int32)
    labels = unused(np.int32) if before is None else before, np.int32(before is not None), after
    launch(
        "count_entries", rows, -(-n // _COUNT_THREADS), _COUNT_THREADS, *labels, np.int64(n), np.int32(k), counters[1:],
        counters[:1], starts,
    )  # fmt: skip
    launch_by_row("place_entries", rows, 1, *labels, np.int64(n), starts, entries)
    # Two features per thread if rows begin at even offsets.
    n_threads = -(-n_features // 2) if n_features % 2 == 0 else n_features
    width = min(-(-n_threads // 32) * 32, _ADD_THREADS)
    launch(
        "add_entries", rows, (min(-(-most // _RUN), _ADD_BLOCKS), -(-n_threads // width)), width, rows, entries,
        starts[k:], labels[0], after, weights if len(weights) else unused(np.int64), np.int32(len(weights) > 0),
        *map(np.float64, units), sums, counts, np.int32(n_features),
    )  # fmt: skip


def add_limbs(values: Any, weights: Any, scale: float, base: float, limit: float, totals: Any) -> None:
    """Add float64 values to int64 limbs (2, n_limbs), of all values and of those up to `limit`; see `FixedPointSum`."""
    n, n_limbs = len(values), totals.shape[1]
    if n:
        launch(
            "add_limbs", values, min(-(-n // _THREADS), _LIMB_BLOCKS), _THREADS, values,
            weights if len(weights) else unused(np.int64), np.int32(len(weights) > 0), np.float64(scale),
            np.float64(base), np.float64(limit), np.int64(n), np.int32(n_limbs), totals, shared_bytes=16 * n_limbs,
        )  # fmt: skip
