import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import psutil
import pytest

from hkm_dask import cli
from hkm_dask.events import emit, subscribe
from hkm_dask.view import info

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["demo", "ingest", "embed", "cluster", "sample", "info"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def hkm(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process."""

    def run(*words: object) -> Result:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(word) for word in words], prog_name="hkm")
        out, err = capsys.readouterr()
        assert "Traceback" not in err or "--debug" in words
        return Result(exit_.value.code or 0, out, err)  # type: ignore[arg-type]

    return run


def embeddings(n: int = 200, d: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 5, (n, 1)) * 3 + rng.normal(size=(n, d))).astype("f4")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    from hkm_dask.ingestion.ingest import ingest

    ingest(embeddings(), tmp_path / "pool.zarr")
    return tmp_path / "pool.zarr"


@pytest.fixture
def small() -> list[str]:
    return ["--n-clusters", "20,5", "--n-resamples", "1", "--set", "levels.1.max_iter=5"]


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


def test_it_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "hkm_dask", "--help"]
    out = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    assert "python -m hkm_dask" in out.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["cluster", "p.zarr"], "Missing argument 'TREE.zarr'"),
        (["ingest", "p.zarr"], "Missing argument 'SOURCE...'"),
        (["cluster", "p", "t"], "Give either --config FILE or --n-clusters"),
        (["cluster", "p", "t", "--config", "c.yaml", "--n-clusters", "5"], "Give either --config FILE or --n-clusters"),
        (["cluster", "p", "t", "--config", "c.yaml", "--n-resamples", "5"], "beside --config, use --set"),
        (["cluster", "p", "t", "--n-clusters", "5,x"], "'5,x' should be whole numbers with commas between them; "),
        (["cluster", "p", "t", "--n-clusters", "5,"], "'5,' should be whole numbers with commas between them; "),
        (["cluster", "p", "t", "--n-clusters", "5", "--resample-size", "half"], "should be whole numbers with commas"),
        (["cluster", "p", "t", "--n-clusters", "5", "--metric", "l1"], "'l1' is not one of 'l2', 'cosine'"),
        (["cluster", "p", "t", "--n-clusters", "5", "--workers", "0"], "0 is not in the range x>=1"),
        (["cluster", "p", "t", "--n-clusters", "5", "--memory-limit", "much"], "memory_limit='much' should be a size"),
        (
            ["cluster", "p", "t", "--n-clusters", "5", "--memory-limit", "0"],
            "memory_limit='0' should be a size above 0",
        ),
        (
            ["cluster", "p", "t", "--n-clusters", "5", "--workers", "2", "--local-cuda"],
            "--workers and --local-cuda are",
        ),
        (["ingest", "a", "p", "--scheduler", "s", "--scheduler-file", "f"], "--scheduler and --scheduler-file are"),
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


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_is_one_line_on_stderr(hkm: Callable[..., Result], tmp_path: Path) -> None:
    code, out, err = hkm("info", tmp_path / "absent.zarr")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("Error: store='")


def test_debug_shows_the_traceback_wherever_it_stands(hkm: Callable[..., Result], tmp_path: Path) -> None:
    for words in (["--debug", "info", tmp_path / "absent"], ["info", tmp_path / "absent", "--debug"]):
        code, _, err = hkm(*words)
        assert code == 1
        assert "Traceback (most recent call last)" in err
        assert err.splitlines()[-1].startswith("Error: store='")


def test_all_problems_of_a_configuration_come_at_once(hkm: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("metrik: l2\nlevels:\n  - n_clusters: 0\n  - n_clusters: 5\n    tol: -1\n")
    code, out, err = hkm(
        *("cluster", tmp_path / "p.zarr", tmp_path / "t.zarr", "--config", tmp_path / "run.yaml"),
        *("--seed", "-1", "--set", "levels.2.n_cluster=3"),
    )
    assert (code, out) == (1, "")
    assert [line.partition("=")[0] for line in err.splitlines()] == [
        "Error: levels.2.n_cluster",
        "Error: seed",
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
        "Error: n_resamples=(1, 2, 3)",
        "Error: resample_size=('auto', 3, 3)",
    ]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("x"), "Error: KeyError: 'x' (a defect; --debug shows where)"),
        (PermissionError(13, "Permission denied", "a.zarr"), "Error: a.zarr: Permission denied"),
        (MemoryError(), "Error: memory=exhausted should suffice; lower --memory-limit, or use fewer --workers"),
    ],
)
def test_what_nobody_foresaw_is_one_line_too(
    hkm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(store: Path) -> None:
        raise error

    monkeypatch.setattr(info, "describe", fail)
    assert hkm("info", "x") == (1, "", f"{line}\n")


# --- interruption -----------------------------------------------------------------------------------------------------


@pytest.fixture
def logs_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("asyncio", "distributed")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("logs_as_they_were")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_unwinds_and_tells_how_to_go_on(
    hkm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    unwound = []

    def wait(store: Path) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            unwound.append(True)

    monkeypatch.setattr(info, "describe", wait)
    before = signal.getsignal(signal.SIGTERM)
    result = hkm("info", "a store.zarr")
    assert result.code == code
    assert result.out == ""
    assert result.err.splitlines()[-1] == "  hkm info 'a store.zarr'"
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def running(pool: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `hkm cluster` on a k-means that takes minutes; return once it iterates."""
    started = []
    words = ["cluster", "pool.zarr", "tree.zarr", "--n-clusters", "150", "--n-resamples", "1000000", "--restart"]

    def start(*more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "hkm_dask", *words, *more],
            cwd=pool.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "level 1 of 1" in line:
                return process
        pytest.fail("it ended before it began")

    yield start
    for process in started:
        with process:  # which waits for it and closes its pipes
            process.kill()


@pytest.mark.faults
@pytest.mark.parametrize("where", [[], ["--workers", "2"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_no_process_and_tells_how_to_resume(
    running: Callable[..., subprocess.Popen[str]], where: list[str], number: signal.Signals, code: int
) -> None:
    process = running(*where)
    children = psutil.Process(process.pid).children(recursive=True)
    assert bool(children) == bool(where)
    # As a terminal does it: to all processes of the group.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert "what is finished is kept" in err
    resume = err.splitlines()[-1].strip()
    assert resume.startswith("python -m hkm_dask cluster pool.zarr tree.zarr --n-clusters 150")
    assert "--restart" not in resume
    assert psutil.wait_procs(children, timeout=10)[1] == []


@pytest.mark.faults
def test_an_interrupt_while_kernels_are_compiled_is_not_lost(
    running: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cold"))
    process = running()
    time.sleep(1)  # compiling takes ten
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Exception ignored" not in err
    assert "what is finished is kept" in err


@pytest.mark.parametrize(
    "raising", ['exec("raise_signal(SIGINT)")', "CFUNCTYPE(None)(partial(raise_signal, SIGINT))()"]
)
def test_an_interrupt_waits_where_it_would_be_lost(raising: str) -> None:
    """In a process of its own, whose exit code shows what CPython made of it."""
    script = f"""
import time
from ctypes import CFUNCTYPE
from functools import partial
from signal import SIGINT, raise_signal
from hkm_dask.cli.interrupts import signals_unwind
__name__ = "llvmlite"  # whose callbacks swallow what is raised
try:
    with signals_unwind():
        {raising}
        print("went on")
        __name__ = "free"
        time.sleep(30)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split("\n"), done.stderr) == (0, ["went on", "interrupted", ""], "")


# --- the way through --------------------------------------------------------------------------------------------------


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


def test_sample_may_repeat_rows_where_asked(
    hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str]
) -> None:
    assert hkm("cluster", pool, tmp_path / "tree.zarr", *small).code == 0
    words = ["--size", "400", "--multiplier", "2", "--strategy", "flat", "--within", "closest", "--seed", "3"]
    code, out, _ = hkm("sample", tmp_path / "tree.zarr", *words, "--out", tmp_path / "out.csv")
    assert code == 0
    assert out.endswith("out.csv: 400 rows\n")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 401


@pytest.mark.slow
def test_it_runs_on_worker_processes(pool: Path, tmp_path: Path, small: list[str]) -> None:
    words = [sys.executable, "-m", "hkm_dask", "cluster", str(pool), str(tmp_path / "tree.zarr"), *small]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([*words, "--workers", "2"], capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stderr
    assert "Dask dashboard: http://127.0.0.1:" in result.stderr
    assert "a tree, complete" in result.stdout


def test_a_cluster_that_does_not_answer_is_one_line(hkm: Callable[..., Result], pool: Path, tmp_path: Path) -> None:
    words = ["cluster", pool, tmp_path / "tree.zarr", "--n-clusters", "5"]
    code, _, err = hkm(*words, "--scheduler-file", tmp_path / "absent.json")
    assert code == 1
    assert "absent.json should exist" in err


def test_progress_goes_to_stderr_while_a_command_runs(
    hkm: Callable[..., Result], pool: Path, tmp_path: Path, small: list[str]
) -> None:
    kinds: set[str] = set()
    with subscribe(lambda event: kinds.add(event.kind)):
        assert hkm("cluster", pool, tmp_path / "tree.zarr", *small).code == 0
    assert {"run_started", "level_started", "step_started", "iteration", "step_finished", "run_finished"} <= kinds
    emit("warning", message="nobody listens any more")
    assert "nobody" not in hkm("--version").err
