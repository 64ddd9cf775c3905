"""Compilation of kernels in a child process, for processes with a planned memory limit.

A compiler takes some 280 MiB, once after an installation; memory of a child is freed when it ends. The child leaves
compiled kernels in numba's cache, from which the waiting process loads them. Anything it does not finish, for example
if nothing can be cached, is compiled by the process itself.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hkm_dask.compute.end_with_parent import ending_with_parent

_PROGRAM = "import sys; from hkm_dask.compute.jit import compile_modules; compile_modules(sys.argv[1:])"
#: Seconds after which a child is abandoned.
_LIMIT_SECONDS = 300
#: Modules for which a child was started.
_requested: set[str] = set()
_is_wanted = False


def compile_in_children() -> None:
    """From now on, have a child process compile what this process needs and numba has not cached."""
    global _is_wanted
    _is_wanted = True


def is_wanted() -> bool:
    """Tell whether a child process should compile."""
    return _is_wanted


def command_line(modules: Iterable[str]) -> list[str]:
    """Return the command that compiles the kernels of modules in a process that ends with this one.

    >>> command_line(["kernels"])[-1]
    'kernels'
    """
    return [sys.executable, "-P", "-c", ending_with_parent(_PROGRAM), *modules]


class Cache:
    """numba's cache of a function, in which a child process compiles what is missing."""

    def __init__(self, cache: Any, module: str, modules: Sequence[str]) -> None:
        self._cache, self._module, self._modules = cache, module, modules

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled function for these types; None if it could not be compiled."""
        found = self._cache.load_overload(signature, target_context)
        if found is not None or self._module in _requested:
            return found
        _requested.update(self._modules)
        with suppress(OSError, subprocess.TimeoutExpired):
            # One of the processes that share the folder compiles; the others wait for it.
            with (Path(self._cache.cache_path) / "compiling.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                found = self._cache.load_overload(signature, target_context)
                if found is None:
                    nothing = subprocess.DEVNULL
                    words = command_line(self._modules)
                    subprocess.run(words, stdin=nothing, stdout=nothing, stderr=nothing, timeout=_LIMIT_SECONDS)
                    found = self._cache.load_overload(signature, target_context)
        return found
