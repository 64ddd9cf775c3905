"""Uses of names of CuPy, RMM, dask-cuda and NVML in source code, and their calls, by static analysis."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = {"cupy", "cupyx", "cupy_backends", "rmm", "dask_cuda", "pynvml"}
#: Expressions that are CuPy in an engine for GPUs.
_MODULES = {"xp": "cupy", "self.xp": "cupy", "engine.xp": "cupy", "self.engine.xp": "cupy"}
#: Return types of functions whose results have further names used.
_RETURNED = {
    "cupy.get_default_memory_pool": "cupy.cuda.MemoryPool",
    "cupy.get_default_pinned_memory_pool": "cupy.cuda.PinnedMemoryPool",
    "cupy.cuda.get_current_stream": "cupy.cuda.Stream",
    "cupy.cuda.Stream.record": "cupy.cuda.Event",
    "cupy.random.default_rng": "cupy.random.Generator",
    "cupy.RawModule.get_function": "cupy.RawKernel",
} | {
    f"cupy.{name}": "cupy.ndarray"
    for name in (
        "arange", "argsort", "array", "asarray", "concatenate", "empty", "empty_like", "flatnonzero", "full", "ones",
        "partition", "zeros", "zeros_like",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Use:
    """One place where a name is used.

    Attributes
    ----------
    name : str
        Dotted.
    where : str
        File and line.
    n_positional : int or None
        Number of positional arguments; None if it is not called, or with an unpacked sequence.
    keywords : tuple of str
        Names of the keyword arguments.
    """

    name: str
    where: str
    n_positional: int | None = None
    keywords: tuple[str, ...] = ()


class _Scope:
    """Meaning of the names in a file, from its imports and its assignments to attributes."""

    def __init__(self, tree: ast.AST) -> None:
        self.known = dict(_MODULES)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.known |= {a.asname or a.name.split(".")[0]: a.name for a in node.names if _is_asked(a.name)}
            elif isinstance(node, ast.ImportFrom) and _is_asked(node.module or ""):
                self.known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        self._take_assigned(tree, ast.Attribute)

    def within(self, function: ast.AST) -> _Scope:
        """Return the scope of a function, with the assignments to its local names."""
        inner = copy.copy(self)
        inner.known = dict(self.known)
        inner._take_assigned(function, ast.Name)
        return inner

    def _take_assigned(self, tree: ast.AST, kind: type[ast.expr]) -> None:
        """Record names or attributes that always have the same meaning."""
        made: dict[str, set[str | None]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], kind):
                made.setdefault(ast.unparse(node.targets[0]), set()).add(self.resolve(node.value))
        self.known |= {text: of for text, (of, *others) in made.items() if of is not None and not others}

    def resolve(self, node: ast.AST) -> str | None:
        """Return the dotted name of an expression, or the class of its value."""
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "import_module":
                (text,) = (ast.literal_eval(a) if isinstance(a, ast.Constant) else "" for a in node.args[:1])
                return text if _is_asked(text) else None
            name = self.resolve(node.func)
            is_class = name is not None and name.rpartition(".")[2][:1].isupper()
            return name if is_class else _RETURNED.get(name or "")
        if not isinstance(node, ast.Name | ast.Attribute):
            return None
        text = ast.unparse(node)
        if text in self.known:
            return self.known[text]
        base = self.resolve(node.value) if isinstance(node, ast.Attribute) else None
        return f"{base}.{node.attr}" if base is not None and isinstance(node, ast.Attribute) else None


def _is_asked(module: str) -> bool:
    return module.split(".")[0] in PACKAGES


def uses_in(source: str, file: str) -> Iterator[Use]:
    """Yield every use of a name of these packages."""
    tree = ast.parse(source)
    file_scope = _Scope(tree)
    for function in _functions(tree):
        scope = file_scope.within(function)
        for node in ast.walk(function):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and _is_asked(node.module or ""):
                yield from (Use(f"{node.module}.{a.name}", where) for a in node.names)
            elif isinstance(node, ast.Attribute) and (name := scope.resolve(node)):
                yield Use(name, where)
            elif isinstance(node, ast.Call) and (name := scope.resolve(node.func)):
                known = not any(isinstance(a, ast.Starred) for a in node.args) and all(k.arg for k in node.keywords)
                keywords = tuple(k.arg for k in node.keywords if k.arg)
                yield Use(name, where, len(node.args) if known else None, keywords)


def _functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the functions and methods of a file, including their inner ones, and every other statement separately."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node)
        else:
            yield node


def uses_of(files: list[Path]) -> list[Use]:
    """Return all uses in some files, each once."""
    texts = {f"{file.parent.name}/{file.name}": file.read_text(encoding="utf-8") for file in files}
    asked = {name: text for name, text in texts.items() if any(word in text for word in (*PACKAGES, "xp."))}
    return sorted(
        {use for name, text in asked.items() for use in uses_in(text, name)}, key=lambda use: (use.where, use.name)
    )


def problem(use: Use, fact: dict[str, Any] | None) -> str | None:
    """Return the error of a use, given the package's description of the name, or None."""
    if fact is None:
        return f"{use.where}: there is no {use.name}"
    parameters = fact["parameters"]
    if use.n_positional is None or parameters is None:
        return None
    positional, others = parameters["positional"], parameters["keyword_only"]
    free = [*positional[use.n_positional :], *others]
    wrong = [name for name in use.keywords if name not in free]
    missing = set(positional[use.n_positional : parameters["n_required"]]) - set(use.keywords)
    if wrong or missing or use.n_positional > len(positional):
        called = ", ".join([f"{use.n_positional} positional", *(f"{name}=" for name in use.keywords)])
        return f"{use.where}: {use.name} called with {called} has parameters {parameters}"
    return None
