"""Describe names of the real CuPy, without a driver: reads dotted names from stdin, and writes descriptions as JSON.

It runs in a separate process, because it replaces cuBLAS with an empty library: none of its functions is needed to
import a CuPy module that is linked against it, and to read the enumerations.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: What CuPy adds to the options of every kernel that it compiles for a Hopper.
HOPPER_OPTIONS = ("-ftz=true", "-arch=sm_90", "--device-as-default-execution-space")


def _import(name: str) -> Any:
    """Return the module or attribute with a dotted name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ImportError:
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


def _parameters(thing: Any) -> dict[str, Any] | None:
    """Return the parameters, and how many are required, from a signature or the first line of a Cython docstring."""
    try:
        listed = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return _from_docstring(thing.__doc__ or "")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in listed):
        return None
    positional = [p for p in listed if p.kind != p.KEYWORD_ONLY and p.name != "self"]
    return {
        "positional": [p.name for p in positional],
        "keyword_only": [p.name for p in listed if p.kind == p.KEYWORD_ONLY],
        "n_required": sum(p.default is p.empty for p in positional),
    }


def _from_docstring(text: str) -> dict[str, Any] | None:
    line = re.match(r"[\w.]+\((.*)\)", text.replace("\\", ""))
    if line is None:
        return None
    positional: list[str] = []
    keyword_only: list[str] = []
    now, n_required = positional, 0
    for part in re.split(r",\s*", line[1]):
        name = re.split(r"[=:]", part)[0].split(" ")[-1].strip()
        if name == "*":
            now = keyword_only
        elif name.startswith("*"):
            return None
        elif name not in ("/", "self", ""):
            now.append(name)
            n_required += now is positional and "=" not in part
    return {"positional": positional, "keyword_only": keyword_only, "n_required": n_required}


def describe(name: str) -> dict[str, Any] | None:
    """Describe a name; None if it does not exist."""
    try:
        thing = _import(name)
    except AttributeError:
        return None
    return {
        "callable": callable(thing),
        "parameters": _parameters(thing) if callable(thing) else None,
        "value": thing if type(thing) in (int, bool) else None,
    }


def _attributes() -> list[str]:
    """Return the keys of `Device.attributes`, which has every member of this enumeration."""
    from cupy_backends.cuda.api import _runtime_enum

    prefix = "cudaDevAttr"
    return [name.removeprefix(prefix) for name in dir(_runtime_enum) if name.startswith(prefix)]


def ask(names: Iterable[str]) -> dict[str, Any]:
    """Return descriptions by the real CuPy: "names", with a description of each or None, and device "attributes"."""
    command, asked = [sys.executable, str(Path(__file__))], json.dumps(sorted(set(names)))
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        stub = str(Path(folder) / "libcublas.so")
        subprocess.run(
            ["g++", "-shared", "-fPIC", "-Wl,-soname,libcublas.so.13", "-x", "c", os.devnull, "-o", stub], check=True
        )
        ctypes.CDLL(stub, mode=ctypes.RTLD_GLOBAL)
    sys.setdlopenflags(os.RTLD_LAZY)
    importlib.import_module("cupy_backends.cuda.libs.cublas")
    sys.modules["cupy.cuda.cublas"] = importlib.import_module("cupy").cuda.cublas = sys.modules[
        "cupy_backends.cuda.libs.cublas"
    ]
    answer = {name: describe(name) for name in json.load(sys.stdin)}
    json.dump({"names": answer, "attributes": _attributes()}, sys.stdout)
