"""Results of checks by earlier processes: forms that were correct on synthetic rows with this device and software.

A passed check is recorded beside CuPy's cached kernels as an empty file, whose name is a hash of everything that could
change the verdict. A fault is recorded only if it made the device unusable for its process (`forms.find_fault_here`),
and is reported to the next one; other faults are found anew. A lock file there shows that a process is checking; the
lock is released when that process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from hkm_dask.search.cuda.kernels import FILES, HOPPER_FILES, source
from hkm_dask.search.cuda.operand import Form

#: What can be checked: forms of scores, and greedy walks over groups of points (`walks`).
Checked = Form | Literal["walks"]
#: Seconds between polls for the results of another process.
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Check:
    """A form, or greedy walks, with the width and dtype of the rows on which it is checked.

    >>> Check.of(str(Check("fused", 384, "float16")))
    Check(form='fused', n_features=384, dtype='float16')
    """

    form: Checked
    n_features: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.form},{self.n_features},{self.dtype}"

    @classmethod
    def of(cls, text: str) -> Check:
        """Parse the string form of a check."""
        form, n_features, dtype = text.split(",")
        return cls(form, int(n_features), dtype)  # type: ignore[arg-type]


def is_noted(check: Check, device: int) -> bool:
    """Tell whether a form passed its check in an earlier process."""
    return _file(check, device).exists()


def note(check: Check, device: int) -> None:
    """Record that a form passed its check, if files can be written."""
    file = _file(check, device)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def noted_fault(check: Check, device: int) -> str | None:
    """Return the recorded fault of a form that made the device unusable for an earlier process, or None."""
    file = _file(check, device).with_suffix(".fault")
    try:
        return f"{file.read_text(encoding='utf-8')} in a process before (see {file})"
    except OSError:
        return None


def note_fault(check: Check, device: int, fault: str) -> None:
    """Record a fault that makes the device unusable for this process, if files can be written."""
    file = _file(check, device).with_suffix(".fault")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(fault, encoding="utf-8")


@contextmanager
def under_way(device: int) -> Iterator[bool]:
    """Make others wait for the checks of this process; False if another is checking, or no file can be locked."""
    path = _path(_device(device), "checking")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_first = True
        except OSError:
            is_first = False
        yield is_first


def is_under_way(device: int) -> bool:
    """Tell whether another process is checking forms on this device."""
    try:
        with _path(_device(device), "checking").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def wait_for(check: Check, device: int, seconds: float) -> None:
    """Wait at most `seconds`, while another process is checking forms, until this check is recorded."""
    end = time.monotonic() + seconds
    while not is_noted(check, device) and is_under_way(device) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)


def _file(check: Check, device: int) -> Path:
    return _path("\n".join([_software(), _device(device), str(check)]), "sound")


def _path(text: str, suffix: str) -> Path:
    folder = os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache"
    return Path(folder).expanduser() / f"hkm-dask-{hashlib.sha256(text.encode()).hexdigest()[:32]}.{suffix}"


def _software() -> str:
    """Identify the kernels, the code that calls and checks them, and the libraries beneath them."""
    import cupy
    from cupy.cuda import cublas, device, nvrtc, runtime

    versions = cupy.__version__, nvrtc.getVersion(), cublas.getVersion(device.get_cublas_handle())
    return f"{versions} {runtime.runtimeGetVersion()} {runtime.driverGetVersion()} {_program()}"


@cache
def _program() -> str:
    folder = resources.files("hkm_dask.search")
    files = sorted([file for place in (folder, folder / "cpu", folder / "cuda") for file in place.iterdir()], key=str)
    parts = [file.read_bytes() for file in files if file.name.endswith(".py")]
    return hashlib.sha256(b"\0".join([*parts, source(FILES).encode(), source(HOPPER_FILES).encode()])).hexdigest()


def _device(number: int) -> str:
    from cupy.cuda import runtime

    properties = runtime.getDeviceProperties(number)
    return " ".join(str(properties.get(name)) for name in ("name", "uuid", "major", "minor"))
