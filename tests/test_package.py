"""The distribution and its documentation: version, types, public names, commands."""

import importlib.metadata
import importlib.resources
import re
import shlex
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
import yaml

import hkm_dask
from hkm_dask.cli import main
from tests.pages import steps

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "pipelines").rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def blocks(page: Path) -> list[tuple[str, str]]:
    """Give the fenced blocks of a page: language and text."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def command_lines(page: Path) -> list[list[str]]:
    """Give the `hkm` calls in the blocks of a page, as lists of words."""
    shell = "\n".join(text for language, text in blocks(page) if language in {"", "sh", "bash"})
    run = [step.text for step in steps(page.read_text(encoding="utf-8")) if step.shown is not None]
    text = "\n".join([shell, *run]).replace("\\\n", " ")
    calls = [shlex.split(call, comments=True) for call in re.split(r"\n|&&|2?[|>]", text) if "hkm" in call]
    return [call[1:] for call in calls if call[:1] == ["hkm"]]


LINES = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in command_lines(page)]


def test_the_version_is_told_once_and_the_same_everywhere() -> None:
    assert hkm_dask.__version__ == PROJECT["version"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{hkm_dask.__version__}]" in changes or "## [Unreleased]" in changes


def test_a_package_that_is_on_the_path_only_knows_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = importlib.metadata.Distribution.from_name

    def all_but_this(name: str) -> importlib.metadata.Distribution:
        if name == "hkm-dask":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", all_but_this)
    rows = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    tree = hkm_dask.build_hierarchy(rows, tmp_path / "tree.zarr", hkm_dask.Config.from_flags((3,)))
    assert tree.attrs["software"].startswith(f"hkm_dask {hkm_dask.__version__}, ")
    main(["--version"], standalone_mode=False)
    assert capsys.readouterr().out == f"hkm {hkm_dask.__version__}\n"


def test_types_are_shipped() -> None:
    assert importlib.resources.files(hkm_dask).joinpath("py.typed").is_file()


def test_every_public_name_exists_and_is_documented() -> None:
    assert len(set(hkm_dask.__all__)) == len(hkm_dask.__all__)
    for name in hkm_dask.__all__:
        value = getattr(hkm_dask, name)
        assert isinstance(value, str) or value.__doc__, name


def test_the_entry_point_is_the_command() -> None:
    assert PROJECT["scripts"] == {"hkm": "hkm_dask.__main__:main"}
    assert isinstance(main, click.Group)


def test_gpu_extras_alone_may_pin_dask_cuda() -> None:
    assert not [line for line in PROJECT["dependencies"] if "<" in line or "==" in line or "~=" in line]
    pins = {
        extra: [line for line in lines if "==" in line] for extra, lines in PROJECT["optional-dependencies"].items()
    }
    assert {extra for extra, lines in pins.items() if lines} == {"cuda12", "cuda13"}


def test_the_readme_begins_with_the_two_commands() -> None:
    _, text = blocks(ROOT / "README.md")[0]
    assert text.splitlines() == [
        "pip install -e . && hkm demo",
        "pip install -e '.[test]' && pytest -n logical --dist loadfile",
    ]
    assert {"demo", "ingest", "dedup", "cluster", "sample", "report"} <= {
        line[0] for page, line in LINES if page == "README.md"
    }


@pytest.mark.parametrize(("page", "line"), LINES, ids=[" ".join(line) for _, line in LINES])
def test_documented_commands_parse(page: str, line: list[str]) -> None:
    if line[0].startswith("-"):
        return
    assert line[0] in main.commands, f"{page} names the command {line[0]}"
    # Parsed only: unknown options, missing arguments and wrong kinds of values raise UsageError.
    # Within `hkm`, since a command keeps the names of its help option from the first time.
    main.commands[line[0]].make_context(line[0], line[1:], parent=click.Context(main, **main.context_settings)).close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_in_the_pages_compiles_and_names_what_exists(page: Path) -> None:
    for language, text in blocks(page):
        if language == "python":
            compile(text, str(page), "exec")
            for name in re.findall(r"\bhkm\.(\w+)", text):
                assert name in hkm_dask.__all__ or re.search(rf"\.hkm\.{name}\b", text), f"hkm.{name}"


def test_the_configuration_in_the_readme_is_the_default_one() -> None:
    (text,) = [text for language, text in blocks(ROOT / "README.md") if language == "yaml"]
    assert hkm_dask.Config(**yaml.safe_load(text)) == hkm_dask.Config(levels=[hkm_dask.Level(n_clusters=2000)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs" / "images" / "demo.png").stat().st_size < 400_000


def options_of(command: click.Command) -> set[str]:
    inner = getattr(command, "commands", {}).values()
    own = {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}
    return own.union(*map(options_of, inner))


# Those left out tell of programs of others, or of our pipelines.
OF_OTHERS = ("cluster.md", "gpu.md", "performance.md")
OURS = [page for page in PAGES if "pipelines" not in page.parts and page.name not in OF_OTHERS]


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.name)
def test_options_named_in_pages_are_there(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    spans = [span for span in re.findall(r"`([^`\n]+)`", prose) if re.match("(hkm |-)", span)]
    named = {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)}
    assert not named - options_of(main) - {"--help"}


def test_completion_of_names_offers_what_is_public() -> None:
    assert {name for name in dir(hkm_dask) if not name.startswith("__")} == {*hkm_dask.__all__} - {"__version__"}
