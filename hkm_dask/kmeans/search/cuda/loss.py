"""A check in this process whose kernel takes the device with it: by a fault, or by never ending.

After an illegal address all that a process asks of its device fails, and a kernel that never ends can be stopped with
its process only: no other form can take over here. What happened is noted for whoever comes next (`verdicts`). A
worker that its nanny starts again ends at once, and Dask gives its task to the next one; any other process is told.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable

from hkm_dask.compute.worker_shares import has_nanny
from hkm_dask.errors import ComputeError
from hkm_dask.kmeans.search.cuda import check_process, verdicts
from hkm_dask.kmeans.search.cuda.verdicts import Check

logger = logging.getLogger(__name__)


def find_fault_here(name: str, check: Check, device: int, find: Callable[[], str | None]) -> str | None:
    """The fault of a form that `find` looks for on the device of this process, or that took another's with it.

    Raises ComputeError where it takes this one's.
    """
    if (earlier := verdicts.noted_fault(check, device)) is not None:
        return earlier
    is_restarted, limit = has_nanny(), check_process.LIMIT_SECONDS

    def give_up(fault: str) -> str:
        verdicts.note_fault(check, device, fault)
        is_noted = verdicts.noted_fault(check, device) is not None
        message = f"{name} {fault}, which costs this process its GPU; restart it"
        message += (
            ": the next one leaves that kernel out" if is_noted else ", with a CUPY_CACHE_DIR that can be written to"
        )
        if is_restarted and is_noted:
            logger.error(message)
            os._exit(1)
        return message

    def end() -> None:
        warnings.warn(give_up(f"did not end within {limit:.0f} s"), RuntimeWarning, stacklevel=1)

    timer = threading.Timer(limit, end)
    timer.daemon = True
    timer.start()
    try:
        fault = find()
    finally:
        timer.cancel()
    if fault is not None and _is_lost():
        raise ComputeError(give_up(fault))
    return fault


def _is_lost() -> bool:
    """Whether the device answers this process no more."""
    from cupy.cuda import runtime

    try:
        runtime.deviceSynchronize()
    except runtime.CUDARuntimeError:
        return True
    return False
