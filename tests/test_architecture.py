"""The structure of the package: imports point down, importing needs nothing optional, every name is typed."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "hkm_dask"

# From the ground up. A module may import from its own room and from the rooms before it.
ROOMS = (
    "version", "errors", "untrusted", "events", "metrics", "config", "data", "compute", "search", "kmeans", "hierarchy",
    "curation", "ingestion", "embedding", "view", "planning", "browsing", "demo", "cli", "__init__", "__main__",
)  # fmt: skip
# Of these, rooms within them, from the ground up; "" has the modules that are in none.
INNER_ROOMS = {"hierarchy": ("sorting", "tree", "sampling", "", "verify"), "compute": ("", "cluster")}
OPTIONAL = {"cupy", "dask_cuda", "rmm", "sentence_transformers", "timm", "torch", "transformers"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree_of(path)))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def has_signature(decorator: ast.expr) -> bool:
    """Tell whether a decorator is numba's, with the types of the kernel in it, like ``"void(i4[::1], f4[::1])"``."""
    arguments = decorator.args if isinstance(decorator, ast.Call) else []
    strings = [node for argument in arguments for node in ast.walk(argument) if isinstance(node, ast.Constant)]
    return any(isinstance(node.value, str) and "(" in node.value for node in strings)


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs when the module is imported: everything but the bodies of functions and type-only imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child):
            continue
        yield child
        yield from at_import_time(child)


def but_for_types(node: ast.AST) -> Iterator[ast.AST]:
    """Walk all there is, but for type-only imports."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from but_for_types(child)


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
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


def test_imports_point_down() -> None:
    upward = []
    for path in MODULES:
        for name in imported(nodes_of(path)):
            # A public name of the top level is in no room.
            target = room(name) if room(name) in ROOMS else "__init__"
            if name.split(".")[0] == "hkm_dask" and ROOMS.index(target) > ROOMS.index(room(dotted(path))):
                upward.append(f"{dotted(path)} imports {name}, which lies above it")
    assert not upward


def test_imports_point_down_within_rooms() -> None:
    def inner_room(module: str) -> str:
        parts = module.split(".")
        return parts[2] if len(parts) > 2 and parts[2] in INNER_ROOMS[parts[1]] else ""

    upward = []
    for path in MODULES:
        if room(dotted(path)) in INNER_ROOMS:
            order = INNER_ROOMS[room(dotted(path))]
            for name in imported(nodes_of(path)):
                if name.startswith(f"hkm_dask.{room(dotted(path))}."):
                    if order.index(inner_room(name)) > order.index(inner_room(dotted(path))):
                        upward.append(f"{dotted(path)} imports {name}, which lies above it")
    assert not upward


def test_no_module_imports_itself_through_others() -> None:
    """Nor by imports within functions."""
    known = {dotted(path) for path in MODULES}
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        names = set(imported(but_for_types(tree_of(path))))
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


def test_optional_packages_wait_until_they_are_used() -> None:
    roots = {(dotted(path), name.split(".")[0]) for path in MODULES for name in imported(at_import_time(tree_of(path)))}
    assert not {(module, name) for module, name in roots if name in OPTIONAL}


def test_every_public_function_is_typed() -> None:
    untyped = []
    nodes = [(path, node) for path in MODULES for node in nodes_of(path)]
    for path, body in nodes:
        for node in body.body if isinstance(body, ast.Module | ast.ClassDef) else []:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            if any(has_signature(decorator) for decorator in node.decorator_list):
                continue
            a = node.args
            args = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            bare = [arg.arg for arg in args if arg.annotation is None and arg.arg not in {"self", "cls"}]
            if bare or node.returns is None:
                untyped.append(f"{dotted(path)}.{node.name}: {', '.join(bare) or 'what it returns'}")
    assert not untyped


def test_a_module_says_what_it_is_for_and_shadows_nothing() -> None:
    silent = [dotted(path) for path in MODULES if not ast.get_docstring(tree_of(path))]
    assert not silent, "the first line of a module should tell its purpose"
    assert not {path.stem for path in MODULES} & sys.stdlib_module_names - {"__init__", "__main__"}


def test_products_of_arrays_set_off_no_false_alarms() -> None:
    """`matmul` sees to that; ``a @ b`` and ``np.dot`` warn on some processors."""
    sparse = {"hkm_dask.view.report.labels"}  # of SciPy, without BLAS
    found = [
        f"{dotted(path)}:{node.lineno}"
        for path in MODULES
        if dotted(path) not in sparse | {"hkm_dask.compute.matmul"}
        for node in nodes_of(path)
        if (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult))
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in {"np.dot", "np.matmul"})
    ]
    assert not found


def test_importing_the_package_is_light() -> None:
    heavy = sorted(OPTIONAL | {"bokeh", "matplotlib"})
    code = f"import sys, hkm_dask; print(*sorted(set({heavy!r}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert out.stdout.split() == []


# Where a worker computes, and what kind of runner it has, is nobody's business but theirs.
ENGINE_ROOMS = ("compute/", "search/", "kmeans/fit_groups.py")
DEVICE_NAMES = {"worker_device", "worker_module", "device_budget", "make_room", "ran_out", "cupy"}


def outside(*rooms: str) -> Iterator[tuple[str, tuple[ast.AST, ...]]]:
    """Yield name and nodes of the modules that do not lie in these rooms."""
    for path in MODULES:
        if not path.relative_to(PACKAGE).as_posix().startswith(rooms):
            yield dotted(path), nodes_of(path)


def test_only_engines_know_the_device() -> None:
    known = []
    for module, nodes in outside(*ENGINE_ROOMS):
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {name.split(".")[-1] for name in imported(nodes)}
        known += [(module, name) for name in names & DEVICE_NAMES]
        asked = [ast.unparse(node) for node in nodes if isinstance(node, ast.Compare)]
        known += [(module, text) for text in asked if text.endswith((" is np", " is not np"))]
    assert not known


def test_a_runner_is_asked_what_it_can_do_not_what_it_is() -> None:
    calls = [(module, node) for module, nodes in outside("compute/") for node in nodes if isinstance(node, ast.Call)]
    asked = [(module, ast.unparse(call)) for module, call in calls if ast.unparse(call.func) == "isinstance"]
    assert not [(module, call) for module, call in asked if "Runner" in call.partition(",")[2]]
    compared = [
        (module, node) for module, nodes in outside("compute/") for node in nodes if isinstance(node, ast.Compare)
    ]
    clients = [(module, text) for module, node in compared if ".client is " in (text := ast.unparse(node))]
    assert not [(module, text) for module, text in clients if not text.startswith("self.client ")]


def test_a_file_can_be_read_in_one_sitting() -> None:
    lines = {dotted(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {module: n for module, n in lines.items() if n > 450}
