"""What former processes found out: forms of scores that were right on made rows, on this device with this software.

A form that was right is noted beside the kernels that CuPy keeps, by an empty file whose name is made of all that could
change the verdict. A fault is noted only where it took a process with it (`forms.find_fault_here`), and told to whoever
comes next, who finds any other anew. A locked file there says that a process is finding out; it is unlocked when that
ends, however it does.
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

#: What is checked: forms of scores, and greedy walks over groups of points (`walks`).
Checked = Form | Literal["walks"]
#: Seconds between two looks at what another process has found out.
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Check:
    """A form, or greedy walks, and the width and type of the rows that it is checked on.

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
        """The check of this text."""
        form, n_features, dtype = text.split(",")
        return cls(form, int(n_features), dtype)  # type: ignore[arg-type]


def is_noted(check: Check, device: int) -> bool:
    """Tell whether a form passed its check in a former process."""
    return _file(check, device).exists()


def note(check: Check, device: int) -> None:
    """Note that a form passed its check, where files can be written."""
    file = _file(check, device)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def noted_fault(check: Check, device: int) -> str | None:
    """The fault of a form that took a former process with it, in words, or None."""
    file = _file(check, device).with_suffix(".fault")
    try:
        return f"{file.read_text(encoding='utf-8')} in a process before (see {file})"
    except OSError:
        return None


def note_fault(check: Check, device: int, fault: str) -> None:
    """Note a fault that takes this process with it, where files can be written."""
    file = _file(check, device).with_suffix(".fault")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(fault, encoding="utf-8")


@contextmanager
def under_way(device: int) -> Iterator[bool]:
    """Have others wait for what this process finds out; False where another is at it, or no file can be locked."""
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
    """Tell whether another process is finding out about forms on this device."""
    try:
        with _path(_device(device), "checking").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def wait_for(check: Check, device: int, seconds: float) -> None:
    """Wait, for so long at most, while another process finds out about forms, until this one is noted."""
    end = time.monotonic() + seconds
    while not is_noted(check, device) and is_under_way(device) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)


def _file(check: Check, device: int) -> Path:
    return _path("\n".join([_software(), _device(device), str(check)]), "sound")


def _path(text: str, suffix: str) -> Path:
    folder = os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache"
    return Path(folder).expanduser() / f"hkm-dask-{hashlib.sha256(text.encode()).hexdigest()[:32]}.{suffix}"


def _software() -> str:
    """Kernels, what calls and checks them, and the libraries under them."""
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
