"""All commands: help, usage, and the path from embeddings to a subset."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest

from hkm_dask import cli
from hkm_dask.events import emit, subscribe
from tests.cli.results import COMMANDS, ROOT, Result, embeddings

# --- help and usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_an_example(hkm: Callable[..., Result], command: str, flag: str) -> None:
    code, out, err = hkm(command, flag)
    assert (code, err) == (0, "")
    assert f"Example:\n    hkm {command}" in out
    assert "--debug" in out


def test_help_lists_the_commands_there_are_in_the_order_of_their_use(hkm: Callable[..., Result]) -> None:
    code, out, _ = hkm("--help")
    assert code == 0
    listed = re.findall(r"^  (\w+)  ", out.partition("Commands:")[2], flags=re.MULTILINE)
    assert listed == COMMANDS
    assert "..." not in out.partition("Commands:")[2].partition("Example:")[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_the_help_can_be_parsed(command: str) -> None:
    group = cli.main
    examples = re.findall(r"^  hkm (.*)$", group.commands[command].epilog or "", flags=re.MULTILINE)
    assert examples
    for example in examples:
        name, *words = shlex.split(example)
        group.commands[name].make_context(name, words, parent=click.Context(group))


def test_the_version_is_told(hkm: Callable[..., Result]) -> None:
    assert hkm("--version").out.startswith("hkm ")


def test_help_needs_nothing_heavy() -> None:
    heavy = {"numpy", "dask", "distributed", "zarr", "xarray", "pydantic", "rich", "numba", "yaml", "pyarrow"}
    code = f"import sys, hkm_dask.cli; print(*sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.split() == []


def test_clustering_needs_neither_xarray_nor_distributed(tmp_path: Path) -> None:
    """Importing them takes longer than all else before the first pass, and a worker would do so, too."""
    np.save(tmp_path / "x.npy", np.eye(40, 4, dtype=np.float32))
    code = """
import sys
from hkm_dask.cli import main
main(["ingest", "x.npy", "pool.zarr"], standalone_mode=False)
main(["cluster", "pool.zarr", "tree.zarr", "--n-clusters", "3", "--n-resamples", "0"], standalone_mode=False)
print(*sorted({"xarray", "pandas", "dask.array", "distributed"} & set(sys.modules)), file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (out.returncode, out.stderr.splitlines()[-1]) == (0, "")


def test_it_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "hkm_dask", "--help"]
    out = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "python -m hkm_dask" in out.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["cluster", "p.zarr"], "Missing argument 'TREE.zarr'"),
        (["ingest", "a.npy"], "Missing argument 'POOL.zarr'; the output comes last, after each SOURCE."),
        (["embed", "raster", "a.tif", "--size", "8", "--model", "hog"], "Missing argument 'POOL.zarr'; the output"),
        (
            ["cluster", "p", "t", "--config", "c.yaml", "--n-clusters", "5"],
            "Give --config FILE or --n-clusters K,K,..., ",
        ),
        (["cluster", "p", "t", "--config", "c.yaml", "--n-resamples", "5"], "with --config, use --set"),
        (["cluster", "p", "t", "--n-clusters", "5,x"], "'5,x' should be whole numbers separated by commas; "),
        (["cluster", "p", "t", "--n-clusters", "5,"], "'5,' should be whole numbers separated by commas; "),
        (
            ["cluster", "p", "t", "--n-clusters", "5", "--resample-size", "half"],
            "should be whole numbers separated by commas",
        ),
        (["cluster", "p", "t", "--n-clusters", "5", "--metric", "l1"], "'l1' is not one of 'l2', 'cosine'"),
        (["cluster", "p", "t", "--n-clusters", "5", "--workers", "0"], "0 is not in the range x>=1"),
        (["cluster", "p", "t", "--n-clusters", "5", "--memory-limit", "much"], "'much' should be a size above 0"),
        (
            ["cluster", "p", "t", "--n-clusters", "5", "--memory-limit", "0"],
            "'0' should be a size above 0",
        ),
        (
            ["cluster", "p", "t", "--n-clusters", "5", "--workers", "2", "--local-cuda"],
            "--workers=2 and --local-cuda should be one place to run",
        ),
        (
            ["ingest", "a", "p", "--scheduler", "s", "--scheduler-file", "f"],
            "--scheduler=s and --scheduler-file=f should",
        ),
        (["ingest", "a", "p", "--dtype", "float8"], "'float8' is not one of 'float16', 'float32'"),
        (["sample", "t", "--out", "o.npy"], "Missing option '--size'"),
        (["sample", "t", "--size", "5"], "Missing option '--out'"),
        (["sample", "t", "--size", "5", "--out", "o.npy", "--within", "near"], "'near' is not one of"),
    ],
)
def test_wrong_usage_exits_2(hkm: Callable[..., Result], words: list[str], message: str) -> None:
    code, out, err = hkm(*words)
    assert (code, out) == (2, "")
    assert message in err


