"""Any error in a command ends in one clear line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hkm_dask.view import info
from tests.cli.results import Result


def test_an_error_is_one_line_on_stderr(hkm: Callable[..., Result], tmp_path: Path) -> None:
    code, out, err = hkm("info", tmp_path / "absent.zarr")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line == f"Error: {tmp_path / 'absent.zarr'} is missing; check the path"


def test_debug_shows_the_traceback_wherever_it_stands(hkm: Callable[..., Result], tmp_path: Path) -> None:
    for words in (["--debug", "info", tmp_path / "absent"], ["info", tmp_path / "absent", "--debug"]):
        code, _, err = hkm(*words)
        assert code == 1
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1] == f"Error: {tmp_path / 'absent'} is missing; check the path"


def test_an_option_given_twice_is_refused_where_one_would_be_lost(hkm: Callable[..., Result], tmp_path: Path) -> None:
    words = ["ingest", tmp_path / "a.npy", tmp_path / "p.zarr", "--keep", "url", "--keep", "license"]
    code, _, err = hkm(*words)
    assert code == 2
    assert "--keep is given 2 times but should be given once; separate its values by commas" in err
    for several in (["--exclude", "1:0", "--exclude", "1:1"], ["--json", "--json"], ["--seed", "1", "--seed", "2"]):
        code, _, err = hkm("sample", tmp_path / "t.zarr", "--size", 1, "--out", tmp_path / "a.npy", *several)
        assert code == 1
        assert "t.zarr is missing" in err


def test_all_problems_of_a_configuration_come_at_once(hkm: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("metrik: l2\nlevels:\n  - n_clusters: 0\n  - n_clusters: 5\n    tol: -1\n")
    code, out, err = hkm(
        *("cluster", tmp_path / "p.zarr", tmp_path / "t.zarr", "--config", tmp_path / "run.yaml"),
        *("--seed", "-1", "--set", "levels.2.n_cluster=3"),
    )
    assert (code, out) == (1, "")
    assert [line.partition("=")[0] for line in err.splitlines()] == [
        "Error: levels.2.n_cluster",
        "Error: --seed",
        "Error: levels.1.n_clusters",
        "Error: levels.2.tol",
        "Error: metrik",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_lists_of_another_length_than_the_levels_are_refused(hkm: Callable[..., Result], tmp_path: Path) -> None:
    words = ["cluster", tmp_path / "p", tmp_path / "t", "--n-clusters", "20,5"]
    code, _, err = hkm(*words, "--n-resamples", "1,2,3", "--resample-size", "auto,3,3")
    assert code == 1
    assert [line.split(" should be ")[0] for line in err.splitlines()] == [
        "Error: --n-resamples=1,2,3",
        "Error: --resample-size=auto,3,3",
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("x"), "Error: KeyError: 'x' (a bug in hkm_dask; --debug shows the traceback)"),
        (PermissionError(13, "Permission denied", "a.zarr"), "Error: a.zarr: Permission denied"),
        (OSError(28, "No space left", "a"), "Error: the disk is full; free space and run the same command again"),
        (OSError("9 requested and 0 written"), "Error: the disk is full; free space and run the same command again"),
        (PermissionError(13, "Permission denied", "a\x1b[2J"), r"Error: a\x1b[2J: Permission denied"),
        (MemoryError(), "Error: out of memory; lower --memory-limit, or use fewer --workers"),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(
    hkm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(store: Path) -> None:
        raise error

    monkeypatch.setattr(info, "describe", fail)
    assert hkm("info", "x") == (1, "", f"{line}\n")
