"""Compilation and checking of kernels in a child process of the command, while that starts its workers.

The child leaves compiled kernels in CuPy's cache and records correct forms (`verdicts`); whatever it does not finish, a
worker does itself. The command creates no CUDA context, so its own process never uses a device.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from hkm_dask.compute.backend import device_attribute
from hkm_dask.search.cuda import verdicts
from hkm_dask.search.cuda.check_process import LIMIT_SECONDS, compile_for, environment_of_child, fault_of
from hkm_dask.search.cuda.forms import checks_of

_PROGRAM = "-P", "-c", "import sys; from hkm_dask.search.cuda.ahead import main; main(*sys.argv[1:])"
#: Device memory, in bytes, of which the tenth left free by RMM's pool has room for two contexts.
_LEAST_MEMORY = 20 << 30


@contextmanager
def checked_ahead(n_features: int, dtype: np.dtype, precision: str) -> Iterator[None]:
    """Check the first device's kernels for such rows while the context lasts; nothing waits for the result."""
    words = [sys.executable, *_PROGRAM, str(n_features), dtype.name, precision]
    nothing = subprocess.DEVNULL
    try:
        child = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, env=environment_of_child())
    except OSError:
        yield
        return
    with child:  # waits for it on exit
        try:
            yield
        finally:
            child.kill()


def main(n_features: str, dtype: str, precision: str) -> None:
    """Run the checks not yet passed, up to the first fault; whoever needs the faulty kernel repeats and reports it."""
    from cupy.cuda import runtime

    signal.alarm(int(LIMIT_SECONDS))
    device = 0
    is_shared = device_attribute("ComputeMode") == 0  # otherwise only one process, a worker, may use the device
    if not is_shared or runtime.getDeviceProperties(device)["totalGlobalMem"] < _LEAST_MEMORY:
        return
    with verdicts.under_way(device) as is_first:
        checks = checks_of(precision, int(n_features), np.dtype(dtype)) if is_first else []
        new = [check for check in checks if not verdicts.is_noted(check, device)]
        if new:
            compile_for(new, device)
        for check in new:
            if fault_of(check) is not None:
                return
            verdicts.note(check, device)
