"""A strict `cupy.ndarray` on NumPy: errors of a real GPU, such as mixing host and device arrays, occur here too."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import Any

import numpy as np

from tests.emulated import costs, memory, streams

_NO_CONVERSION = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)


class MemoryPointer:
    """`ndarray.data`: the address of the elements."""

    def __init__(self, array: np.ndarray) -> None:
        self.ptr = array.ctypes.data
        self.mem = memory.owner(array)
        self.device_id = 0


class ndarray:
    """An array in emulated device memory."""

    __slots__ = ("__weakref__", "_host")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any, dtype: Any = float, memptr: object = None, strides: object = None, order: str = "C"):
        if memptr is not None or strides is not None:
            raise NotImplementedError("the emulator makes arrays only in new memory")
        self._host = memory.empty(shape, dtype, order)

    # Attributes
    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    data = property(lambda self: MemoryPointer(self._host))
    T = property(lambda self: _view(self._host.T))

    @property
    def device(self) -> Any:
        import cupy

        return cupy.cuda.Device(0)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        host = self._host
        return {"shape": host.shape, "typestr": host.dtype.str, "data": (host.ctypes.data, False), "version": 3}

    def __array__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(_NO_CONVERSION)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            return NotImplemented
        return _apply(ufunc, *inputs, **kwargs)

    def __array_function__(self, func: Callable, types: object, args: Any, kwargs: Any) -> Any:
        import cupy

        ours = getattr(cupy, func.__name__, None)
        if ours is None:
            raise TypeError(f"the emulated CuPy has no {func.__name__}")
        return ours(*args, **kwargs)

    # The elements, for NumPy to read or to write on the current stream
    def _reads(self) -> np.ndarray:
        streams.operate([memory.use(self._host, False)])
        return self._host

    def _writes(self) -> np.ndarray:
        streams.operate([memory.use(self._host, True)])
        return self._host

    # Between host and device
    def get(
        self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        stream = stream or streams.get_current_stream()
        if out is None:
            out = np.empty(self.shape, self.dtype, order)  # type: ignore[call-overload]
        if type(out) is not np.ndarray:
            raise TypeError(f"Only numpy.ndarray can be obtained from cupy.ndarray, got {type(out)}")
        if out.dtype != self.dtype:
            raise TypeError(f"{self.dtype} array cannot be obtained to {out.dtype} array")
        if out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        if not (out.flags.c_contiguous if self.flags.c_contiguous else out.flags.f_contiguous):
            raise RuntimeError("`out` should be contiguous in the order of the array")
        costs.copied(downloaded=self.nbytes)
        if blocking or not memory.is_pinned(out):
            streams.operate([memory.use(self._host, False)], stream)
            stream.synchronize()
            out[...] = self._host
        else:
            memory.poison(out)
            source, target = self._host, out
            streams.operate([memory.use(source, False)], stream, lambda: target.__setitem__(..., source))
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not (self.flags.c_contiguous or self.flags.f_contiguous):
            raise RuntimeError("Cannot set to non-contiguous array")
        target = [memory.use(self._host, True)]
        costs.copied(uploaded=arr.nbytes)
        if memory.is_pinned(arr):
            host = self._host
            streams.operate(target, stream, lambda: host.__setitem__(..., arr))
        else:
            streams.operate(target, stream)
            self._host[...] = arr

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    # Shape and type
    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        return _share(self, lambda host: host.reshape(*shape, order=order))

    def ravel(self, order: str = "C") -> ndarray:
        return _share(self, lambda host: host.ravel(order))

    def flatten(self, order: str = "C") -> ndarray:
        costs.launched("copy")
        return wrap(self._reads().flatten(order))  # type: ignore[arg-type]

    def squeeze(self, axis: Any = None) -> ndarray:
        return _view(self._host.squeeze(axis))

    def transpose(self, *axes: Any) -> ndarray:
        return _view(self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return _view(self._host.swapaxes(axis1, axis2))

    def view(self, dtype: Any = None) -> ndarray:
        return _view(self._host.view() if dtype is None else self._host.view(dtype))

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        costs.launched("astype")
        with np.errstate(all="ignore"):
            return wrap(self._reads().astype(dtype))

    def copy(self, order: str = "C") -> ndarray:
        costs.launched("copy")
        return wrap(self._reads())

    def fill(self, value: Any) -> None:
        value = _plain(value)
        costs.launched("fill")
        self._writes().fill(value)

    # Reductions and similar: always arrays, possibly with zero dimensions
    def sum(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _apply(np.sum, self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _apply(np.mean, self, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _apply(np.min, self, axis=axis, out=out, keepdims=keepdims)

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _apply(np.max, self, axis=axis, out=out, keepdims=keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _apply(np.any, self, axis=axis, out=out, keepdims=keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _apply(np.all, self, axis=axis, out=out, keepdims=keepdims)

    def argmin(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return _apply(np.argmin, self, axis=axis, out=out, keepdims=keepdims)

    def argmax(self, axis: Any = None, out: Any = None, dtype: Any = None, keepdims: bool = False) -> ndarray:
        return _apply(np.argmax, self, axis=axis, out=out, keepdims=keepdims)

    def cumsum(self, axis: Any = None, dtype: Any = None, out: Any = None) -> ndarray:
        return _apply(np.cumsum, self, axis=axis, dtype=dtype, out=out)

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> ndarray:
        return _apply(np.clip, self, min, max, out=out)

    def dot(self, b: Any, out: Any = None) -> ndarray:
        return _apply(np.dot, self, b, out=out)

    # Temporary memory of Thrust's sorts: `argsort` copies the keys, and needs as much again as keys and indices.
    def argsort(self, axis: int = -1) -> ndarray:
        places = _apply(np.argsort, self, axis=axis, kind="stable")
        with memory.workspace(2 * self.nbytes + places.nbytes):
            return places

    def argpartition(self, kth: int, axis: int = -1) -> ndarray:
        return _apply(np.argpartition, self, kth, axis=axis)

    def sort(self, axis: int = -1) -> None:
        costs.launched("sort")
        with memory.workspace(self.nbytes):
            self._writes().sort(axis=axis)

    def partition(self, kth: int, axis: int = -1) -> None:
        costs.launched("partition")
        with memory.workspace(self.nbytes):
            self._writes().partition(kth, axis=axis)

    def take(self, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
        return _apply(np.take, self, indices, axis=axis, out=out)

    def nonzero(self) -> tuple[ndarray, ...]:
        costs.launched("nonzero")
        return tuple(wrap(found) for found in np.atleast_1d(self._reads()).nonzero())

    def repeat(self, repeats: Any, axis: Any = None) -> ndarray:
        return _apply(np.repeat, self, repeats, axis=axis)

    def searchsorted(self, v: Any, side: str = "left", sorter: Any = None) -> ndarray:
        return _apply(np.searchsorted, self, v, side=side, sorter=sorter)

    # As a Python value
    def __len__(self) -> int:
        return len(self._host)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        return operator.index(self.get())

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return repr(self.get())

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, host_cache: object) -> ndarray:
        return self.copy()

    def __reduce__(self) -> Any:
        import cupy

        return cupy.asarray, (self.get(),)

    # Elements
    def __getitem__(self, key: Any) -> ndarray:
        plain = _index(key)
        parts = plain if isinstance(plain, tuple) else (plain,)
        if not any(part is Ellipsis for part in parts if not isinstance(part, np.ndarray)):
            plain = (*parts, Ellipsis)  # single elements are views as well
        for part in parts:
            if isinstance(part, np.ndarray):
                costs.launched("mask" if part.dtype == bool else "take")
        return _share(self, lambda host: host[plain])

    def __setitem__(self, key: Any, value: Any) -> None:
        value, plain = _plain(value), _index(key)
        costs.launched("mask" if isinstance(plain, np.ndarray) and plain.dtype == bool else "setitem")
        with np.errstate(all="ignore"):
            self._writes()[plain] = value


ndarray.__module__ = "cupy"


def wrap(array: Any) -> ndarray:
    """Copy a result of NumPy to the device."""
    array = np.asarray(array)
    out = ndarray.__new__(ndarray)
    out._host = memory.empty(array.shape, array.dtype)
    out._host[...] = array
    return out


def _view(host: np.ndarray) -> ndarray:
    """Create an array of memory that is already on the device."""
    out = ndarray.__new__(ndarray)
    out._host = host
    return out


def _share(of: ndarray, function: Callable[[np.ndarray], np.ndarray]) -> ndarray:
    """Apply a function that returns a view, or a copy if a view is not possible."""
    found = function(of._host)
    if found.size and np.may_share_memory(found, of._host):
        return _view(found)
    return wrap(function(of._reads()))


def _plain(value: Any) -> Any:
    """Return an operand for NumPy: the elements of a device array, or a scalar."""
    if isinstance(value, ndarray):
        return value._reads()
    if isinstance(value, bool | int | float | complex | np.generic):
        return value
    raise TypeError(f"Unsupported type {type(value)}")


def _index(key: Any) -> Any:
    """Return an index for NumPy; arrays in it should be on the device."""
    if isinstance(key, tuple):
        return tuple(_index(part) for part in key)
    if isinstance(key, ndarray):
        if key.dtype.kind not in "biu":
            raise IndexError("arrays used as indices must be of integer or boolean type")
        return key._reads()
    if key is None or isinstance(key, slice | EllipsisType | int | np.integer | np.bool_):
        return key
    raise TypeError(f"an index should be an array on the device, an integer or a slice and is {type(key)}")


_VIEWS = ("broadcast_to", "expand_dims", "ravel", "reshape", "squeeze", "swapaxes", "transpose")
_TAKE_SHAPES = ("broadcast_to", "einsum", "expand_dims", "reshape", "tile", "transpose")


def _apply(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Compute with NumPy on device arrays and scalars, and put the result on the device."""
    shaped = function.__name__ in _TAKE_SHAPES
    plain = [arg if arg is None or (shaped and isinstance(arg, tuple | str)) else _plain(arg) for arg in args]
    out = kwargs.pop("out", None)
    if isinstance(out, tuple):
        (out,) = out
    if out is not None and not isinstance(out, ndarray):
        raise TypeError(f"out should be an array on the device and is {type(out)}")
    if not any(isinstance(arg, ndarray) for arg in args):
        raise TypeError(f"{function.__name__}: one argument should be an array on the device")
    keywords = {
        key: value._reads() if isinstance(value, ndarray) else _not_host(value)
        for key, value in kwargs.items()
        if value is not None
    }
    if function.__name__ not in _VIEWS:
        costs.launched("nonzero" if function.__name__ == "flatnonzero" else function.__name__)
    with np.errstate(all="ignore"):
        if out is not None:
            function(*plain, out=out._writes(), **keywords)
            return out
        result = function(*plain, **keywords)
    return tuple(wrap(part) for part in result) if isinstance(result, tuple) else wrap(result)


