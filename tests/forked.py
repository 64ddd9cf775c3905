"""Processes forked from one that has imported what they need, which takes each of them seconds otherwise."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_context = multiprocessing.get_context("forkserver")
_PRELOADED = """
    pytest hypothesis.strategies xarray dask.array distributed tests.compiler tests.disk tests.forked
    hkm_dask.hierarchy.build hkm_dask.embedding.embed hkm_dask.ingestion.ingest hkm_dask.view.info
"""
_context.set_forkserver_preload(_PRELOADED.split())


def fork_workers() -> None:
    """Let Dask fork the workers of this process, too; those of command lines are spawned, as users have them.

    While they wait, they rest: a cluster of two that looks at itself as often as Dask has it takes a sixth of a core.
    """
    import dask

    dask.config.set(
        {
            "distributed.worker.multiprocessing-method": "forkserver",
            "distributed.worker.profile.enabled": False,
            "distributed.admin.tick.interval": "500ms",
            "distributed.admin.system-monitor.interval": "10s",
        }
    )
    import distributed.utils

    distributed.utils._forkserver_preload_set = True  # its own list would take the place of this one


def start_forked(function: Callable[..., object], *args: object, **environment: str) -> BaseProcess:
    """Call a function of a module in a process of its own."""
    process = _context.Process(target=_call, args=(function, args, environment))
    process.start()
    return process


def run_forked(function: Callable[..., object], *args: object, **environment: str) -> int:
    """Call a function of a module in a process of its own and return the exit code of that."""
    process = start_forked(function, *args, **environment)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{function.__name__} should end within 120 s")
    return process.exitcode


def _call(function: Callable[..., Any], args: tuple[object, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    function(*args)
    sys.stdout.flush()
