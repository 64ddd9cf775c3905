"""Names of installed packages, read from their `.pyi` and `.py` files: most cannot be imported without a driver."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _module(name: str) -> tuple[Path, ast.Module] | None:
    """Return the file of a module, or of its stub, and the parsed content, without importing the package."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin)
    is_package = root.name == "__init__.py"
    if rest and not is_package:
        return None
    folder = root.parent.joinpath(*rest) if is_package else root.with_suffix("")
    for file in (
        folder.with_suffix(".pyi"),
        folder / "__init__.pyi",
        folder / "__init__.py",
        folder.with_suffix(".py"),
    ):
        if file.is_file():
            return file, ast.parse(file.read_text(encoding="utf-8"))
    return None


def source_of(name: str) -> str:
    """Return the source of a module."""
    found = _module(name)
    assert found is not None, name
    return found[0].read_text(encoding="utf-8")


def _member(module: str, body: list[ast.stmt], name: str) -> tuple[str, ast.AST] | None:
    """Find the definition of a name of a module or class, through imports and bases."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return module, node
        if isinstance(node, ast.Import):
            for alias in node.names:
                if (alias.asname or alias.name.split(".")[0]) == name:
                    return _find(alias.name if alias.asname else name)
        if isinstance(node, ast.ImportFrom):
            package = _package(module, node)
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(f"{package}.{alias.name}")
    return None


def _package(module: str, node: ast.ImportFrom) -> str:
    """Return the absolute name of the module imported from."""
    if not node.level:
        return node.module or ""
    found = _module(module)
    is_package = found is not None and found[0].stem == "__init__"
    parts = module.split(".")[: len(module.split(".")) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _find(name: str) -> tuple[str, ast.AST] | None:
    """Return the module and the definition of a dotted name."""
    parts = name.split(".")
    n = next((n for n in range(len(parts), 0, -1) if _module(".".join(parts[:n])) is not None), 0)
    if not n:
        return None
    where = ".".join(parts[:n])
    found = _module(where)
    assert found is not None
    node: ast.AST = found[1]
    for i, part in enumerate(parts[n:], n):
        if isinstance(node, ast.Module) and (submodule := _module(f"{where}.{part}")) is not None:
            where, node = f"{where}.{part}", submodule[1]
            continue
        member = _member(where, getattr(node, "body", []), part)
        for base in getattr(node, "bases", []) if member is None else []:
            inherited = _find(f"{where}.{ast.unparse(base)}")
            member = member or (inherited and _member(inherited[0], getattr(inherited[1], "body", []), part))
        if member is None:
            return None
        where, node = member
        if isinstance(node, ast.Module):
            return _find(".".join([where, *parts[i + 1 :]]))
    return where, node


def describe(name: str) -> dict[str, Any] | None:
    """Describe a name as `real_cupy.describe` does; None if it does not exist."""
    found = _find(name)
    if found is None:
        return None
    node: ast.AST | None = found[1]
    if isinstance(node, ast.ClassDef):
        node = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    if not isinstance(node, ast.FunctionDef):
        return {"callable": False, "parameters": None}
    listed = node.args
    positional = [a.arg for a in (*listed.posonlyargs, *listed.args)]
    n_required = len(positional) - len(listed.defaults)
    is_method = positional[:1] == ["self"]
    parameters = {
        "positional": positional[is_method:],
        "keyword_only": [a.arg for a in listed.kwonlyargs],
        "n_required": n_required - is_method,
    }
    return {"callable": True, "parameters": None if listed.vararg else parameters, "any_keyword": bool(listed.kwarg)}
