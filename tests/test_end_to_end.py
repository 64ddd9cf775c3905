"""From embeddings on disk to a subset, with the command line and Python, on threads and on worker processes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster

import hkm_dask as hkm
from hkm_dask import cli
from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.cluster import cluster_runner
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy import checkpoint

ROOT = Path(__file__).resolve().parents[1]
CONFIG = hkm.Config(
    levels=(
        hkm.Level(n_clusters=25, n_resamples=1, max_iter=2),
        hkm.Level(n_clusters=8, n_resamples=1, max_iter=2),
        hkm.Level(n_clusters=3, n_resamples=0, max_iter=2),
    ),
    seed=11,
)


def heaps(n: int) -> np.ndarray:
    """Which of nine heaps a row is in: the first has two thirds of them."""
    rng = np.random.default_rng(1)
    return np.where(rng.random(n) < 2 / 3, 0, rng.integers(1, 9, n))


def blobs(n: int = 600, d: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return ((rng.normal(size=(9, d)) * 5)[heaps(n)] + rng.normal(size=(n, d))).astype("f4")


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything a tree holds, read by Zarr."""
    members = zarr.open_group(path, mode="r").members(max_depth=None)
    return {name: array[...] for name, array in members if isinstance(array, zarr.Array)}


def assert_same(one: Path, other: Path) -> None:
    first, second = arrays(one), arrays(other)
    assert set(first) == set(second)
    for name, values in first.items():
        assert values.tobytes() == second[name].tobytes(), name


# --- the command line -------------------------------------------------------------------------------------------------


