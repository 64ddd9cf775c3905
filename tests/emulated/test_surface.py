"""The emulator offers nothing that the real CuPy lacks: names, parameters, device attributes, constants."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulated import arrays, kernels, memory, plugin, real_cupy, runtime, streams

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None or kernels.missing() is not None,
    reason="needs the real CuPy, which imports without a driver: pip install cupy-cuda13x",
)

OWN_CLASSES = {
    kind
    for module in (arrays, kernels, memory, runtime, streams)
    for kind in vars(module).values()
    if inspect.isclass(kind) and not kind.__module__.startswith("numpy") and not issubclass(kind, BaseException)
}
#: Classes whose objects are returned by functions, by their names in CuPy.
CLASSES = {
    "cupy.RawKernel": kernels.RawKernel,
    "cupy.cuda.MemoryPool": memory.Pool,
    "cupy.cuda.PinnedMemoryPool": runtime.PinnedMemoryPool,
    "cupy.cuda.MemoryPointer": arrays.MemoryPointer,
}
#: Names that only the emulator has, with the reason.
EMULATOR_ONLY: dict[str, str] = {}


def objects() -> dict[str, object]:
    """Return one object of every class, to find the attributes set by `__init__`."""
    module = kernels.RawModule(code='extern "C" __global__ void nothing() {}')
    return {
        "cupy.RawModule": module,
        "cupy.RawKernel": module.get_function("nothing"),
        "cupy.cuda.Device": runtime.Device(),
        "cupy.cuda.Event": streams.Event(),
        "cupy.cuda.Stream": streams.Stream(),
        "cupy.cuda.MemoryPool": memory.pool,
        "cupy.cuda.MemoryPointer": arrays.empty(1).data,
        "cupy.cuda.PinnedMemory": runtime.PinnedMemory(8),
        "cupy.cuda.PinnedMemoryPool": runtime.PinnedMemoryPool(),
        "cupy.random.Generator": arrays.default_rng(),
        "cupy.cuda.memory.OutOfMemoryError": memory.OutOfMemoryError(1, 1),
        "cupy.cuda.runtime.CUDARuntimeError": runtime.CUDARuntimeError(2),
    }


def offered() -> Iterator[tuple[str, Any]]:
    """Yield everything the emulator offers, by its name in CuPy: modules, and the members of modules and classes."""
    classes = dict(CLASSES)
    for name, module in plugin._MODULES.items():
        yield name, module
        for key, value in vars(module).items():
            if not key.startswith("_"):
                yield f"{name}.{key}", value
                if inspect.isclass(value) and value in OWN_CLASSES:
                    classes[f"{name}.{key}"] = value
    for name, kind in classes.items():
        yield name, kind
        yield from ((f"{name}.{key}", value) for key, value in vars(kind).items() if not key.startswith("_"))
    for name, thing in objects().items():
        yield from ((f"{name}.{key}", None) for key in getattr(thing, "__dict__", {}) if not key.startswith("_"))


@pytest.fixture(scope="module")
def real(built_kernels: Path) -> dict[str, Any]:
    """Return the descriptions of these names by the real CuPy."""
    return real_cupy.ask(name for name, _ in offered())


def test_every_name_is_one_of_cupys(real: dict[str, Any]) -> None:
    assert len(real["names"]) > 300
    lacking = {name for name, fact in real["names"].items() if fact is None}
    assert sorted(lacking) == sorted(EMULATOR_ONLY), "\n".join(lacking)


def test_whatever_is_called_can_be_called_in_cupy(real: dict[str, Any]) -> None:
    wrong = [
        name
        for name, value in offered()
        if real["names"][name] and callable(value) and not real["names"][name]["callable"]
    ]
    assert wrong == []


def test_every_parameter_is_one_of_cupys_at_the_same_place(real: dict[str, Any]) -> None:
    wrong, n_compared = [], 0
    for name, value in offered():
        fact = real["names"][name]
        if fact is None or fact["parameters"] is None or not callable(value) or name in CLASSES:
            continue
        if inspect.isclass(value) and issubclass(value, BaseException):
            continue
        n_compared += 1
        listed = [p for p in inspect.signature(value).parameters.values() if p.name != "self"]
        positional = [p.name for p in listed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        others = {p.name for p in listed} - set(positional)
        theirs = fact["parameters"]["positional"]
        if positional != theirs[: len(positional)] or not others <= {*theirs, *fact["parameters"]["keyword_only"]}:
            wrong.append(f"{name}{inspect.signature(value)}, in CuPy {fact['parameters']}")
    assert n_compared > 150
    assert not wrong, "\n".join(wrong)


def test_numbers_are_cupys(real: dict[str, Any]) -> None:
    numbers = {name: value for name, value in offered() if type(value) in (int, bool) and "Device." not in name}
    assert len(numbers) > 15
    assert numbers == {name: (real["names"][name] or {}).get("value") for name in numbers}


def test_attributes_of_the_device_are_in_cupys_table(real: dict[str, Any]) -> None:
    assert set(runtime.Device.attributes) <= set(real["attributes"])
    assert len(real["attributes"]) > 100


_LAUNCHES = """
import numpy, sys, types
from cupy.cuda.function import Function
kernel, stream = Function.__new__(Function), types.SimpleNamespace(ptr=0)
cases = {
    "one map": ((numpy.zeros(1, "V128"),), {}), "two maps": ((numpy.zeros(2, "V128"),), {}),
    "scalars": ((numpy.int32(1), numpy.int64(1), numpy.float32(1), numpy.float64(1)), {}),
    "shared": ((), {"shared_mem": 8}), "shared by another name": ((), {"shared": 8}),
    "a dtype": ((numpy.dtype("f4"),), {}),
}
for name, (arguments, options) in cases.items():
    try:
        kernel((1,), (1,), arguments, stream=stream, **options)
    except TypeError as error:
        print(f"{name}: {error}")
    except Exception:  # there is no driver, or no kernel
        pass
"""


def test_cupy_passes_one_tensor_map_by_value_and_scalars_and_shared_memory_as_they_are_given() -> None:
    done = subprocess.run([sys.executable, "-c", _LAUNCHES], capture_output=True, text=True, check=True)
    refused = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(refused) == {"two maps", "shared by another name", "a dtype"}
    assert refused["two maps"].startswith("You are trying to pass a numpy.ndarray of shape (2,)")


_OPTIONS = """
import unittest.mock
from cupy.cuda import compiler
class Program:
    def __init__(self, *some, **more): pass
    def compile(self, options=(), log_stream=None):
        print(*options)
        return b"", None
compiler._NVRTCProgram, compiler.function = Program, unittest.mock.MagicMock()
compiler._get_nvrtc_version, compiler._get_max_compute_capability = lambda: (13, 0), lambda: "121"
compiler._get_arch_for_options_for_nvrtc = compiler._get_arch_for_options_for_nvrtc.__wrapped__  # asks for no device
compiler._compile_with_cache_cuda("", ("-arch=sm_90a",), "90", cache_in_memory=True)
"""


def test_cupy_adds_the_options_that_kernels_are_tested_with_after_ours() -> None:
    done = subprocess.run([sys.executable, "-c", _OPTIONS], capture_output=True, text=True, check=True)
    version, kernel = (line.split() for line in done.stdout.splitlines())
    assert kernel == ["-arch=sm_90a", *real_cupy.HOPPER_OPTIONS]
    assert version[0] == "-arch=sm_90a"  # of an empty source, to find out which compiler it is
