"""Every pipeline is a package that can be started in the same two ways, and imports without optional packages."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py"))
OPTIONAL = (
    "cupy", "dask_cuda", "dask_ml", "faiss", "fastkmeans", "pytest_benchmark", "rasterio", "rmm",
    "sentence_transformers", "superkmeans", "timm", "torch", "transformers",
)  # fmt: skip


def test_these_are_the_pipelines() -> None:
    assert NAMES == [
        "benchmark",
        "browse",
        "chaos",
        "cluster",
        "demo",
        "fuzz",
        "gpu",
        "images",
        "longtail",
        "mutants",
        "satellite",
        "simulation",
        "text",
        "training",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_run_py_and_the_module_call_the_same_main(name: str) -> None:
    call = f"from pipelines.{name}.command import main\n"
    for file in ("run.py", "__main__.py"):
        text = (ROOT / "pipelines" / name / file).read_text(encoding="utf-8")
        assert call in text
        assert "main()" in text


WITHOUT = f"""
import importlib, importlib.abc, sys

class NotInstalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.slow  # where they are not installed, as in CI, whoever collects the doctests imports all modules
def test_modules_import_without_optional_packages() -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "pipelines").glob("*/*.py")]
    names = [".".join(path.parts) for path in paths]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *names], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


# As processes run others: test_mutants.py one as a script from another folder, test_fuzz.py the workers of one.
@pytest.mark.parametrize(("name", "file"), [("demo", "__main__.py"), ("images", "run.py")])
def test_a_pipeline_tells_how_it_is_called(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = ROOT / "pipelines" / name / file
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(path), run_name="__main__")
    assert not exit_.value.code
    assert capsys.readouterr().out.startswith(f"usage: python -m pipelines.{name}")