def command(folder: Path, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``hkm`` as people do, in another process."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "hkm_dask", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_from_embeddings_to_a_subset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a folder with spaces"
    (folder / "shards").mkdir(parents=True)
    rows = blobs()
    np.save(folder / "shards" / "part_2.npy", rows[200:500])
    np.save(folder / "shards" / "part_10.npy", rows[500:])
    np.save(folder / "shards" / "part_1.npy", rows[:200])
    (folder / "run.yaml").write_text(CONFIG.to_yaml())

    assert_exits(0, "ingest", folder / "shards", folder / "the pool.zarr")
    assert "the pool.zarr: a pool, complete" in capsys.readouterr().out
    np.testing.assert_array_equal(zarr.open_array(folder / "the pool.zarr/embeddings", mode="r")[...], rows)

    made = command(folder, "cluster", "the pool.zarr", "the tree.zarr", "--config", "run.yaml")
    assert "the tree.zarr: a tree, complete" in made.stdout
    hkm.build_hierarchy(folder / "the pool.zarr", folder / "again.zarr", CONFIG)
    assert_same(folder / "the tree.zarr", folder / "again.zarr")

    assert_exits(0, "info", folder / "the tree.zarr", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["complete"] is True
    assert [level["n_clusters"] for level in facts["levels"]] == [25, 8, 3]
    assert hkm.Config.from_json(json.dumps(facts["config"])) == CONFIG

    tree = hkm.open_hierarchy(folder / "the tree.zarr")
    expected = hkm.sample(tree, 120, seed=3)
    for name in ("kept.npy", "kept.parquet", "kept.csv", "kept.txt"):
        assert_exits(0, "sample", folder / "the tree.zarr", "--size", 120, "--seed", 3, "--out", folder / name)
        assert capsys.readouterr().out == f"{folder / name}: 120 rows\n"
    assert np.load(folder / "kept.npy").tolist() == expected.tolist()
    table = pq.read_table(folder / "kept.parquet").to_pydict()
    assert table["row"] == expected.tolist()
    for level in (1, 2, 3):
        assert table[f"level_{level}"] == tree.hkm.labels(level).values[expected].tolist()
    with (folder / "kept.csv").open(newline="") as file:
        assert [int(line["row"]) for line in csv.DictReader(file)] == expected.tolist()
    assert list(map(int, (folder / "kept.txt").read_text().split())) == expected.tolist()


def test_the_subset_is_balanced_where_the_pool_is_not(tmp_path: Path) -> None:
    rows, heap = blobs(3000), heaps(3000)
    levels = tuple(hkm.Level(n_clusters=k, n_resamples=5) for k in (150, 30, 9))
    tree = hkm.build_hierarchy(rows, tmp_path / "tree.zarr", hkm.Config(levels=levels))
    # Two thirds of the pool are one heap of nine; a ninth of the subset would be its even share.
    assert (heap == 0).mean() > 0.65
    assert (heap[hkm.sample(tree, 300)] == 0).mean() < 0.35


def assert_exits(code: int, *words: object) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([str(word) for word in words], prog_name="hkm")
    assert (exit_.value.code or 0) == code


class Wrong(NamedTuple):
    words: str
    code: int
    lines: tuple[str, ...]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool, a tree, and whatever is wrong."""
    folder = tmp_path_factory.mktemp("workshop")
    rows = blobs(100)
    np.save(folder / "good.npy", rows)
    np.save(folder / "wide.npy", np.hstack([rows, rows]))
    np.save(folder / "flat.npy", rows[:, 0])
    np.save(folder / "idx.npy", [5, 5, 100])
    rows[[3, 7], 2] = np.nan
    np.save(folder / "nan.npy", rows)
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:-100])
    levels = "levels:\n  - n_clusters: 5\n    n_resample: 3\n  - n_clusters: 4\n  - n_clusters: 7\n"
    (folder / "bad.yaml").write_text(f"sede: 1\n{levels}")
    hkm.ingest(folder / "good.npy", folder / "pool.zarr")
    (folder / "good.yaml").write_text(CONFIG.to_yaml())
    hkm.build_hierarchy(folder / "pool.zarr", folder / "tree.zarr", CONFIG)
    return folder


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong("ingest absent.npy p.zarr", 1, ("absent.npy",)),
        Wrong("ingest nan.npy p.zarr", 1, ("n_nonfinite_rows=2 should be 0, NaN or Inf is in rows 3, 7",)),
        Wrong("ingest good.npy wide.npy p.zarr", 1, ("12",)),
        Wrong("ingest flat.npy p.zarr", 1, ("shape=(100,) should be (n_samples, n_features)",)),
        Wrong("ingest cut.npy p.zarr", 1, ("cut.npy",)),
        Wrong("ingest good.npy pool.zarr", 1, ("should not exist yet",)),
        Wrong("cluster absent.zarr t.zarr --n-clusters 5", 1, ("absent.zarr is missing; make it with `hkm ingest`",)),
        Wrong(
            "cluster tree.zarr t.zarr --n-clusters 5", 1, ("is a tree, but should be a pool; `hkm ingest` makes pools",)
        ),
        Wrong("cluster pool.zarr t.zarr --n-clusters 101", 1, ("n_samples=100 should be >= levels.1.n_clusters=101",)),
        Wrong("cluster pool.zarr t.zarr --n-clusters 5,7", 1, ("levels.2.n_clusters=7 should be <= levels.1",)),
        Wrong("cluster pool.zarr t.zarr --n-clusters 5 --set levels.1.n_cluster=6", 1, ("did you mean n_clusters?",)),
        Wrong(
            "cluster pool.zarr t.zarr --n-clusters 5 --subset idx.npy",
            1,
            ("1 are not; check that it belongs to this pool", "it has 1; drop them"),
        ),
        Wrong(
            "cluster pool.zarr t.zarr --config bad.yaml",
            1,
            ("levels.1.n_resample=3", "sede=1", "levels.3.n_clusters=7"),
        ),
        Wrong("cluster pool.zarr t.zarr --config good.yaml --n-clusters 5", 2, ("or --n-clusters K,K,..., not both",)),
        Wrong("cluster pool.zarr t.zarr --n-clusters five", 2, ("'five' should be whole numbers",)),
        Wrong(
            "cluster pool.zarr tree.zarr --config good.yaml --seed 3", 1, ("seed: 11 in the tree, 3", "use --restart")
        ),
        Wrong("sample absent.zarr --size 5 --out o.npy", 1, ("absent.zarr is missing; make it with `hkm cluster`",)),
        Wrong(
            "sample pool.zarr --size 5 --out o.npy", 1, ("is a pool, but should be a tree; `hkm cluster` makes trees",)
        ),
        Wrong(
            "sample tree.zarr --size 0 --out o.npy", 1, ("size=0 should be a whole number from 1 to the 100 available",)
        ),
        Wrong("sample tree.zarr --size 101 --out o.npy", 1, ("size=101 should be a whole number from 1 to the 100",)),
        Wrong("sample tree.zarr --size 201 --multiplier 2 --out o.npy", 1, ("size=201 should be",)),
        Wrong("sample tree.zarr --size many --out o.npy", 2, ("'many' should be a whole number; write it like 743M",)),
        Wrong("info absent.zarr", 1, ("absent.zarr",)),
    ],
    ids=lambda wrong: wrong.words,
)
def test_wrong_input_is_told_in_clear_lines(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: Wrong
) -> None:
    monkeypatch.chdir(workshop)
    before = sorted(path.name for path in workshop.iterdir())
    assert_exits(wrong.code, *wrong.words.split())
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "defect" not in err
    told = [line for line in err.splitlines() if line.startswith("Error: ")]
    for line in wrong.lines:
        assert any(line in one for one in told), err
    assert len(told) == len(wrong.lines)
    # Nothing is made, whole or half.
    assert sorted(path.name for path in workshop.iterdir()) == before


@pytest.mark.faults
def test_a_terminated_run_goes_on_where_it_was(tmp_path: Path) -> None:
    hkm.ingest(blobs(4000), tmp_path / "pool.zarr")
    levels = (
        hkm.Level(n_clusters=600, n_resamples=8, resample_size=4, max_iter=5),
        hkm.Level(n_clusters=30, n_resamples=1),
    )
    (tmp_path / "run.yaml").write_text(hkm.Config(levels=levels).to_yaml())
    words = ["cluster", "pool.zarr", "tree.zarr", "--config", "run.yaml"]
    with subprocess.Popen(
        [sys.executable, "-m", "hkm_dask", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # One of the nine k-means of level 1 is done.
        while not (tmp_path / "tree.zarr.work" / "level_1-step_0.npz").exists() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    resume = err.splitlines()[-1].split()
    assert resume[-5:] == words
    assert not (tmp_path / "tree.zarr").exists()

    told: list[Event] = []
    config = hkm.Config.from_yaml(tmp_path / "run.yaml")
    with subscribe(told.append):
        hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", config)
    assert any(event.kind == "resumed" for event in told)
    hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "quiet.zarr", config)
    assert_same(tmp_path / "tree.zarr", tmp_path / "quiet.zarr")


# --- in Python --------------------------------------------------------------------------------------------------------


def test_the_tree_can_be_queried_with_xarray_alone(tmp_path: Path) -> None:
    rows = blobs()
    hkm.ingest(rows, tmp_path / "pool.zarr")
    hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = xr.open_datatree(tmp_path / "pool.zarr", engine="zarr", chunks={})
        tree = xr.open_datatree(tmp_path / "tree.zarr", engine="zarr", chunks={})
        parents = tree["level_2/labels"].isel(cluster_1=tree["level_1/labels"]).compute()
        mean = pool["embeddings"].groupby(tree["level_1/labels"].compute().rename("label")).mean().compute()
    assert parents.dims == ("sample",)
    assert parents.values.tolist() == tree.hkm.labels(2).values.tolist()
    assert mean.shape == (25, 6)
    code = "import sys, xarray as xr; print(len(xr.open_datatree(sys.argv[1], engine='zarr', chunks={}).children)); "
    code += "assert 'hkm_dask' not in sys.modules"
    words = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "tree.zarr")]
    assert subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout == "3\n"


# --- on worker processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two worker processes, for all tests of this file."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as started,
        Client(started, set_as_default=False) as opened,
    ):
        yield opened


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make little work worth a round of tasks."""
    monkeypatch.setattr(runner_module, "_ROUND_TRIP_FLOPS", 1.0)
    monkeypatch.setattr(runner_module, "_HAND_OVER_FLOPS", 1.0)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    hkm.ingest(blobs(), folder / "pool.zarr", chunk_mb=0.002)  # eight chunks
    np.save(folder / "idx.npy", np.flatnonzero(np.random.default_rng(5).random(600) < 0.7))
    hkm.build_hierarchy(folder / "pool.zarr", folder / "quiet.zarr", CONFIG)
    return folder / "pool.zarr"


@pytest.mark.parametrize("split", [False, True], ids=["one task", "many tasks"])
def test_threads_and_processes_give_the_same_bits(
    tmp_path: Path, request: pytest.FixtureRequest, client: Client, pool: Path, split: bool
) -> None:
    if split:
        request.getfixturevalue("many_tasks")
    tree = hkm.build_hierarchy(pool, tmp_path / "tree.zarr", CONFIG, client=client)
    assert_same(tmp_path / "tree.zarr", pool.with_name("quiet.zarr"))
    assert tree.hkm.n_clusters == (25, 8, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["tree.zarr"]


@pytest.mark.usefixtures("many_tasks")
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"metric": "cosine", "subset": "idx.npy"}, marks=pytest.mark.slow),  # like a poor subset, below
        {
            "levels": (
                hkm.Level(n_clusters=8, n_splits=3, n_resamples=1, max_iter=2),
                hkm.Level(n_clusters=4, n_resamples=1, max_iter=2, init="random"),
            )
        },
        {
            "levels": (
                hkm.Level(n_clusters=30, n_resamples=1, max_iter=3, resample_strategy="random", init="k-means++"),
            )
        },
    ],
    ids=["cosine, subset", "splits", "random"],
)
def test_so_they_do_in_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Client, pool: Path, settings: dict[str, Any]
) -> None:
    monkeypatch.chdir(pool.parent)
    config = CONFIG.model_copy(update={"levels": CONFIG.levels[:2], **settings})
    hkm.build_hierarchy(pool, tmp_path / "threads.zarr", config)
    with client.as_current():
        hkm.build_hierarchy(pool, tmp_path / "processes.zarr", config)
    assert_same(tmp_path / "threads.zarr", tmp_path / "processes.zarr")