def choices(command: str, option: str) -> tuple[str, ...]:
    (parameter,) = [one for one in cli.main.commands[command].params if one.name == option]
    return tuple(parameter.type.choices)


def test_choices_are_those_of_the_library() -> None:
    # Listed by hand in the command, since `hkm --help` imports nothing heavy.
    from hkm_dask.compute.cluster.local import CUDA_PRESETS
    from hkm_dask.hierarchy.sampling.sample import STRATEGIES, WITHIN

    assert choices("sample", "strategy") == STRATEGIES
    assert choices("sample", "within") == WITHIN
    assert choices("cluster", "cuda_preset") == tuple(CUDA_PRESETS)


# --- from embeddings to a subset --------------------------------------------------------------------------------------


def test_ingest_makes_a_pool_and_describes_it(hkm: Callable[..., Result], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", embeddings(60))
    np.save(tmp_path / "b.npy", embeddings(40, seed=1))
    words = [tmp_path / "a.npy", tmp_path / "b.npy", tmp_path / "my pool.zarr", "--dtype", "float16", "--normalize"]
    code, out, err = hkm("ingest", *words)
    assert code == 0
    assert "my pool.zarr: a pool, complete" in out
    assert "ingest, 1 of 1" in err
    facts = json.loads(hkm("info", tmp_path / "my pool.zarr", "--json").out)
    assert (facts["n_samples"], facts["n_features"], facts["dtype"]) == (100, 4, "float16")
    assert facts["max_abs"] <= 1


def test_ingest_refuses_nan_in_one_line_and_leaves_nothing(hkm: Callable[..., Result], tmp_path: Path) -> None:
    rows = embeddings()
    rows[[3, 7], 1] = np.nan
    np.save(tmp_path / "a.npy", rows)
    code, out, err = hkm("ingest", tmp_path / "a.npy", tmp_path / "pool.zarr")
    assert (code, out) == (1, "")
    assert "n_nonfinite_rows=2 should be 0" in err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert hkm("ingest", tmp_path / "a.npy", tmp_path / "pool.zarr", "--drop-nonfinite").code == 0
    assert json.loads(hkm("info", tmp_path / "pool.zarr", "--json").out)["n_samples"] == 198


def test_from_pool_to_subset(hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str]) -> None:
    tree, out = tmp_path / "tree.zarr", tmp_path / "subset.npy"
    code, text, err = hkm("cluster", pool, tree, *small)
    assert code == 0
    assert "tree.zarr: a tree, complete" in text
    assert "level 2 done in" in err

    facts = json.loads(hkm("info", tree, "--json").out)
    assert [level["n_clusters"] for level in facts["levels"]] == [20, 5]
    assert facts["config"]["levels"][0]["max_iter"] == 5

    assert hkm("sample", tree, "--size", "50", "--out", out)[:2] == (0, f"{out}: 50 rows\n")
    rows = np.load(out)
    assert len(np.unique(rows)) == 50
    assert (np.diff(rows) > 0).all()


