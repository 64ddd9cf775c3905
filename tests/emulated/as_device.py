"""A pytest plugin that has tests/gpu take the emulator for a device, to find tests that would fail on one.

    python -m pytest -p tests.emulated.as_device -o addopts= -W default tests/gpu/test_seeding.py

Forms are checked as on a device, which takes long: of all files, 17 minutes. Tests that only an emulator allows skip.
"""

import os
import tempfile
from pathlib import Path

import pytest

from hkm_dask.search.cuda import check as cuda_check
from hkm_dask.search.cuda import forms as cuda_forms
from pipelines.gpu.rehearsal import shrink
from tests.emulated import kernels
from tests.emulated.plugin import install


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Install the emulator before a conftest.py looks for a device."""
    kernels.build_in(Path(os.environ.get("HKM_EMULATED_KERNELS") or tempfile.mkdtemp()))
    patch, check = pytest.MonkeyPatch(), cuda_forms._fault
    install(patch)
    patch.delenv("HKM_DEVICE")
    patch.setattr(cuda_forms, "_fault", check)
    patch.setattr(cuda_check, "_N_STEPS", 1)
    shrink(patch)
