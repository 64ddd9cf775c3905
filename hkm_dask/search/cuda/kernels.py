"""The inner loops of the GPU path: `cpu.kernels` for arrays on the device, with the same names, arguments and bits.

The kernels themselves are CUDA C++, in the files `FILES`; CuPy compiles them on first use and keeps them on disk.
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

#: The source, in the order of its parts.
FILES = ("scores.cu", "distances.cu", "conflicts.cu", "walks.cu", "operands.cu", "sums.cu", "search.cu")
#: That of the kernel for Hopper; see `hopper`.
HOPPER_FILES = ("scores.cu", "search_hopper.cu")
#: Threads of a block, where any number would do.
_THREADS = 256
#: Threads of a block of `count_entries`; of `add_entries`: entries a block takes at once, threads and blocks at most.
_COUNT_THREADS, _RUN, _ADD_THREADS, _ADD_BLOCKS = 1024, 64, 256, 4096
#: Blocks of `add_limbs` at most.
_LIMB_BLOCKS = 1024
#: Bytes of a stage of the fused search, and stages beyond which more would not help.
STAGE_BYTES, _MOST_STAGES = (128 + 256) * 128, 4
#: Bytes of dynamic shared memory that a block has without asking for them.
_SHARED_UNASKED = 48 << 10
#: Rows and columns of a tile of `find_conflicts`: a word of bits.
_CONFLICT_TILE = 32
#: Asynchronous copies and products of 16 × 8 × 16 came with compute capability 8.0 (Ampere), "80" to CuPy.
_OLDEST_CAPABILITY = 80


@cache
def n_stages() -> int:
    """Stages of the fused search that a block's shared memory holds: 4 on Hopper, 3 on an A100, 2 on smaller ones."""
    return min(_MOST_STAGES, device_attribute("MaxSharedMemoryPerBlockOptin") // STAGE_BYTES)


def source(files: tuple[str, ...] = FILES) -> str:
    """The CUDA C++ of all kernels, or of other files; the compiler names the file and the line of what it refuses."""
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

    # CuPy adds an -arch without the instructions of sm_90a; NVRTC takes the first.
    return cupy.RawModule(code=source(HOPPER_FILES), options=("-arch=sm_90a", "--std=c++17"))


def compile_kernels(device: int, halves: Iterable[bool], *, for_hopper: bool) -> None:
    """Compile the kernels for some types of rows side by side; what does not compile is told where it is used."""
    import cupy

    jobs = [partial(_compiled, half) for half in halves] + [_compiled_for_hopper] * for_hopper

    def compile_module(job: Callable[[], Any]) -> None:
        cupy.cuda.Device(device).use()  # a thread has a device of its own
        with suppress(Exception):
            job().compile()

    with ThreadPoolExecutor(len(jobs), "hkm-compile") as threads:
        list(threads.map(compile_module, jobs))


@cache
def _function(name: str, half: bool, takes_much_shared: bool) -> Any:
    kernel = (_compiled_for_hopper() if name.endswith("_hopper") else _compiled(half)).get_function(name)
    if takes_much_shared:  # asked for once, all there is: a limit is the kernel's, whoever got it from its module
        most = device_attribute("MaxSharedMemoryPerBlockOptin")
        kernel.max_dynamic_shared_size_bytes = most - kernel.shared_size_bytes
    return kernel


def launch(
    name: str, rows: Any, n_blocks: int | tuple[int, ...], n_threads: int, *arguments: Any, shared_bytes: int = 0
) -> None:
    """Run a kernel, compiled for the type of `rows`, on the current stream.

    The other arguments are CuPy arrays, and NumPy scalars of exactly the types of the kernel's parameters;
    `shared_bytes` is the dynamic shared memory of a block.
    """
    grid = (n_blocks,) if isinstance(n_blocks, int) else n_blocks
    half = rows.dtype == np.float16
    kernel = _function(name, half, shared_bytes > _SHARED_UNASKED)
    kernel(grid, (n_threads,), arguments, shared_mem=shared_bytes)


def launch_by_row(name: str, rows: Any, lanes: int, *arguments: Any, n: int | None = None) -> None:
    """Run a kernel with `lanes` threads, 8 or 32, for each of `n` items, one for each row by default; see `launch`."""
    launch(name, rows, -(-(len(rows) if n is None else n) * lanes // _THREADS), _THREADS, *arguments)


def unused(dtype: Any) -> Any:
    """An array for a parameter that a kernel is told to leave alone."""
    import cupy

    return cupy.empty(1, dtype)


def if_there_is_room(make: Callable[[], Any]) -> Any | None:
    """What is made on the device; None where its memory runs out."""
    try:
        return make()
    except MemoryError as error:
        if not ran_out(error):
            raise
        return None


class RowList:
    """Numbers of rows that kernels append to; `n_listed` is a counter (uint64) at 0, made unless it is given."""

    def __init__(self, most: int, n_listed: Any | None = None) -> None:
        import cupy

        self.rows = cupy.empty(most, cupy.int64)
        self.n_listed = cupy.zeros(1, cupy.uint64) if n_listed is None else n_listed

    def get(self) -> Any:
        """The numbers, int64 on the device, in any order; waits for it to know how many."""
        return self.rows[: int(self.n_listed[0])]


def label_distances(rows: Any, centroids: Any, stayed: Any, labels: Any, distances: Any) -> None:
    """Write each row's squared distance to the centroid it is labeled with; see `cpu.kernels.label_distances`."""
    nothing = unused(np.int32), unused(np.int64), unused(np.uint64)
    _label_distances(rows, centroids, stayed, labels, distances, False, *nothing, 0, None, None)


def split_rows(
    rows: Any, centroids: Any, stayed: Any, labels: Any, distances: Any, n_listed: Any, gathers: int = 0,
    operands: Any = None, gathered: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Do as `label_distances`, and tell the rows that are further from their centroid than they were from the others.

    `n_listed` are two counters (uint64), at 0. Operands (float16) of the first are copied to `gathered` if `gathers` is
    1, and those of the others after them if it is 2. Gives the labels of before (int32), and the numbers of the rows
    that are further and of the others (int64), in any order.
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
    """Which rows lie beyond their limit, a squared distance, from all before them that are accepted; on the host.

    The device finds which pairs lie too close, and the host walks through their bits.
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
    """Do as `cpu.kernels.accept_in_order`, by bits (n_rows, n_words) of which rows before each lie too close."""
    words = np.zeros(conflicts.shape[1], np.uint32)
    for i in range(conflicts.shape[0]):
        own = i >> 5
        if (words[own] >> np.uint32(i & 31)) & np.uint32(1):
            accepted[i] = False
        else:
            for w in range(own, conflicts.shape[1]):
                words[w] |= conflicts[i, w]


def order(labels: NDArray[np.int32], keys: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Places of rows in the order of their label, none negative, then of their key, below 2^32, then of their place.

    All is on the host; None where device memory runs out.
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

    With `fine` units to a unit, sums have two columns a feature; see `fixed_point.RowUnits`.
    """
    _add_entries(rows, None, labels, weights, (scale, fine), sums, counts)


def move_rows(
    rows: Any, before: Any, after: Any, weights: Any, scale: float, sums: Any, counts: Any, fine: float = 0.0
) -> None:
    """Bring sums up to date for the rows whose label changed; see `cpu.kernels.move_rows`, and `add_rows`."""
    _add_entries(rows, before, after, weights, (scale, fine), sums, counts)


_thread = threading.local()


def _counters(n: int) -> Any:
    """Counters (uint32) at 0 for `count_entries`, which leaves them so; a thread has its own."""
    import cupy

    device = cupy.cuda.runtime.getDevice()
    if getattr(_thread, "device", None) != device or len(_thread.counters) < n:
        _thread.counters, _thread.device = cupy.zeros(n, cupy.uint32), device
    return _thread.counters


def _add_entries(
    rows: Any, before: Any | None, after: Any, weights: Any, units: tuple[float, float], sums: Any, counts: Any
) -> None:
    """Add rows to the sums of the clusters they join, and take them from those they leave; sorted by cluster.

    So few additions go to memory. The device counts what there is to do, and nothing waits for it.
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
    # Two features a thread where they lie at even places.
    n_threads = -(-n_features // 2) if n_features % 2 == 0 else n_features
    width = min(-(-n_threads // 32) * 32, _ADD_THREADS)
    launch(
        "add_entries", rows, (min(-(-most // _RUN), _ADD_BLOCKS), -(-n_threads // width)), width, rows, entries,
        starts[k:], labels[0], after, weights if len(weights) else unused(np.int64), np.int32(len(weights) > 0),
        *map(np.float64, units), sums, counts, np.int32(n_features),
    )  # fmt: skip


def add_limbs(values: Any, weights: Any, scale: float, base: float, limit: float, totals: Any) -> None:
    """Add float64 values to limbs of int64 (2, n_limbs): all of them, and those up to `limit`; see `FixedPointSum`."""
    n, n_limbs = len(values), totals.shape[1]
    if n:
        launch(
            "add_limbs", values, min(-(-n // _THREADS), _LIMB_BLOCKS), _THREADS, values,
            weights if len(weights) else unused(np.int64), np.int32(len(weights) > 0), np.float64(scale),
            np.float64(base), np.float64(limit), np.int64(n), np.int32(n_limbs), totals, shared_bytes=16 * n_limbs,
        )  # fmt: skip
