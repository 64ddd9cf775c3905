"""Processes forked from one that has already imported their modules, which would otherwise take seconds each time."""

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
    """Let Dask fork the workers of this process, too; those of commands are spawned, as for users.

    Also reduces their monitoring: at Dask's default rate, an idle cluster of two workers takes a sixth of a core.
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

    distributed.utils._forkserver_preload_set = True  # otherwise Dask's list would replace ours


def start_forked(function: Callable[..., object], *args: object, **environment: str) -> BaseProcess:
    """Start a new process that calls a function of a module."""
    process = _context.Process(target=_call, args=(function, args, environment))
    process.start()
    return process


def run_forked(function: Callable[..., object], *args: object, **environment: str) -> int:
    """Call a function of a module in a new process and return its exit code."""
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
