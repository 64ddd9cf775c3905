"""Values of the shared options, and where work runs."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from hkm_dask import cli
from hkm_dask.cli import options
from hkm_dask.errors import InputError
from tests.cli.results import ROOT, Result


@pytest.mark.parametrize(
    ("text", "values"), [("5", 5), ("5,3", (5, 3)), ("auto", "auto"), ("auto,3", ("auto", 3)), ("-1", -1)]
)
def test_one_value_for_all_levels_or_one_for_each(text: str, values: object) -> None:
    assert options.PerLevel("10 or auto", words=["auto"]).convert(text, None, None) == values


def test_a_list_of_one_stays_a_list() -> None:
    assert options.PerLevel("4,3,2", many=True).convert("5", None, None) == (5,)


@pytest.mark.parametrize(("text", "size"), [("4GiB", 4 << 30), ("1kB", 1000), ("7", 7)])
def test_sizes_are_in_bytes(text: str, size: int) -> None:
    assert options.Size().convert(text, None, None) == size


@pytest.mark.parametrize("kind", [options.PATH, options.STORE])
def test_paths_may_begin_with_the_home_folder(kind: options.LocalPath) -> None:
    assert kind.convert("~/draw.npy", None, None) == Path.home() / "draw.npy"  # as in --out=~/draw.npy


def test_a_preset_needs_gpus_of_this_machine(hkm: Callable[..., Result]) -> None:
    code, _, err = hkm("cluster", "p", "t", "--n-clusters", "5", "--cuda-preset", "capacity")
    assert code == 2
    assert "--cuda-preset needs --local-cuda" in err


def test_threads_of_workers_need_workers_of_this_machine(hkm: Callable[..., Result]) -> None:
    code, _, err = hkm("cluster", "p", "t", "--n-clusters", "5", "--threads-per-worker", "2")
    assert code == 2
    assert "--threads-per-worker needs --workers" in err


def test_a_place_is_threads_unless_another_is_asked_for() -> None:
    place = options.Place(None, None, False, None, None, None, memory_limit=10**9)
    place.check()
    with place.connect() as runner:
        assert runner.client is None
        assert runner.memory_budget <= 10**9


@pytest.mark.slow
def test_it_runs_on_worker_processes(pool: Path, tmp_path: Path, small: list[str]) -> None:
    words = [sys.executable, "-m", "hkm_dask", "cluster", str(pool), str(tmp_path / "tree.zarr"), *small]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*words, "--workers", "2"], capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert "Dask dashboard: http://127.0.0.1:" in result.stderr
    assert re.search(r"^Page about this run: http://127\.0\.0\.1:\d+/hkm$", result.stderr, re.MULTILINE)
    assert "a tree, complete" in result.stdout


def test_a_cluster_that_does_not_answer_is_one_line(hkm: Callable[..., Result], pool: Path, tmp_path: Path) -> None:
    words = ["cluster", pool, tmp_path / "tree.zarr", "--n-clusters", "5"]
    code, _, err = hkm(*words, "--scheduler-file", tmp_path / "absent.json")
    assert code == 1
    assert "absent.json should exist" in err


def commands(group: click.Group = cli.main, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All commands, also those of groups within, each with what one types for it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield (*names, name), command


@pytest.mark.parametrize("command", [pytest.param(command, id=" ".join(names)) for names, command in commands()])
def test_only_stores_and_what_is_drawn_from_them_may_be_urls(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter.type, options.StorePath):
            named = str(parameter.metavar).strip("[]")
            assert named.split(".")[-1] in ("zarr", "parquet") or named in ("STORE", "NEW...", "FILE", "A", "B")
            assert str(parameter.type.convert("s3://a/b.zarr", parameter, None)) == "s3://a/b.zarr"
        elif isinstance(parameter.type, click.Path):
            with pytest.raises(InputError, match=f"{parameter.name}='s3://a/b.zarr' should be a path on this machine"):
                parameter.type.convert("s3://a/b.zarr", parameter, None)


def test_a_url_of_what_is_no_store_is_refused_and_nothing_is_written(
    hkm: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((3, 2), "f4"))
    local, schemes = "should be a path on this machine; copy it to a disk", "should begin with s3://"
    for words, said in (
        (("ingest", "a.npy", "ftp://a/p.zarr"), f"pool='ftp://a/p.zarr' {schemes}"),
        (("ingest", "https://a/b.npy", "p.zarr"), f"source='https://a/b.npy' {schemes}"),
        (("cluster", "p.zarr", "hdfs://a/t.zarr", "--n-clusters", "2"), f"tree='hdfs://a/t.zarr' {schemes}"),
        (
            ("cluster", "p.zarr", "t.zarr", "--n-clusters", "2", "--subset", "s3:/a/r.npy"),
            f"--subset='s3:/a/r.npy' {local}",
        ),
        (("cluster", "p.zarr", "t.zarr", "--config", "s3://a/c.yaml"), f"--config='s3://a/c.yaml' {local}"),
        (("browse", "hdfs://a/t.zarr"), f"tree='hdfs://a/t.zarr' {schemes}"),
        (("report", "t.zarr", "--out", "s3://a/r.html"), f"--out='s3://a/r.html' {local}"),
        (
            ("sample", "t.zarr", "--size", "2", "--out", "s3://key:word@a/r.npy"),
            "--out='s3://…@a/r.npy' should be s3://BUCKET",
        ),
    ):
        code, _, err = hkm(*words)
        assert code == 1
        assert f"Error: {said}" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_names_have_commas_between_them() -> None:
    assert options.Names().convert("url, caption,", None, None) == ("url", "caption")
