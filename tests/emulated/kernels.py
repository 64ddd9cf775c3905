"""`cupy.RawModule` on the CPU: the kernels are compiled by g++ after `cuda_on_cpu.h` and run thread by thread."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.emulated import arrays, costs, memory, runtime, streams, tensor_maps

HEADERS = [Path(__file__).with_name(name) for name in ("cuda_on_cpu.h", "hopper_on_cpu.h")]
MOST_SHARED, SHARED_BY_DEFAULT, MOST_THREADS = 232448, 48 << 10, 1024
_FLAGS = (
    "-std=c++17 -x c++ -O2 -g1 -fPIC -w -ffp-contract=off -fno-strict-aliasing -fcf-protection=none "
    "-fstack-clash-protection "
    "-fsanitize=bounds,alignment,integer-divide-by-zero,shift,signed-integer-overflow,float-cast-overflow "
    "-fsanitize-undefined-trap-on-error"
).split()
#: Options of NVRTC that are ignored here.
_IGNORED = re.compile(
    r"--?(std=c\+\+\d+|lineinfo|generate-line-info|fmad=\w+|maxrregcount=\d+|restrict|O\d|gpu-architecture=\S+|arch=\S+"
    r"|extra-device-vectorization|default-device|ftz=\w+|prec-(div|sqrt)=\w+)|-w|-G"
)
_KERNEL = re.compile(r"HKM_GLOBAL\s+(?:static\s+)?void\s*(?:HKM_LAUNCH_BOUNDS\s*\(([^)]*)\)\s*)?(\w+)\s*\(")
_BOUNDS_FIRST = re.compile(r"HKM_GLOBAL\s+(HKM_LAUNCH_BOUNDS\s*\([^)]*\))\s*void\b")
_CLUSTER = re.compile(r"HKM_CLUSTER_DIMS\s*\((\d+), 1, 1\)\s*(HKM_LAUNCH_BOUNDS\s*\([^)]*\)\s*(\w+))")
_POOL = re.compile(r"extern\s+HKM_SHARED\s+((?:__attribute__\s*\(\(.*?\)\)\s*)?)([\w\s]+?)\b(\w+)\s*\[\s*\]\s*;")
_lock = threading.Lock()
_launches = 0


class CompileException(Exception):
    """The source of kernels does not compile."""


class CUDADriverError(RuntimeError):
    """A failed launch: an invalid configuration, or a kernel with an error or undefined behavior on a GPU."""


CompileException.__module__ = "cupy.cuda.compiler"
CUDADriverError.__module__ = "cupy_backends.cuda.api.driver"


@cache
def _folder() -> Path:
    """Return the folder for compiled kernels, which lasts as long as this process unless `build_in` sets another."""
    return Path(tempfile.mkdtemp(prefix="hkm-emulated-"))


_build_folder: Path | None = None


def build_in(folder: Path) -> None:
    """Keep compiled kernels in a folder that processes may share."""
    global _build_folder
    _build_folder = folder


def missing() -> str | None:
    """Return why kernels cannot be emulated here, or None if they can."""
    if os.uname().sysname != "Linux" or os.uname().machine != "x86_64":
        return "emulating CUDA kernels needs Linux on x86-64"
    return None if shutil.which("g++") else "emulating CUDA kernels needs g++"


def _run(arguments: list[str], source: str | None = None) -> str:
    done = subprocess.run(["g++", *arguments], input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileException(done.stderr)
    return done.stdout


@cache
def _compiler_version() -> str:
    return _run(["-dumpfullversion"])


def _defines(options: tuple[str, ...]) -> list[str]:
    kept, words = [], iter(options)
    for word in words:
        if word in ("-D", "--define-macro", "-U"):
            kept.append(("-U" if word == "-U" else "-D") + next(words))
        elif word.startswith(("-D", "-U")):
            kept.append(word)
        elif word.startswith("--define-macro="):
            kept.append("-D" + word.partition("=")[2])
        elif not _IGNORED.fullmatch(word):
            raise CompileException(f"option {word!r} should be one that the emulator knows; add it to kernels.py")
    return kept


@cache
def _compile(code: str, options: tuple[str, ...], folder: Path) -> tuple[Path, dict[str, int], dict[str, int]]:
    """Build the library of these kernels if necessary; return its path, launch bounds and blocks per cluster."""
    if re.search(r"^\s*#\s*include", code, re.MULTILINE):
        raise CompileException("kernels should include nothing: NVRTC has no headers to give")
    defines = _defines(options)
    text = _run([*_FLAGS[:3], *defines, "-E", "-"], "".join(h.read_text(encoding="utf-8") for h in HEADERS) + code)
    clusters = {match[3]: int(match[1]) for match in _CLUSTER.finditer(text)}
    text = _CLUSTER.sub(r"\2", text)
    text = _BOUNDS_FIRST.sub(r"HKM_GLOBAL void \1", text)
    bounds: dict[str, int] = {}
    for match in _KERNEL.finditer(text):
        bound = match[1].split(",")[0].strip() if match[1] else str(MOST_THREADS)
        if not re.fullmatch(r"[\d\s+*/()<>-]+", bound):
            raise CompileException(f"__launch_bounds__({bound}) should be a number")
        bounds[match[2]] = int(eval(bound.replace("/", "//")))
    text = _POOL.sub(r"\2*& \3 = *(\2**)&hkm::shared_start;", text)
    text = re.sub(r"HKM_LAUNCH_BOUNDS\s*\([^)]*\)", "", text).replace("HKM_GLOBAL", "")
    text = text.replace("static HKM_SHARED", "HKM_SHARED")
    text = text.replace("HKM_SHARED", 'static __attribute__((used, section("hkm_shared")))')
    text += "\n" + "\n".join(_exported(name, clusters.get(name, 1)) for name in bounds)
    key = hashlib.sha256("\0".join([text, *_FLAGS, _compiler_version()]).encode()).hexdigest()[:24]
    library = folder / f"kernels-{key}.so"
    with library.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # only one process builds a library
        if not library.exists():
            source, unfinished = library.with_suffix(".ii"), library.with_suffix(".unfinished")
            source.write_text(text, encoding="utf-8")
            _run([*_FLAGS, "-fpreprocessed", "-shared", str(source), "-o", str(unfinished), "-ldl"])
            unfinished.replace(library)
            source.unlink()
    return library, bounds, clusters


@cache
def _symbols(library: Path) -> str:
    """Return the symbol table, or an empty text if no tool is available."""
    if shutil.which("nm") is None:
        return ""
    return subprocess.run(["nm", "-S", str(library)], capture_output=True, text=True, check=True).stdout


def _exported(name: str, n_blocks: int) -> str:
    return (
        f'extern "C" const char* hkm_signature_{name}() {{ return hkm::Call<&{name}>::signature(); }}\n'
        f'extern "C" int hkm_launch_{name}(void** a, const unsigned* grid, const unsigned* block, int shared, '
        f"unsigned order) {{ return hkm::launch(hkm::Call<&{name}>::run, a, grid, block, shared, order, {n_blocks}); }}"
    )


class RawModule:
    """Kernels of one source; see `cupy.RawModule`."""

    def __init__(
        self,
        *,
        code: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        name_expressions: Any = None,
        jitify: bool = False,
    ) -> None:
        if not isinstance(options, tuple) or not all(isinstance(option, str) for option in options):
            raise TypeError(f"options={options!r} should be a tuple of strings")
        if name_expressions is not None or jitify:
            raise NotImplementedError("the emulator knows neither name_expressions nor jitify")
        if why := missing():
            raise CompileException(why)
        self.code, self.options, self.backend = code, options, backend
        self._library: Any = None
        self._dynamic: dict[str, int] = {}  # by kernel: all functions of a module with the same name are one

    def compile(self, log_stream: object = None) -> None:
        with _lock:
            if self._library is None:
                self._path, self._bounds, self._clusters = _compile(self.code, self.options, _build_folder or _folder())
                library = ctypes.CDLL(str(self._path))
                library.hkm_message.restype = ctypes.c_char_p
                for name in ("hkm_fault_address", "hkm_fault_code"):
                    getattr(library, name).restype = ctypes.c_ulonglong
                self._library = library

    def _static_shared(self, kernel: str) -> int:
        """Return the bytes of `__shared__` variables that a kernel declares itself, without functions it calls."""
        # Static variables of functions are mangled as _ZZ <function> E <name>; in kernels, all of them are shared.
        found = re.findall(rf"^\S+ (\S+) [dDbB] _ZZ{len(kernel)}{kernel}E", _symbols(self._path), re.MULTILINE)
        return sum(int(size, 16) for size in found)

    def get_function(self, name: str) -> RawKernel:
        self.compile()
        if name not in self._bounds:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found: " + name)
        return RawKernel(self, name)


class RawKernel:
    """One kernel, called as ``kernel(grid, block, args, shared_mem=0, stream=None)``."""

    def __init__(self, module: RawModule, name: str) -> None:
        self._module, self.name = module, name
        self._launch = getattr(module._library, f"hkm_launch_{name}")
        describe = getattr(module._library, f"hkm_signature_{name}")
        describe.restype = ctypes.c_char_p
        self._parameters: list[str] = describe().decode().split()
        self.max_threads_per_block = min(module._bounds[name], MOST_THREADS)
        self.num_regs = 32
        self.local_size_bytes = self.const_size_bytes = 0
        self.shared_size_bytes = module._static_shared(name)
        self._cluster = module._clusters.get(name, 1)
        if self._cluster > 1 and self.shared_size_bytes:
            raise NotImplementedError(f"{name}: blocks of a cluster should have dynamic shared memory alone")

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._module._dynamic.get(self.name, SHARED_BY_DEFAULT)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, n_bytes: int) -> None:
        if not 0 <= n_bytes + self.shared_size_bytes <= MOST_SHARED:
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: max_dynamic_shared_size_bytes={n_bytes} should be <= "
                f"{MOST_SHARED - self.shared_size_bytes}"
            )
        self._module._dynamic[self.name] = int(n_bytes)

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, shared_mem: int = 0, stream: Any = None
    ) -> None:
        global _launches
        grid, block = _three("grid", grid), _three("block", block)
        if grid[0] >= 1 << 31 or max(grid[1:]) > 65535:
            raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: grid={grid} is too large")
        threads = block[0] * block[1] * block[2]
        if threads > self.max_threads_per_block or block[2] > 64:
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: block={block} should have at most {self.max_threads_per_block} threads"
            )
        if grid[0] % self._cluster:
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_CLUSTER_SIZE: grid={grid} should be whole clusters of {self._cluster} blocks"
            )
        if threads * self._cluster > MOST_THREADS or (self._cluster > 1 and threads % 32):
            raise NotImplementedError(f"{self.name}: a cluster should have at most {MOST_THREADS} threads, in warps")
        if shared_mem > (most := self.max_dynamic_shared_size_bytes):
            raise CUDADriverError(
                f"CUDA_ERROR_INVALID_VALUE: shared_mem={shared_mem} should be <= {most}; "
                "set max_dynamic_shared_size_bytes"
            )
        values = self._arguments(args)
        pointers = (ctypes.c_void_p * max(len(values), 1))(*(value.ctypes.data for value in values))
        triple = ctypes.c_uint * 3
        uses = [
            memory.use(arg._host, wanted.startswith("*"))
            for arg, wanted in zip(args, self._parameters, strict=True)
            if isinstance(arg, arrays.ndarray)
        ]
        uses += [memory.use(tensor_maps.matrix_of(arg), False) for arg in args if type(arg) is np.ndarray]
        streams.operate(uses, stream)
        costs.launched(self.name)
        with _lock:
            _launches += 1
            library = self._module._library
            failed = self._launch(
                pointers, triple(*grid), triple(*block), int(shared_mem), _launches * 2654435761 % 2**32
            )
            if failed:
                message, where = library.hkm_message().decode(), library.hkm_fault_code()
                address = library.hkm_fault_address()
            spoilt = memory.check_canaries()
        if failed:
            if streams.loses_context:
                streams.lost = runtime.CUDARuntimeError(700)  # an illegal address
            raise CUDADriverError(f"{self.name}: {message}{self._place(where, address)}")
        if spoilt:
            names = [
                i for i, a in enumerate(args) if isinstance(a, arrays.ndarray) and memory.owner(a._host).ptr in spoilt
            ]
            raise CUDADriverError(f"{self.name}: write beside an array, of the arguments {names or 'none'}")

    def _place(self, code: int, address: int) -> str:
        """Return the source line of a signal, if there was one."""
        text = f" at {address:#x}" if address and not code else ""
        if code and shutil.which("addr2line"):
            command = ["addr2line", "-e", str(self._module._path), hex(code - 1)]
            found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
            text = f", {Path(found).name}"
        return text

    def _arguments(self, args: Any) -> list[np.ndarray]:
        if not isinstance(args, tuple | list) or len(args) != len(self._parameters):
            raise TypeError(f"{self.name}: {len(args)} arguments should be {len(self._parameters)}")
        return [
            self._argument(i, arg, wanted) for i, (arg, wanted) in enumerate(zip(args, self._parameters, strict=True))
        ]

    def _argument(self, i: int, arg: Any, wanted: str) -> np.ndarray:
        name = f"{self.name}: argument {i}"
        if isinstance(arg, arrays.ndarray):
            if "*" not in wanted:
                raise TypeError(f"{name} is an array and should be a scalar {wanted}")
            element = wanted.rpartition("*")[2]
            if not _fits(arg.dtype, element):
                raise TypeError(f"{name} is an array of {arg.dtype} and should be what the kernel takes: {wanted}")
            if not arg.flags.c_contiguous:
                raise ValueError(f"{name} should be C-contiguous")
            if arg._host.ctypes.data % _alignment(element):
                raise ValueError(f"{name} should lie at a multiple of {_alignment(element)} bytes for {wanted}")
            return np.array([arg._host.ctypes.data], np.uint64)
        if "*" in wanted:
            raise TypeError(f"{name} is {type(arg).__name__} and should be a cupy.ndarray for {wanted}")
        if wanted == "map":
            if type(arg) is not np.ndarray or arg.size != 1 or arg.dtype.itemsize != tensor_maps.N_BYTES:
                raise TypeError(f"{name} should be a numpy.ndarray of one item of {tensor_maps.N_BYTES} bytes")
            return arg
        dtype = np.dtype(wanted)
        if not isinstance(arg, np.generic) or arg.dtype != dtype:
            raise TypeError(f"{name} is {type(arg).__name__} and should be exactly numpy.{dtype.name}")
        return np.array([arg])


def _three(name: str, values: tuple[int, ...]) -> tuple[int, int, int]:
    if not isinstance(values, tuple) or not 1 <= len(values) <= 3:
        raise TypeError(f"{name}={values!r} should be a tuple of one to three integers")
    if not all(isinstance(n, int | np.integer) for n in values):
        raise TypeError(f"{name}={values!r} should be integers")
    if min(values) < 1:
        raise CUDADriverError(f"CUDA_ERROR_INVALID_VALUE: {name}={values} should be positive")
    x, y, z = (*(int(n) for n in values), 1, 1)[:3]
    return x, y, z


_ALSO = {"u2": ("float16",), "u1": ("bool",), "b1": ("uint8",)}
_VECTORS = {"int2": "i4", "uint2": None, "float2": "f4", "double2": "f8", "int4": "i4", "uint4": None, "float4": "f4"}


def _fits(dtype: np.dtype, wanted: str) -> bool:
    if wanted == "void":
        return True
    if wanted in _VECTORS:  # unsigned vectors move bytes of any type
        return _VECTORS[wanted] is None or dtype == np.dtype(_VECTORS[wanted])
    return dtype == np.dtype(wanted) or dtype.name in _ALSO.get(wanted, ())


def _alignment(wanted: str) -> int:
    if wanted in _VECTORS:
        return 8 if wanted in ("int2", "uint2", "float2") else 16
    return 1 if wanted == "void" else np.dtype(wanted).itemsize