def test_an_array_in_memory_reaches_the_workers(tmp_path: Path, client: Client, pool: Path) -> None:
    hkm.build_hierarchy(blobs(), tmp_path / "tree.zarr", CONFIG, client=client)
    assert_same(tmp_path / "tree.zarr", pool.with_name("quiet.zarr"))


@pytest.mark.usefixtures("many_tasks")
@pytest.mark.parametrize(("metric", "n_splits"), [pytest.param("l2", 2, marks=pytest.mark.slow), ("cosine", 1)])
def test_a_poor_subset_of_an_array_reaches_them_too(tmp_path: Path, client: Client, metric: str, n_splits: int) -> None:
    # Nine rows many times over, so that clusters stay empty and the next level has fewer rows than clusters below.
    rows = np.repeat(blobs()[:9], 40, axis=0)
    np.save(tmp_path / "idx.npy", np.arange(0, 320, 2))
    levels = tuple(hkm.Level(n_clusters=k, n_splits=n, n_resamples=1, max_iter=3) for k, n in ((12, n_splits), (5, 1)))
    config = hkm.Config(levels=levels, metric=metric, subset=str(tmp_path / "idx.npy"))
    hkm.build_hierarchy(rows, tmp_path / "threads.zarr", config)
    tree = hkm.build_hierarchy(rows, tmp_path / "processes.zarr", config, client=client)
    assert_same(tmp_path / "threads.zarr", tmp_path / "processes.zarr")
    assert (tree["level_1/sizes"].values > 0).sum() == 8
    assert hkm.sample(tree, 160).tolist() == list(range(0, 320, 2))


