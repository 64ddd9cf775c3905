"""What former processes found out: forms of scores that were right on made rows, on this device with this software.

A form that was right is noted beside the kernels that CuPy keeps, by an empty file whose name is made of all that could
change the verdict. A fault is never noted: whoever comes next finds it anew, and is told.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path

from hkm_dask.kmeans.search.cuda_check_process import Check
from hkm_dask.kmeans.search.cuda_kernels import FILES, HOPPER_FILES, source


def is_noted(check: Check, device: int) -> bool:
    """Tell whether a form passed its check in a former process."""
    return _file(check, device).exists()


def note(check: Check, device: int) -> None:
    """Note that a form passed its check, where files can be written."""
    file = _file(check, device)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def _file(check: Check, device: int) -> Path:
    folder = os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache"
    name = hashlib.sha256("\n".join([_software(), _device(device), str(check)]).encode()).hexdigest()
    return Path(folder).expanduser() / f"hkm-dask-{name[:32]}.sound"


def _software() -> str:
    """Kernels, what calls and checks them, and the libraries under them."""
    import cupy
    from cupy.cuda import cublas, device, nvrtc, runtime

    versions = cupy.__version__, nvrtc.getVersion(), cublas.getVersion(device.get_cublas_handle())
    return f"{versions} {runtime.runtimeGetVersion()} {runtime.driverGetVersion()} {_program()}"


@cache
def _program() -> str:
    files = sorted(resources.files("hkm_dask.kmeans.search").iterdir(), key=lambda file: file.name)
    parts = [file.read_bytes() for file in files if file.name.endswith(".py")]
    return hashlib.sha256(b"\0".join([*parts, source(FILES).encode(), source(HOPPER_FILES).encode()])).hexdigest()


def _device(number: int) -> str:
    from cupy.cuda import runtime

    properties = runtime.getDeviceProperties(number)
    return " ".join(str(properties.get(name)) for name in ("name", "uuid", "major", "minor"))
