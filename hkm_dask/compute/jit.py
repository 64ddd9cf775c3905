"""Compiling inner loops with numba: on first use, once, without the GIL and without threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import config as numba_config
from numba import njit

_compiling = threading.Lock()


class Kernel:
    """Compiles a function on its first call, with LLVM's straight-line vectorizer on.

    numba leaves that vectorizer off; with it the eight interleaved sums of `squared_distance` become vector
    instructions, in the same order of additions, and take a third of the time.

    Parameters
    ----------
    function : callable
    signature : str
        As numba writes it.
    """

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.__doc__ = function.__doc__
        self._function = function
        self._signature = signature
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        """Run it."""
        if self._compiled is None:
            self._compile()
        assert self._compiled is not None
        return self._compiled(*args)

    def _is_in_a_file(self) -> bool:
        # numba keeps compiled code beside the file, and what was typed at a prompt has none.
        return Path(self._function.__code__.co_filename).is_file()

    def _compile(self) -> None:
        with _compiling:
            if self._compiled is not None:
                return
            before = getattr(numba_config, "SLP_VECTORIZE")  # noqa: B009 (unknown to mypy)
            setattr(numba_config, "SLP_VECTORIZE", 1)  # noqa: B010
            try:
                self._compiled = njit(self._signature, nogil=True, cache=self._is_in_a_file())(self._function)
            finally:
                setattr(numba_config, "SLP_VECTORIZE", before)  # noqa: B010


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a function a kernel for arguments of these types.

    Parameters
    ----------
    signature : str
        As numba writes it. Loops are spelled out rather than left to NumPy's sorting and filling, which numba takes
        seconds to compile.

    Returns
    -------
    callable
        Decorator that makes a `Kernel`.

    Examples
    --------
    >>> @kernel("f8(f8[::1])")
    ... def total(values):
    ...     found = 0.0
    ...     for i in range(values.shape[0]):
    ...         found += values[i]
    ...     return found
    >>> import numpy as np
    >>> total(np.ones(3))
    3.0
    """
    return lambda function: Kernel(function, signature)
