"""The device, pinned memory and cuBLAS of the emulated CuPy."""

from __future__ import annotations

import ctypes
from typing import Any, Self

import numpy as np

from tests.emulated import costs, memory, streams


class CUDARuntimeError(RuntimeError):
    """An error code of the CUDA runtime."""

    def __init__(self, status: int, infos: Any = None) -> None:
        super().__init__(f"cudaError{status}: emulated")


CUDARuntimeError.__module__ = "cupy_backends.cuda.api.runtime"


class Device:
    """The only device."""

    attributes = {  # noqa: RUF012
        "ComputeMode": 0,
        "L2CacheSize": 60 << 20,
        "MultiProcessorCount": 132,
        "MaxSharedMemoryPerBlock": 48 << 10,
        "MaxSharedMemoryPerBlockOptin": 232448,
        "MaxSharedMemoryPerMultiprocessor": 228 << 10,
        "MaxThreadsPerBlock": 1024,
        "MaxThreadsPerMultiProcessor": 2048,
        "WarpSize": 32,
    }
    compute_capability = "90"
    cublas_handle = 1
    pci_bus_id = "0000:00:00.0"

    def __init__(self, device: int | Device | None = None) -> None:
        self.id = int(device or 0)
        if self.id:
            raise CUDARuntimeError(101)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return self.id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def use(self) -> None:
        pass

    def synchronize(self) -> None:
        streams.synchronize_device()

    @property
    def mem_info(self) -> tuple[int, int]:
        return memory_information()


def memory_information() -> tuple[int, int]:
    """Return the free and the total bytes of device memory."""
    return memory.pool._capacity - memory.pool.total_bytes(), memory.pool._capacity


def device_count() -> int:
    return 1


def set_device(device: int) -> None:
    Device(device)


def get_device_properties(device: int) -> dict[str, Any]:
    return {
        "name": b"emulated on the CPU",
        "uuid": bytes(16),
        "totalGlobalMem": memory.pool._capacity,
        "multiProcessorCount": 132,
        "l2CacheSize": 60 << 20,
        "sharedMemPerBlockOptin": 232448,
        "major": 9,
        "minor": 0,
    }


def empty_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    """Return pinned host memory, poisoned."""
    out = np.empty(shape, dtype, order)  # type: ignore[call-overload]
    memory.poison(out)
    memory.pin(out)
    return out


class PinnedMemory:
    """Poisoned pinned host memory; `PinnedMemoryPointer` gives access to it."""

    def __init__(self, size: int, flags: int = 0) -> None:
        self._array = empty_pinned(size, np.uint8)


def pinned_memory_pointer(mem: PinnedMemory, offset: int) -> np.ndarray:
    """Return pinned memory from an offset on, as a buffer."""
    return mem._array[offset:]


class PinnedMemoryPool:
    """`cupy.get_default_pinned_memory_pool()`, always empty."""

    def free_all_blocks(self) -> None:
        """Do nothing."""


def zeros_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    """Return pinned host memory of zeros."""
    out = empty_pinned(shape, dtype, order)
    out.fill(0)
    return out


# cuBLAS: matrices are column-major, so element (i, j) is at i + j * ld

CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C = 0, 1, 2
# CUDA_R_32F, _64F, _16F, _16BF: NumPy has no bfloat16, which is the upper half of a float32
_DATA_TYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 2: np.dtype(np.float16), 14: np.dtype(np.uint16)}
# CUBLAS_COMPUTE_32F, _PEDANTIC and _FAST_TF32, and _64F: types of operands and result, and the computation type
_COMPUTES = {
    68: ((0, 2, 14), 0, np.float32), 69: ((0,), 0, np.float32), 77: ((0,), 0, np.float32), 70: ((1,), 1, np.float64),
}  # fmt: skip


def _matrix(ptr: int, n_rows: int, n_columns: int, leading: int, dtype: np.dtype, writes: bool = False) -> np.ndarray:
    if leading < max(1, n_rows):
        raise ValueError(f"CUBLAS_STATUS_INVALID_VALUE: a leading dimension of {leading} should be >= {n_rows}")
    if not n_rows or not n_columns:
        return np.empty((n_rows, n_columns), dtype)
    raw = memory.span(int(ptr), ((n_columns - 1) * leading + n_rows) * dtype.itemsize)
    streams.operate([memory.use(raw, writes)])
    flat = raw.view(dtype)
    return np.lib.stride_tricks.as_strided(flat, (n_rows, n_columns), (dtype.itemsize, leading * dtype.itemsize))


def _as_multiplied(matrix: np.ndarray, data_type: int, compute_type: int, computed_in: type) -> np.ndarray:
    """Return the values that are multiplied: TF32 truncates the mantissa of float32 to 10 bits."""
    if data_type == 14:
        return (matrix.astype(np.uint32) << 16).view(np.float32)
    values = matrix.astype(computed_in)
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) if compute_type == 77 else values


def gemm_ex(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int, lda: int,
    B: int, Btype: int, ldb: int, beta: int, C: int, Ctype: int, ldc: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    """Compute C = alpha op(A) op(B) + beta C; `alpha` and `beta` point to host values of the computation type."""
    if handle != Device.cublas_handle:
        raise ValueError("CUBLAS_STATUS_NOT_INITIALIZED")
    types, result_type, computed_in = _COMPUTES.get(computeType, ((), None, np.float32))
    if Atype not in types or Btype != Atype or Ctype != result_type:
        raise ValueError(
            f"CUBLAS_STATUS_NOT_SUPPORTED: operands {Atype} and {Btype}, result {Ctype}, computed as {computeType}"
        )
    costs.launched("gemm")
    dtype = _DATA_TYPES[Atype]
    left = _matrix(A, *((m, k) if transa == CUBLAS_OP_N else (k, m)), lda, dtype)
    right = _matrix(B, *((k, n) if transb == CUBLAS_OP_N else (n, k)), ldb, dtype)
    left, right = (_as_multiplied(side, Atype, computeType, computed_in) for side in (left, right))
    left, right = left if transa == CUBLAS_OP_N else left.T, right if transb == CUBLAS_OP_N else right.T
    out = _matrix(C, m, n, ldc, _DATA_TYPES[Ctype], writes=True)
    pointed_to = ctypes.c_double if Ctype == 1 else ctypes.c_float
    scale, keep = (computed_in(pointed_to.from_address(int(at)).value) for at in (alpha, beta))
    with np.errstate(all="ignore"):
        product = scale * (left @ right)
        out[...] = product if keep == 0 else product + keep * out
