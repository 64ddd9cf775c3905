"""The rooms of the package: imports point down, nothing optional is needed to import it, every name is typed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hkm_dask"

# From the ground up. A module may import from its own room and from the rooms before it.
ROOMS = (
    "version", "errors", "untrusted", "events", "metrics", "config", "data", "compute", "kmeans", "hierarchy",
    "curation", "ingestion", "embedding", "view", "planning", "browsing", "demo", "cli", "__init__", "__main__",
)  # fmt: skip
OPTIONAL = {"cupy", "dask_cuda", "rmm", "sentence_transformers", "timm", "torch", "transformers"}

MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in MODULES]
each_module = pytest.mark.parametrize("path", MODULES, ids=NAMES)


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def has_signature(decorator: ast.expr) -> bool:
    """Tell whether a decorator is numba's, with the types of the kernel in it, like ``"void(i4[::1], f4[::1])"``."""
    arguments = decorator.args if isinstance(decorator, ast.Call) else []
    return any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "(" in a.value for a in arguments)


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs when the module is imported: everything but the bodies of functions and type-only imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child):
            continue
        yield child
        yield from at_import_time(child)


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the dotted names that imports among `nodes` ask for; `from a import b` as `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports should be absolute"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_package_has_modules() -> None:
    assert len(MODULES) > 10


@each_module
def test_imports_point_down(path: Path) -> None:
    here = dotted(path)
    own = ROOMS.index(room(here))
    for name in imported(ast.walk(tree_of(path))):
        if name.split(".")[0] == "hkm_dask":
            target = room(name)
            if target not in ROOMS:  # a public name of the top level
                target = "__init__"
            assert ROOMS.index(target) <= own, f"{here} imports {name}, which lies above it"


def test_no_module_imports_itself_through_others() -> None:
    known = {dotted(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        names = set(imported(at_import_time(tree_of(path))))
        graph[dotted(path)] = {name if name in known else name.rpartition(".")[0] for name in names} & known
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " → ".join([*trail, module])
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@each_module
def test_optional_packages_wait_until_they_are_used(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(at_import_time(tree_of(path)))}
    assert not roots & OPTIONAL


@each_module
def test_every_public_function_is_typed(path: Path) -> None:
    untyped = []
    bodies = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Module | ast.ClassDef)]
    for body in bodies:
        for node in body.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if any(has_signature(decorator) for decorator in node.decorator_list):
                continue
            a = node.args
            args = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            bare = [arg.arg for arg in args if arg.annotation is None and arg.arg not in {"self", "cls"}]
            if bare or node.returns is None:
                untyped.append(f"{node.name}: {', '.join(bare) or 'what it returns'}")
    assert not untyped


@each_module
def test_a_module_says_what_it_is_for_and_shadows_nothing(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "the first line of a module should tell its purpose"
    assert path.stem == "__init__" or path.stem == "__main__" or path.stem not in sys.stdlib_module_names


def test_importing_the_package_is_light() -> None:
    heavy = sorted(OPTIONAL | {"bokeh", "matplotlib"})
    code = f"import sys, hkm_dask; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert out.stdout.split() == []


# Where a worker computes, and what kind of runner it has, is nobody's business but theirs.
ENGINE_ROOMS = ("compute/", "kmeans/search/", "kmeans/batch_cuda.py")
DEVICE_NAMES = {"worker_device", "worker_module", "device_budget", "make_room", "ran_out", "cupy"}


@each_module
def test_only_engines_know_the_device(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix().startswith(ENGINE_ROOMS):
        return
    tree = tree_of(path)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not (names | {name.split(".")[-1] for name in imported(ast.walk(tree))}) & DEVICE_NAMES


@each_module
def test_a_runner_is_asked_what_it_can_do_not_what_it_is(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix().startswith("compute/"):
        return
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    types = [ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) == "isinstance"]
    assert not [kind for kind in types if "Runner" in kind]


@each_module
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450