def _not_host(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _operator(name: str, function: Callable) -> None:
    """Add an operator to `ndarray`, with its reflected and in-place forms."""

    def forward(self: ndarray, other: Any) -> Any:
        return _apply(function, self, other)

    def reflected(self: ndarray, other: Any) -> Any:
        return _apply(function, other, self)

    def in_place(self: ndarray, other: Any) -> Any:
        return _apply(function, self, other, out=self)

    setattr(ndarray, f"__{name}__", forward)
    setattr(ndarray, f"__r{name}__", reflected)
    setattr(ndarray, f"__i{name}__", in_place)


for _name, _function in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "floordiv": np.floor_divide,
    "mod": np.remainder, "pow": np.power, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "lshift": np.left_shift, "rshift": np.right_shift, "matmul": np.matmul,
}.items():  # fmt: skip
    _operator(_name, _function)


def _comparison(function: Callable) -> Callable:
    return lambda self, other: _apply(function, self, other)


for _name, _function in {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
}.items():  # fmt: skip
    setattr(ndarray, f"__{_name}__", _comparison(_function))
for _name, _function in {"neg": np.negative, "abs": np.absolute, "invert": np.invert, "pos": np.positive}.items():
    setattr(ndarray, f"__{_name}__", lambda self, function=_function: _apply(function, self))