@pytest.mark.faults
@pytest.mark.usefixtures("many_tasks")
@pytest.mark.parametrize(
    ("point", "first", "second"),
    [  # Every point is tried, and every order.
        pytest.param("iteration", False, True, id="iteration, threads first"),
        pytest.param("step", True, False, id="step, processes first"),
        pytest.param("iteration", True, False, id="iteration, processes first", marks=pytest.mark.slow),
        pytest.param("step", False, True, id="step, threads first", marks=pytest.mark.slow),
    ],
)
def test_begun_here_and_finished_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    client: Client,
    pool: Path,
    point: str,
    first: bool,
    second: bool,
) -> None:
    passed: list[str] = []

    def interrupt(name: str) -> None:
        passed.append(name)
        if passed.count(point) == 3:
            raise KeyboardInterrupt

    every_time: Callable[..., Any] = checkpoint.Checkpoints.__init__
    monkeypatch.setattr(every_time, "__defaults__", ("", 0.0, None))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "failpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            hkm.build_hierarchy(pool, tmp_path / "tree.zarr", CONFIG, client=client if first else None)
    assert not (tmp_path / "tree.zarr").exists()
    hkm.build_hierarchy(pool, tmp_path / "tree.zarr", CONFIG, client=client if second else None)
    assert_same(tmp_path / "tree.zarr", pool.with_name("quiet.zarr"))
    assert [path.name for path in tmp_path.iterdir()] == ["tree.zarr"]


@pytest.mark.usefixtures("many_tasks")
@pytest.mark.parametrize("kind", ["npy", "memory map", "foreign"])
def test_workers_remember_no_rows_of_a_file_that_was_written_to_since(
    tmp_path: Path, client: Client, kind: str
) -> None:
    first, then = blobs(), blobs()[::-1].copy()
    table: Any = None
    if kind == "foreign":
        table = zarr.create_array(tmp_path / "x", shape=first.shape, chunks=(100, 6), dtype="f4")
    elif kind == "memory map":  # its time of change stays while its pages are dirty
        table = np.lib.format.open_memmap(tmp_path / "x", "w+", first.dtype, first.shape)

    def save(rows: np.ndarray) -> None:
        if table is not None:
            table[:] = rows
            return
        np.save(tmp_path / "new.npy", rows)
        os.utime(tmp_path / "new.npy", (1e9, 1e9))  # as archives that are made to repeat have it
        shutil.copy2(tmp_path / "new.npy", tmp_path / "x")

    save(first)
    km = hkm.KMeans(40, random_state=0, client=client).fit(tmp_path / "x")
    labels = km.predict(tmp_path / "x")
    save(then)
    np.testing.assert_array_equal(km.predict(tmp_path / "x"), labels[::-1])
    config = CONFIG.model_copy(update={"levels": CONFIG.levels[:1]})
    hkm.build_hierarchy(tmp_path / "x", tmp_path / "processes.zarr", config, client=client)
    hkm.build_hierarchy(then, tmp_path / "threads.zarr", config)
    assert_same(tmp_path / "processes.zarr", tmp_path / "threads.zarr")