def test_the_same_command_on_a_finished_tree_says_so(
    hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str]
) -> None:
    tree = tmp_path / "tree.zarr"
    assert hkm("cluster", pool, tree, *small).code == 0
    assert hkm("cluster", pool, tree, *small) == (0, f"{tree}: already complete\n", "")

    code, out, err = hkm("cluster", pool, tree, *small, "--seed", "1")
    assert (code, out) == (1, "")
    assert "seed: 0 in the tree, 1 asked for" in err
    assert hkm("cluster", pool, tree, *small, "--seed", "1", "--restart").code == 0
    assert json.loads(hkm("info", tree, "--json").out)["seed"] == 1


def test_clusters_that_cannot_be_are_refused_before_anything_is_made(
    hkm: Callable[..., Result], pool: Path, tmp_path: Path
) -> None:
    code, _, err = hkm("cluster", pool, tmp_path / "tree.zarr", "--n-clusters", "300,400")
    assert code == 1
    assert [line.split(";")[0] for line in err.splitlines()] == [
        "Error: n_samples=200 should be >= levels.1.n_clusters=300",
        "Error: levels.2.n_clusters=400 should be <= levels.1.n_clusters=300",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["pool.zarr"]


def test_a_configuration_file_and_options_together(hkm: Callable[..., Result], pool: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seed: 1\nlevels:\n  - {n_clusters: 20, n_resamples: 0, tol: 1e-2}\n")
    words = ["cluster", pool, tmp_path / "tree.zarr", "--config", tmp_path / "run.yaml", "--seed", "2"]
    assert hkm(*words, "--metric", "cosine", "--set", "levels.1.n_clusters=10").code == 0
    config = json.loads(hkm("info", tmp_path / "tree.zarr", "--json").out)["config"]
    assert (config["seed"], config["metric"]) == (2, "cosine")
    assert (config["levels"][0]["n_clusters"], config["levels"][0]["tol"]) == (10, 0.01)


def test_without_numbers_the_advice_is_taken_and_told(hkm: Callable[..., Result], pool: Path, tmp_path: Path) -> None:
    words = ["cluster", pool, tmp_path / "tree.zarr", "--set", "levels.1.max_iter=3"]
    code, _, err = hkm(*words)
    assert code == 0
    assert "For 200 rows, recommended: --n-clusters 40,20,6 --n-resamples 1 --resample-size 2" in err
    assert "Why: 5, 10 and 30 rows per cluster" in err
    assert "--config FILE" in err
    config = json.loads(hkm("info", tmp_path / "tree.zarr", "--json").out)["config"]
    assert [level["n_clusters"] for level in config["levels"]] == [40, 20, 6]
    assert hkm(*words)[:2] == (0, f"{tmp_path / 'tree.zarr'}: already complete\n")
    code, _, err = hkm(*words, "--fit-sample", "90", "--n-resamples", "0", "--restart")
    assert code == 0
    assert "For 90 rows, recommended: --n-clusters 18,9,3 --n-resamples 0 --resample-size 2" in err
    assert "clustering a random sample of 90 of 200 rows" in err


def test_a_subset_file_is_honored(hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str]) -> None:
    np.save(tmp_path / "idx.npy", np.arange(50, 150))
    assert hkm("cluster", pool, tmp_path / "tree.zarr", *small, "--subset", tmp_path / "idx.npy").code == 0
    assert hkm("sample", tmp_path / "tree.zarr", "--size", "100", "--out", tmp_path / "out.npy").code == 0
    assert np.load(tmp_path / "out.npy").tolist() == list(range(50, 150))


def test_sample_refuses_its_target_before_it_opens_the_tree(hkm: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "there.npy").touch()
    for name, message in (("there.npy", "should be a new file"), ("out.xlsx", "should end in one of")):
        code, _, err = hkm("sample", tmp_path / "absent.zarr", "--size", "5", "--out", tmp_path / name)
        assert code == 1
        assert message in err


@pytest.mark.parametrize("size", ["0", "-3", "201"])
def test_sample_names_how_many_there_are(
    hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str], size: str
) -> None:
    assert hkm("cluster", pool, tmp_path / "tree.zarr", *small).code == 0
    code, out, err = hkm("sample", tmp_path / "tree.zarr", "--size", size, "--out", tmp_path / "out.npy")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "200" in err
    assert not (tmp_path / "out.npy").exists()