# The functions of the module


def array(obj: Any, dtype: Any = None, copy: bool = True, order: str = "K", *, blocking: bool = False) -> ndarray:
    if isinstance(obj, ndarray):
        if not copy and (dtype is None or obj.dtype == np.dtype(dtype)):
            return obj
        costs.launched("copy")
        return wrap(obj._reads() if dtype is None else obj._reads().astype(dtype))
    if isinstance(obj, list | tuple) and any(isinstance(part, ndarray) for part in obj):
        return stack([asarray(part, dtype) for part in obj])
    host = np.asarray(obj, dtype)
    costs.copied(uploaded=host.nbytes)
    return wrap(host)


def asarray(a: Any, dtype: Any = None, order: Any = None, *, blocking: bool = False) -> ndarray:
    return array(a, dtype, copy=False)


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous else a.copy()


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    out = ndarray(shape, dtype, order=order)
    out.fill(fill_value)
    return out


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype)


def empty_like(prototype: ndarray, dtype: Any = None) -> ndarray:
    return empty(_on_device(prototype).shape, dtype or prototype.dtype)


def zeros_like(a: ndarray, dtype: Any = None) -> ndarray:
    return zeros(_on_device(a).shape, dtype or a.dtype)


def ones_like(a: ndarray, dtype: Any = None) -> ndarray:
    return ones(_on_device(a).shape, dtype or a.dtype)