@pytest.mark.usefixtures("many_tasks")
def test_near_duplicates_of_one_pool_are_not_told_of_the_next(tmp_path: Path, client: Client) -> None:
    for i in range(4):
        rows = np.random.default_rng(i).permutation(blobs(100 + 50 * i))[:, : 3 + i]
        pool = hkm.ingest(rows, tmp_path / f"{i}.zarr", chunk_mb=0.001)
        found, expected = hkm.dedup(pool, 0.99, client=client), hkm.dedup(pool, 0.99)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.groups.first, expected.groups.first)


@pytest.mark.faults
def test_damage_seen_by_a_worker_is_told_here(tmp_path: Path, client: Client) -> None:
    hkm.ingest(blobs(), tmp_path / "pool.zarr", chunk_mb=0.001)
    (tmp_path / "pool.zarr" / "embeddings" / "c" / "4" / "0").write_bytes(b"short")
    with pytest.raises(hkm.StoreError, match=r"embeddings: chunk 4 \(.*/c/4/0.* has 5 bytes instead of .*hkm ingest"):
        hkm.build_hierarchy(tmp_path / "pool.zarr", tmp_path / "tree.zarr", CONFIG, client=client)


def test_workers_are_asked_for_whenever_they_are_needed(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a client knows of its workers is emptied by a timer of its own, at any moment.
    monkeypatch.setattr(client, "scheduler_info", lambda **_: {"workers": {}})
    with cluster_runner.ClusterRunner(client) as runner:
        assert (runner.n_workers, runner.map(abs, [-1, 2, -3], stage="test")) == (2, [1, 2, 3])


@pytest.mark.usefixtures("many_tasks")
def test_the_dashboard_tells_the_stages_apart(tmp_path: Path, client: Client, pool: Path) -> None:
    def spans_there(dask_scheduler: Any) -> dict[str, tuple[str, ...]]:
        return {key: span.name for key, span in dask_scheduler.extensions["spans"].spans.items()}

    told: list[Event] = []
    before = client.run_on_scheduler(spans_there)
    with subscribe(told.append):
        hkm.build_hierarchy(pool, tmp_path / "tree.zarr", CONFIG, client=client)
    assert told[0].fields["dashboard"].startswith("http://127.0.0.1:")
    names = client.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.task_prefixes))
    assert {"hkm-draw", "hkm-seed", "hkm-lloyd", "hkm-assign", "hkm-update", "hkm-gather"} <= names
    assert {name for name in names if name.startswith("hkm-") and not name.replace("-", "").isalpha()} == set()
    spans = [name for key, name in client.run_on_scheduler(spans_there).items() if key not in before]
    steps = [("level 1", f"step {step}") for step in range(CONFIG.levels[0].n_resamples + 1)]
    assert [name for name in spans if len(name) == 2 and name in steps] == steps
    first = [name[2] for name in spans if name[:2] == steps[0] and len(name) == 3]
    assert first[:2] == ["draw", "seed"]
    assert first[-1] == "lloyd"
    assert len(first) < 10  # one for all passes of a phase
    assert ("level 1", "assign") in spans


@pytest.mark.faults
@pytest.mark.usefixtures("many_tasks")
@pytest.mark.slow  # in the middle of an iteration, between two, and all at once: test_cluster_runner.py
@pytest.mark.parametrize("n_killed", [1, 2])
def test_workers_that_are_killed_change_nothing(tmp_path: Path, client: Client, pool: Path, n_killed: int) -> None:
    killed: list[int] = []

    def kill(event: Event) -> None:
        if event.kind == "iteration" and event.fields["iteration"] == 2 and not killed:
            killed.extend(list(client.run(os.getpid).values())[:n_killed])
            for process in killed:
                os.kill(process, signal.SIGKILL)

    with subscribe(kill):
        hkm.build_hierarchy(pool, tmp_path / "tree.zarr", CONFIG, client=client)
    assert len(killed) == n_killed
    assert_same(tmp_path / "tree.zarr", pool.with_name("quiet.zarr"))
