"""Describe names of the real CuPy, which needs no driver for it: dotted names in on stdin, what they are out as JSON.

It runs in a process of its own, since it puts an empty library in place of cuBLAS: to import a module of CuPy's that is
linked against it, and read the enumerations, none of its functions is needed.
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


def _import(name: str) -> Any:
    """Import the module or get the attribute of this dotted name."""
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
    """Names of the parameters, and how many need a value, from a signature or the first line of Cython's docstrings."""
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
    """Tell what a name is; None where there is nothing of that name."""
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
    """Keys of `Device.attributes`: CuPy fills it with every member of this enumeration."""
    from cupy_backends.cuda.api import _runtime_enum

    prefix = "cudaDevAttr"
    return [name.removeprefix(prefix) for name in dir(_runtime_enum) if name.startswith(prefix)]


def ask(names: Iterable[str]) -> dict[str, Any]:
    """What the real CuPy says: "names", a description of each or None, and "attributes", those of a device."""
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