def full_like(a: ndarray, fill_value: Any, dtype: Any = None) -> ndarray:
    return full(_on_device(a).shape, fill_value, dtype or a.dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    costs.launched("arange")
    return wrap(np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype))


def linspace(start: float, stop: float, num: int = 50, *, dtype: Any = None) -> ndarray:
    return wrap(np.linspace(start, stop, num, dtype=dtype))


def _on_device(a: Any) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"Unsupported type {type(a)}")
    return a


def _several(arrays: Any) -> list[np.ndarray]:
    costs.launched("concatenate", len(arrays))
    return [_on_device(a)._reads() for a in arrays]


def concatenate(tup: Any, axis: int | None = 0, out: Any = None, *, dtype: Any = None) -> ndarray:
    result = np.concatenate(_several(tup), axis=axis, dtype=dtype)
    if out is None:
        return wrap(result)
    out._writes()[...] = result
    return out


def stack(tup: Any, axis: int = 0) -> ndarray:
    return wrap(np.stack(_several(tup), axis=axis))


def vstack(tup: Any) -> ndarray:
    return wrap(np.vstack(_several(tup)))


def hstack(tup: Any) -> ndarray:
    return wrap(np.hstack(_several(tup)))


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    if x is None and y is None:
        return _on_device(condition).nonzero()
    return _apply(np.where, _on_device(condition), x, y)


def nonzero(a: ndarray) -> tuple[ndarray, ...]:
    return _on_device(a).nonzero()


def argsort(a: ndarray, axis: int = -1, kind: None = None) -> ndarray:
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    return _on_device(a).argsort(axis)


def partition(a: ndarray, kth: int, axis: int = -1) -> ndarray:
    array = _on_device(a)
    with memory.workspace(2 * array.nbytes):
        return _apply(np.partition, array, kth, axis=axis)


def argpartition(a: ndarray, kth: int, axis: int = -1) -> ndarray:
    return _apply(np.argpartition, _on_device(a), kth, axis=axis)


def unique(ar: ndarray, return_index: bool = False, return_inverse: bool = False, return_counts: bool = False) -> Any:
    return _apply(np.unique, ar, return_index=return_index, return_inverse=return_inverse, return_counts=return_counts)


def bincount(x: ndarray, weights: Any = None, minlength: int | None = None) -> ndarray:
    if _on_device(x).ndim != 1 or x.dtype.kind not in "biu":
        raise TypeError("bincount takes a vector of integers")
    return _apply(np.bincount, x, weights=weights, minlength=minlength or 0)


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    np.copyto(_on_device(dst)._writes(), _plain(src), casting=casting, where=_plain(where))  # type: ignore[arg-type]


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    return np.may_share_memory(_on_device(a)._host, _on_device(b)._host)


def isscalar(element: Any) -> bool:
    return np.isscalar(element)


class Generator:
    """`cupy.random.Generator`, with NumPy's random numbers."""

    def __init__(self, bit_generator: np.random.BitGenerator) -> None:
        self._generator = np.random.Generator(bit_generator)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> ndarray:
        return wrap(np.asarray(self._generator.standard_normal(size, dtype)))

    def integers(self, low: int, high: int | None = None, size: Any = None, dtype: Any = np.int64) -> ndarray:
        return wrap(np.asarray(self._generator.integers(low, high, size, dtype)))

    def random(self, size: Any = None, dtype: Any = np.float64) -> ndarray:
        return wrap(np.asarray(self._generator.random(size, dtype)))