def test_sizes_are_written_as_people_write_them(
    hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str]
) -> None:
    assert hkm("cluster", pool, tmp_path / "tree.zarr", *small).code == 0
    for written, rows in (("0.05k", 50), ("1_00", 100), ("+5", 5), ("0.0501k", None), ("1e2", None), ("٥", None)):
        drawn = tmp_path / f"{rows}.npy"
        code, out, err = hkm("sample", tmp_path / "tree.zarr", "--size", written, "--out", drawn)
        if rows is None:
            assert code == 2
            assert f"{written!r} should be a whole number; write it like 743M" in err
        else:
            assert (code, out) == (0, f"{drawn}: {rows} rows\n")


def test_sample_may_repeat_rows_where_asked(
    hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str]
) -> None:
    assert hkm("cluster", pool, tmp_path / "tree.zarr", *small).code == 0
    words = ["--size", "400", "--multiplier", "2", "--strategy", "flat", "--within", "closest", "--seed", "3"]
    code, out, _ = hkm("sample", tmp_path / "tree.zarr", *words, "--out", tmp_path / "out.csv")
    assert code == 0
    assert out.endswith("out.csv: 400 rows\n")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 401


def test_progress_goes_to_stderr_while_a_command_runs(
    hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str]
) -> None:
    kinds: set[str] = set()
    with subscribe(lambda event: kinds.add(event.kind)):
        assert hkm("cluster", pool, tmp_path / "tree.zarr", *small).code == 0
    assert {"run_started", "level_started", "step_started", "iteration", "step_finished", "run_finished"} <= kinds
    emit("warning", message="nobody listens any more")
    assert "nobody" not in hkm("--version").err


def test_what_is_there_is_replaced_where_that_is_asked_for(
    hkm: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", embeddings())
    commands = [
        "ingest a.npy pool.zarr", "dedup pool.zarr --threshold 0.999 --out kept.npy --removed r.txt --groups g.parquet",
        "cluster pool.zarr tree.zarr --n-clusters 20,5 --n-resamples 0", "sample tree.zarr --size 20 --out draw.csv",
        "export tree.zarr rows.parquet", "report tree.zarr --out report.html",
    ]  # fmt: skip
    for command in commands:
        assert hkm(*command.split()).code == 0
    first = Path("draw.csv").read_bytes()
    for command in commands:
        if not command.startswith("cluster"):
            code, _, err = hkm(*command.split())
            assert (code, "or --overwrite\n" in err) == (1, True)
            assert hkm(*command.split(), "--overwrite").code == 0
    assert Path("draw.csv").read_bytes() == first
    assert hkm("sample", "tree.zarr", "--size", "10", "--out", "draw.csv", "--overwrite", "--seed", "1").code == 0
    assert len(Path("draw.csv").read_text().splitlines()) == 11
    Path("folder.csv").mkdir()
    code, _, err = hkm("sample", "tree.zarr", "--size", "10", "--out", "folder.csv", "--overwrite")
    assert (code, "--out='folder.csv' should be a file to be overwritten, it is none" in err) == (1, True)


def test_commands_take_the_place_of_a_pool_that_was_moved(
    hkm: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", embeddings())
    for command in ("ingest a.npy pool.zarr", "cluster pool.zarr tree.zarr --n-clusters 20,5 --n-resamples 0"):
        assert hkm(*command.split()).code == 0
    Path("pool.zarr").rename("moved.zarr")
    np.save("rows.npy", np.arange(5))
    for command in (
        "sample tree.zarr --size 20 --out draw.csv", "dedup tree.zarr --threshold 0.9 --out kept.npy",
        "export tree.zarr rows.parquet", "compare rows.npy tree.zarr --sample 0",
    ):  # fmt: skip
        code, _, err = hkm(*command.split())
        assert (code, f"{tmp_path / 'pool.zarr'} is missing; " in err, "--pool says where it is now" in err) == (
            1,
            1,
            1,
        )
        assert hkm(*command.split(), "--pool", "moved.zarr").code == 0
