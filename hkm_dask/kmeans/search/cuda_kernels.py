"""The inner loops of the GPU path: `cpu_kernels` for arrays on the device, with the same names, arguments and bits.

The kernels themselves are CUDA C++, in the files `FILES`; CuPy compiles them on first use and keeps them on disk.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from hkm_dask.compute.backend import device_attribute
from hkm_dask.errors import ComputeError

#: The source, in the order of its parts.
FILES = ("scores.cu", "distances.cu", "operands.cu", "search.cu")
#: That of the kernel for Hopper; see `cuda_hopper`.
HOPPER_FILES = ("scores.cu", "search_hopper.cu")
#: Threads of a block, where any number would do.
_THREADS = 256
#: Entries a block of `add_entries` walks over, and its threads.
_RUN, _RUN_THREADS = 64, 128
#: Bytes of a stage of the fused search, and stages beyond which more would not help.
STAGE_BYTES, _MOST_STAGES = (128 + 256) * 128, 4
#: Asynchronous copies and products of 16 × 8 × 16 came with compute capability 8.0 (Ampere), "80" to CuPy.
_OLDEST_CAPABILITY = 80


@cache
def n_stages() -> int:
    """Stages of the fused search that a block's shared memory holds: 4 on Hopper, 3 on an A100, 2 on smaller ones."""
    return min(_MOST_STAGES, device_attribute("MaxSharedMemoryPerBlockOptin") // STAGE_BYTES)


def source(files: tuple[str, ...] = FILES) -> str:
    """The CUDA C++ of all kernels, or of other files; the compiler names the file and the line of what it refuses."""
    folder = resources.files("hkm_dask.kmeans.search")
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


@cache
def _function(name: str, half: bool, shared_bytes: int) -> Any:
    kernel = (_compiled_for_hopper() if name.endswith("_hopper") else _compiled(half)).get_function(name)
    if shared_bytes > 48 << 10:  # more than that has to be asked for
        kernel.max_dynamic_shared_size_bytes = shared_bytes
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
    _function(name, half, shared_bytes)(grid, (n_threads,), arguments, shared_mem=shared_bytes)


def launch_by_row(name: str, rows: Any, lanes: int, *arguments: Any, n: int | None = None) -> None:
    """Run a kernel with `lanes` threads, 8 or 32, for each of `n` items, one for each row by default; see `launch`."""
    launch(name, rows, -(-(len(rows) if n is None else n) * lanes // _THREADS), _THREADS, *arguments)


def label_distances(rows: Any, centroids: Any, stayed: Any, labels: Any, distances: Any) -> None:
    """Write each row's squared distance to the centroid it is labeled with; see `cpu_kernels.label_distances`."""
    import cupy

    flags = stayed if len(stayed) else cupy.zeros(1, cupy.bool_)
    launch_by_row(
        "label_distances", rows, 8, rows, centroids, flags, np.int32(len(stayed) > 0), labels, distances,
        np.int64(len(rows)), np.int32(rows.shape[1]),
    )  # fmt: skip


def add_rows(rows: Any, labels: Any, weights: Any, scale: float, sums: Any, counts: Any) -> None:
    """Add rows, in fixed point, to the sums of their clusters; see `cpu_kernels.add_rows`."""
    import cupy

    add_entries(rows, cupy.arange(len(rows), dtype=cupy.int64), labels, weights, scale, sums, counts)


def move_rows(rows: Any, before: Any, after: Any, weights: Any, scale: float, sums: Any, counts: Any) -> int:
    """Bring sums up to date for the rows whose label changed; see `cpu_kernels.move_rows`."""
    import cupy

    moved = cupy.flatnonzero(before != after)
    if not len(moved):
        return 0
    share = weights[moved] if len(weights) else cupy.ones(len(moved), cupy.int64)
    labels, weights = cupy.concatenate([before[moved], after[moved]]), cupy.concatenate([-share, share])
    add_entries(rows, cupy.concatenate([moved, moved]), labels, weights, scale, sums, counts)
    return len(moved)


def add_entries(rows: Any, entries: Any, labels: Any, weights: Any, scale: float, sums: Any, counts: Any) -> None:
    """Add the rows `entries` (int64), sorted by label so that few additions go to memory; see `cpu_kernels.add_rows`.

    `labels` and `weights` belong to the entries, of which one row may have several.
    """
    import cupy

    if not len(entries):
        return
    order = cupy.argsort(labels)
    n, n_features = len(entries), rows.shape[1]
    weighted = len(weights) > 0
    launch(
        "add_entries", rows, (-(-n // _RUN), -(-n_features // _RUN_THREADS)), _RUN_THREADS,
        rows, entries[order], labels[order], weights[order] if weighted else cupy.zeros(1, cupy.int64),
        np.int32(weighted), np.float64(scale), sums, counts, np.int64(n), np.int32(n_features),
    )  # fmt: skip
