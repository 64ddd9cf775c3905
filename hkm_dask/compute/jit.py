"""Compilation of inner loops with numba: once, on first use, without the GIL and without their own threads."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from numbers import Number
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from llvmlite.binding import add_symbol
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.runtime._nrt_python import c_helpers

from hkm_dask.compute import jit_child
from hkm_dask.events import emit

#: Seconds of compiling after which a process reports it, once: loading compiled kernels takes milliseconds.
_TELL_AFTER = 1.5
#: Seconds of compiling one kernel from which on it is reported, as other work waits meanwhile.
_TELL_SECONDS = 0.1
_compiling, _told = threading.Lock(), threading.Event()
_spent = 0.0


@contextmanager
def _reported_if_long() -> Iterator[None]:
    """Emit ``compiling`` if kernels have taken long to compile, including that of this context, then ``compiled``."""
    global _spent
    started, timer = time.monotonic(), threading.Timer(max(0.0, _TELL_AFTER - _spent), _tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        seconds = time.monotonic() - started
        _spent += seconds
        if seconds > _TELL_SECONDS:
            emit("compiled", seconds=seconds)


def _tell() -> None:
    if not _told.is_set():
        _told.set()
        emit("compiling")


class Kernel:
    """Compiles a function on its first call."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.__doc__ = function.__doc__
        self._function = function
        self._signature = signature
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Call the compiled function."""
        if self._compiled is None:
            self._compile()
        assert self._compiled is not None
        return self._compiled(*args)

    def _compile(self) -> None:
        with _compiling, _reported_if_long():
            if self._compiled is None:
                self._compiled = _compiled(self._function, self._signature)


class _KernelCache(FunctionCache):
    """numba's cache of a function, loaded without modules that only the compiler needs, which take half a second.

    It is invalidated by a change of any source file that the function uses; numba checks only the function's own file.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = _stamp(function)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled function for these types, or None."""
        _link_runtime()
        return self._load_overload(signature, target_context)


@cache
def _link_runtime() -> None:
    """Register numba's runtime symbols with the linker, as numba does; cached code contains everything else."""
    for name, address in c_helpers.items():
        add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def _stamp(function: Callable[..., Any]) -> tuple[Any, ...]:
    """Return a value that changes with the source of a function and its callees, and the globals that they use."""
    pending, seen, numbers, files = list[Any]([function]), set[Any](), set[tuple[str, str]](), set[Path]()
    while pending:
        seen.add(one := pending.pop())
        files.add(Path(one.__code__.co_filename))
        for name in _names(one.__code__):
            value = one.__globals__.get(name)
            # Unwraps a compiled function, an intrinsic, or what an intrinsic calls.
            called = getattr(value, "py_func", getattr(value, "_defn", value))
            if isinstance(called, FunctionType) and called not in seen and _is_ours(called.__module__):
                pending.append(called)
            elif isinstance(value, ModuleType) and _is_ours(value.__name__):
                files.add(Path(value.__file__ or ""))
            elif isinstance(value, Number | tuple):
                numbers.add((name, repr(value)))
    states = [(file.name, state.st_mtime, state.st_size) for file in files if file.is_file() for state in [file.stat()]]
    return sorted(states), sorted(numbers)


def _names(code: CodeType) -> set[str]:
    """Return the names that a function and its nested functions look up."""
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


def _is_ours(module: str) -> bool:
    """Tell whether a module can change independently of the compiler: not numba's, nor one that numba uses."""
    return not module.startswith(("numba", "llvmlite", "numpy"))


def _compiled(function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    """Compile a function, or load it from the cache."""
    dispatcher: Any = njit(nogil=True)(function)
    # numba caches beside the source file, which a function typed at a prompt does not have.
    if Path(function.__code__.co_filename).is_file():
        dispatcher._cache = _KernelCache(function)
        if jit_child.is_wanted():
            dispatcher._cache = jit_child.Cache(dispatcher._cache, function.__module__, list(modules_with_kernels()))
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    compiled: Callable[..., Any] = dispatcher
    return compiled


def modules_with_kernels() -> Iterator[str]:
    """Yield the imported modules of this package that have kernels."""
    for name, module in sorted(sys.modules.items()):
        if name.startswith("hkm_dask.") and hasattr(module, "__dict__") and _kernels_of(module):
            yield name


def _kernels_of(module: ModuleType) -> list[Kernel]:
    return [value for value in vars(module).values() if isinstance(value, Kernel)]


def compile_modules(names: Iterable[str]) -> None:
    """Import modules and compile their kernels, in a child process."""
    for name in names:
        for one in _kernels_of(importlib.import_module(name)):
            one._compile()


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a function a `Kernel` for arguments of these types, in numba's notation.

    Kernels use explicit loops instead of NumPy's sorting and filling, which numba takes seconds to compile.

    >>> @kernel("f8(f8[::1])")
    ... def total(values):
    ...     result = 0.0
    ...     for i in range(values.shape[0]):
    ...         result += values[i]
    ...     return result
    >>> import numpy as np
    >>> total(np.ones(3))
    3.0
    """
    return lambda function: Kernel(function, signature)


@njit(inline="always")
def first_above(values: Any, target: Any) -> int:
    """Return the index of the first value above `target` in an increasing array."""
    low, high = 0, values.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if values[middle] <= target:
            low = middle + 1
        else:
            high = middle
    return low


@njit(inline="always")
def first_not_below(values: Any, target: Any) -> int:
    """Return the index of the first value not below `target` in an increasing array."""
    low, high = 0, values.shape[0]
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < target:
            low = middle + 1
        else:
            high = middle
    return low
