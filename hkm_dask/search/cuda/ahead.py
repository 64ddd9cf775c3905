"""Kernels compiled and checked on made rows by a process beside a command that starts workers, while these start.

It leaves what it compiled where CuPy keeps kernels, and notes what was right (`verdicts`); whatever it does not
get to, a worker finds out itself. The command makes no context on a device, and knows none.
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
#: Bytes of memory of a device of which a tenth, which RMM's pool leaves, has room for two contexts.
_LEAST_MEMORY = 20 << 30


@contextmanager
def checked_ahead(n_features: int, dtype: np.dtype, precision: str) -> Iterator[None]:
    """Check the kernels of the first device for such rows, beside what runs inside; nothing waits for it."""
    words = [sys.executable, *_PROGRAM, str(n_features), dtype.name, precision]
    nothing = subprocess.DEVNULL
    try:
        child = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, env=environment_of_child())
    except OSError:
        yield
        return
    with child:  # waits at the end
        try:
            yield
        finally:
            child.kill()


def main(n_features: str, dtype: str, precision: str) -> None:
    """Check what was not right before, up to the first fault: who needs such a kernel looks again, and tells."""
    from cupy.cuda import runtime

    signal.alarm(int(LIMIT_SECONDS))
    device = 0
    is_shared = device_attribute("ComputeMode") == 0  # else one process alone may use the device: a worker
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
