"""A Dask preload that makes a worker compute on an emulated GPU."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest


def dask_setup(worker: Any) -> None:
    """Install the emulator before the worker's first task."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.emulated import kernels
    from tests.emulated.plugin import install

    kernels.build_in(Path(os.environ.get("HKM_EMULATED_KERNELS") or tempfile.mkdtemp()))
    patch = pytest.MonkeyPatch()
    install(patch)
    patch.setattr("hkm_dask.search.cuda.hopper.is_available", lambda: False)  # the slowest to emulate
