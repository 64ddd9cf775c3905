"""Operands of tensor-core products, made from rows and centroids, with their rounding errors, and the product itself.

Rows stored in float16 are used unchanged; others are centered and converted to the dtype that the form needs. Rounding
errors are measured in float64 for every row, and lead to the bounds on the scores (see `index`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hkm_dask.search.cuda.kernels import launch_by_row
from hkm_dask.search.geometry import Geometry

#: Forms of scores: fused in float16 (first on Hopper); cuBLAS in float16, bfloat16, TF32, float32, float64.
Form = Literal["hopper", "fused", "half", "bfloat", "tf32", "single", "double"]
FORMS: tuple[Form, ...] = ("hopper", "fused", "half", "bfloat", "tf32", "single", "double")
#: Forms of the fused search.
FUSED: tuple[Form, ...] = ("hopper", "fused")
#: Forms that a geometry's precision allows; float32 precision is also reached at the speed of 16 bits.
FORMS_OF: dict[str, tuple[Form, ...]] = {
    "float32": ("hopper", "fused", "half", "single"),
    "float16": ("hopper", "fused", "half"),
    "bfloat16": ("bfloat",),
    "tf32": ("tf32",),
    "float64": ("double",),
}

#: Operands are padded to multiples of 16 bytes, which are copied at once.
_WIDTH = 8
#: Largest coordinate of a float16 operand, and largest scale, as float32 must hold products of both.
_LARGEST, _FINEST = 2.0**14, 2.0**40
#: If the norm of the mean exceeds this multiple of the rows' radius, centering costs less than the lost bits.
_FAR = 4.0


@dataclass(frozen=True)
class CudaOperand:
    """Rows or centroids as an operand of the product, all on the device."""

    matrix: Any  # (n_rows, width): float16, float32, float64, or uint16 for the bits of bfloat16
    norms: Any  # float64 (n_rows,): squared distances to the mean
    #: float64 (n_rows,): norms of the rows as written, and of their rounding errors.
    sizes: Any
    errors: Any
    dots: Any  # float64 (n_rows,): inner products of the centered rows with the mean
    scale: float  # units of the matrix per unit of a value, a power of two
    as_stored: bool  # whether the matrix is the rows themselves, not centered

    @property
    def n_bytes(self) -> int:
        """Size in bytes, not counting the rows themselves."""
        return int(3 * self.norms.nbytes + (0 if self.as_stored else self.matrix.nbytes))


#: Output dtype for each kind of operand, which is also part of the kernel's name.
_STORED = {"half": np.float16, "bfloat": np.uint16, "single": np.float32, "double": np.float64}


def kind_of(form: Form) -> str:
    """Return the kind of operand that a form needs: half, bfloat, single or double.

    >>> kind_of("fused"), kind_of("tf32")
    ('half', 'single')
    """
    return "half" if form in FUSED else {"tf32": "single"}.get(form, form)


def make_cuda_operand(
    rows: Any, geometry: Geometry, kind: str = "half", *, largest: float | None = None
) -> CudaOperand:
    """Convert rows to an operand.

    `largest` is the largest absolute value of the centered rows, by default what the geometry allows. Rows beyond it
    lose precision, which their `errors` show.
    """
    import cupy

    n_rows, n_features = rows.shape
    norms, sizes, errors = (cupy.empty(n_rows, cupy.float64) for _ in range(3))
    mean = device_mean(geometry)
    if largest is None and kind == "half" and takes_as_stored(rows.dtype, geometry):
        launch_by_row("measure", rows, 32, rows, mean, norms, sizes, np.int64(n_rows), np.int32(n_features))
        errors.fill(0.0)
        return CudaOperand(rows, norms, sizes, errors, None, 1.0, True)
    scale = 1.0
    if kind == "half":
        most = 2.0 * geometry.max_abs if largest is None else largest
        scale = min(2.0 ** np.floor(np.log2(_LARGEST / most)), _FINEST) if most > 0 else 1.0
    width = -(-n_features // _WIDTH) * _WIDTH
    matrix, dots = cupy.empty((n_rows, width), _STORED[kind]), cupy.empty(n_rows, cupy.float64)
    launch_by_row(
        f"center_{kind}", rows, 32, rows, mean, np.float32(scale), matrix, norms, sizes,
        errors, dots, np.int64(n_rows), np.int32(n_features), np.int32(width),
    )  # fmt: skip
    return CudaOperand(matrix, norms, sizes, errors, dots, float(scale), False)


_means: dict[str, Any] = {}


def device_mean(geometry: Geometry) -> Any:
    """Return the mean of a geometry on the device, copied once while the geometry is in use."""
    import cupy

    key = f"{geometry.name} {cupy.cuda.runtime.getDevice()}"
    if key not in _means:
        while len(_means) >= 8:
            _means.pop(next(iter(_means)), None)
        _means[key] = cupy.asarray(geometry.origin)
    return _means[key]


def takes_as_stored(dtype: Any, geometry: Geometry) -> bool:
    """Tell whether rows of this dtype are used as operands unchanged."""
    if dtype != np.float16 or len(geometry.origin) % _WIDTH:
        return False
    radius = geometry.radius or geometry.max_abs
    return float(np.linalg.norm(geometry.origin)) <= _FAR * radius


def multiply(a: Any, b: Any, out: Any, form: Form) -> None:
    """Write ``a @ b.T`` of two operand matrices to float32, with all products and sums in float32 or better."""
    import cupy
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    # CUDA data types of the operands and the result, and the compute type.
    a_type, out_type, compute = {
        "half": (2, 0, cublas.CUBLAS_COMPUTE_32F),
        "bfloat": (14, 0, cublas.CUBLAS_COMPUTE_32F),
        "tf32": (0, 0, cublas.CUBLAS_COMPUTE_32F_FAST_TF32),
        "single": (0, 0, cublas.CUBLAS_COMPUTE_32F_PEDANTIC),  # never TF32
        "double": (1, 1, cublas.CUBLAS_COMPUTE_64F),
    }["half" if form in FUSED else form]
    result = cupy.empty(out.shape, cupy.float64) if form == "double" else out
    one, zero = np.ones(1, result.dtype), np.zeros(1, result.dtype)
    (n, width), k = a.shape, len(b)
    # cuBLAS is column-major: there b is (width, k) and out is (k, n).
    cublas.gemmEx(
        device.get_cublas_handle(), cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, k, n, width, one.ctypes.data,
        b.data.ptr, a_type, width, a.data.ptr, a_type, width, zero.ctypes.data, result.data.ptr, out_type, k, compute,
        -1,
    )  # fmt: skip
    if result is not out:
        out[...] = result