def default_rng(seed: int | None = None) -> Generator:
    return Generator(np.random.PCG64(seed))


#: Functions delegated to NumPy, by their parameters in CuPy; NumPy accepts more parameters.
_SAME = {
    "x, /, out=None, *, casting=None, dtype=None": (
        "abs absolute ceil exp fabs floor invert isfinite isinf isnan log log1p log2 logical_not negative rint sign "
        "signbit sqrt square trunc"
    ),
    "x1, x2, /, out=None, *, casting=None, dtype=None": (
        "add bitwise_and bitwise_or divide equal fmax fmin greater greater_equal less less_equal logical_and "
        "logical_or logical_xor maximum minimum mod multiply not_equal power remainder subtract true_divide"
    ),
    "a, axis=None, out=None, keepdims=None": "all any max min nanmax nanmin",
    "a, axis=None, dtype=None, out=None, keepdims=None": "argmax argmin mean nansum prod sum",
    "a, axis=None, dtype=None, out=None, ddof=0, keepdims=None": "std var",
    "a, axis=None, dtype=None, out=None": "cumsum",
    "a, axis=None": "count_nonzero flip squeeze",
    "a, axis": "expand_dims",
    "a": "flatnonzero",
    "a, b": "inner",
    "a, b, out=None": "dot outer",
    "x1, x2, out=None, *, casting=None, dtype=None": "matmul",
    "a, b, rtol=1e-05, atol=1e-08, equal_nan=None": "allclose",
    "a, b, axes=2": "tensordot",
    "a1, a2, equal_nan=None": "array_equal",
    "a, a_min, a_max, out=None": "clip",
    "a, axes=None": "transpose",
    "a, axis1, axis2": "swapaxes",
    "a, decimals=0, out=None": "round",
    "a, indices, axis=None, out=None": "take",
    "a, n=1, axis=-1, prepend=None, append=None": "diff",
    "a, newshape, order='C'": "reshape",
    "a, order='C'": "ravel",
    "a, repeats, axis=None": "repeat",
    "a, shift, axis=None": "roll",
    "a, v, side='left', sorter=None": "searchsorted",
    "a, axis=-1": "sort",
    "a, axis=None, out=None, overwrite_input=None, keepdims=None": "median",
    "A, reps": "tile",
    "array, shape": "broadcast_to",
    "condition, a": "extract",
    "condition, a, axis=None, out=None": "compress",
    "element, test_elements, assume_unique=None, invert=None": "isin",
    "v, k=0": "diag",
    "x, copy=True, nan=0.0, posinf=None, neginf=None": "nan_to_num",
}
_PLAIN_NAMES = (
    "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool_ intp inf nan newaxis pi e dtype "
    "finfo iinfo result_type promote_types can_cast integer floating generic number issubdtype"
).split()
_OWN = (
    ndarray, array, asarray, ascontiguousarray, asnumpy, empty, full, zeros, ones, empty_like, zeros_like, ones_like,
    full_like, arange, linspace, concatenate, stack, vstack, hstack, where, nonzero, argsort, partition, argpartition,
    unique, bincount, copyto, may_share_memory, isscalar,
)  # fmt: skip


def _as_numpy_does(name: str, parameters: str) -> Callable:
    """Return a function with CuPy's parameters; NumPy supplies the defaults of those not given."""
    function, signature = getattr(np, name), inspect.signature(eval(f"lambda {parameters}: None"))

    def apply(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        required = [given.pop(key) for key, p in signature.parameters.items() if p.default is p.empty]
        return _apply(function, *required, **given)

    apply.__name__ = apply.__qualname__ = name
    apply.__signature__ = signature  # type: ignore[attr-defined]
    return apply


def namespace() -> dict[str, Any]:
    """Return the array functions of the module `cupy`."""
    names: dict[str, Any] = {name: getattr(np, name) for name in _PLAIN_NAMES}
    names |= {name: _as_numpy_does(name, key) for key, several in _SAME.items() for name in several.split()}
    names |= {thing.__name__: thing for thing in _OWN}
    return names
