"""Rehearsal: all steps at tiny sizes on the emulator of `tests/emulated`, only to check that they run."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hkm_dask.search.cuda import check as cuda_check
from hkm_dask.search.cuda import walk_check as cuda_walk_check
from pipelines.benchmark import device, gpu, whole

#: Constants that are too large for an emulator, and their values in a rehearsal.
_SMALL: dict[ModuleType, dict[str, Any]] = {
    cuda_check: {"_N_COPIES": 300},
    cuda_walk_check: {"_SIZES": (1, 7, 130)},
    device: {"_SIDE": 32, "_COPIED": 1 << 10, "_SENT": 1 << 9, "_BATCHES": 2},
    gpu: {
        "_LLOYD_FEATURES": 16, "_LLOYD_CLUSTERS": 12, "_LLOYD_ITERATIONS": 2, "_SPLIT_FEATURES": 16, "_SPLIT_ROWS": 60,
        "_SPLIT_PARTS": 4,
    },
}  # fmt: skip


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Shrink all sizes, and start nothing in processes without the emulator."""
    for module, constants in _SMALL.items():
        for name, small in constants.items():
            patch.setattr(module, name, small)
    patch.setattr(gpu, "run_apart", lambda work, *arguments: work(*arguments))
    patch.setattr(gpu, "PLACES", {who: place for who, place in whole.PLACES.items() if place != "workers"})


def begin_rehearsal() -> None:
    """Replace CuPy with the emulator for the lifetime of this process."""
    kernels, plugin = import_module("tests.emulated.kernels"), import_module("tests.emulated.plugin")
    if why := kernels.missing():
        raise RuntimeError(why)
    patch = pytest.MonkeyPatch()
    if folder := os.environ.get("HKM_EMULATED_KERNELS"):
        kernels.build_in(Path(folder))
    plugin.install(patch)
    shrink(patch)
