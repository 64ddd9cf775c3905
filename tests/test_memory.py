"""Memory limits: every process stays within its limit plus 100 MiB, or the run is refused with the limit needed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.compute.runner import Runner
from hkm_dask.data import layout, store
from hkm_dask.data.npy import create_npy, write_npy_rows
from hkm_dask.hierarchy import level_arrays
from hkm_dask.ingestion.ingest import ingest

MIB = 2**20
SLACK = 100
#: What commands without a limit may hold for ten million samples.
FOR_TEN_MILLION = 600


@dataclass
class Run:
    """A finished command: its exit code, what it said, and the peak of each of its processes, the first one first."""

    code: int
    said: str
    peaks: list[float]


def peak_mib(pid: int) -> float:
    """Most memory a process has held so far: the kernel keeps this, so that nothing between two looks is missed."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def family(pid: int) -> list[int]:
    """A process and all below it. Psutil would read of every process there is, each time we look."""
    found = [pid]
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def run(*command: object, timeout: float = 600) -> Run:
    """Run a command of Python, looking at it and its children 50 times a second."""
    assert Path("/proc/thread-self/children").exists()
    peaks: dict[int, float] = {}
    end = time.monotonic() + timeout
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        os.set_blocking(process.stdout.fileno(), False)  # type: ignore[union-attr]
        said = b""
        while process.poll() is None and time.monotonic() < end:
            for pid in family(process.pid):
                peaks[pid] = max(peaks.get(pid, 0.0), peak_mib(pid))
            said += process.stdout.read() or b""  # type: ignore[union-attr]
            time.sleep(0.02)
        process.kill()
        said += process.stdout.read() or b""  # type: ignore[union-attr]
    return Run(process.wait(), said.decode(), list(peaks.values()))


HKM = ("-m", "hkm_dask")
#: The command, as if there were eight processors.
ON_EIGHT = (
    "-c",
    "import hkm_dask.compute.runner as r; r.n_processors = lambda: 8; from hkm_dask.__main__ import main; main()",
)


def cluster(
    pool: Path, tree: Path, limit: int, levels: dict[str, object], *words: object, command: tuple[str, ...] = HKM
) -> Run:
    settings = [word for name, value in levels.items() for word in ("--set", f"levels.{name}={value}")]
    return run(*command, "cluster", pool, tree, "--memory-limit", f"{limit}MiB", *settings, *words)


@dataclass(frozen=True)
class Shape:
    """A run of `hkm cluster`: rows, limit in MiB and settings; `words` are further ones of the command."""

    n: int
    d: int
    limit: int
    clusters: str
    settings: dict[str, object]
    words: tuple[str, ...] = ("--n-resamples", "0")
    dtype: str = "float32"
    subset: bool = False


ONCE = {"1.max_iter": 1}
MEMBERS = ("--n-resamples", "1")
RANDOM_MEMBERS = {**ONCE, "1.resample_strategy": "random"}
SHAPES = {
    "many members": Shape(60_000, 8, 400, "2000", {**ONCE, "1.init": "random", "1.resample_size": 20_000}, MEMBERS),
    "many rows": Shape(4_000_000, 2, 460, "20", {**ONCE, "1.init": "random"}, dtype="float16"),
    "five levels": Shape(30_000, 16, 400, "1500,300,80,20,5", ONCE, MEMBERS),
    "float16, k-means||, subset": Shape(
        60_000, 64, 400, "100", {**ONCE, "1.init": "k-means||"}, dtype="float16", subset=True
    ),
    "cosine, random members, splits": Shape(
        60_000, 32, 400, "100", {**RANDOM_MEMBERS, "1.n_splits": 10}, (*MEMBERS, "--metric", "cosine")
    ),
}
IN_RANGES = Shape(6000, 384, 420, "5000", {**ONCE, "1.init": "random"}, MEMBERS)
GREEDY = Shape(50_000, 32, 420, "20", {**ONCE, "1.init": "k-means++"})
QUICK = ("many members", "many rows")
SLOW_SHAPES = {
    "large centroids": Shape(9000, 512, 500, "4500", {"1.max_iter": 2, "1.init": "random"}),
    "many splits": Shape(400_000, 8, 420, "40", {**ONCE, "1.n_splits": 20}),
    "five large levels": Shape(150_000, 16, 420, "3000,600,150,40,10", ONCE, MEMBERS),
    "cosine of many": Shape(300_000, 32, 460, "200", RANDOM_MEMBERS, (*MEMBERS, "--metric", "cosine")),
    "many members, many rows": Shape(
        2_000_000, 16, 640, "2000", {**ONCE, "1.resample_size": 20_000}, ("--n-resamples", "2")
    ),
    "many clusters": Shape(2_000_000, 16, 512, "20000", ONCE),
    "many clusters, rows of 128": Shape(300_000, 128, 900, "10000", ONCE),
    "wide rows": Shape(60_000, 1024, 960, "2000", ONCE, ("--n-resamples", "1")),
    "splits of many rows": Shape(3_000_000, 8, 700, "300", {**ONCE, "1.n_splits": 100}),
    "ten million rows": Shape(10_000_000, 4, 1024, "100", {**ONCE, "1.init": "random"}, ("--n-resamples", "1")),
    "most rows of many": Shape(4_000_000, 16, 700, "100", {**ONCE, "1.init": "random"}, subset=True, dtype="float16"),
    "k-means|| of many clusters": Shape(400_000, 64, 900, "3000", {**ONCE, "1.init": "k-means||"}),
}

Pools = Callable[[Shape], Path]


@pytest.fixture(scope="module")
def pool_of(tmp_path_factory: pytest.TempPathFactory) -> Pools:
    """Return a function that makes a pool of random rows."""
    folder = tmp_path_factory.mktemp("pools")

    def make(shape: Shape) -> Path:
        path = folder / f"{shape.n}-{shape.d}-{shape.dtype}.zarr"
        if not path.exists():
            rng, step = np.random.default_rng(0), 100_000
            centers, at = rng.normal(size=(100, shape.d)).astype("f4"), folder / "rows.npy"
            offset = create_npy(at, (shape.n, shape.d), np.dtype(shape.dtype))
            for start in range(0, shape.n, step):
                n = min(step, shape.n - start)
                rows = rng.standard_normal((n, shape.d), dtype="f4") + centers[rng.integers(0, 100, n)]
                write_npy_rows(at, offset, start, rows.astype(shape.dtype))
            ingest([at], path)
            at.unlink()
        if shape.subset:
            np.save(path.with_suffix(".npy"), np.flatnonzero(np.arange(shape.n) % 10))
        return path

    return make


def clustered(
    shape: Shape, pool_of: Pools, tree: Path, limit: int, *words: object, command: tuple[str, ...] = HKM
) -> Run:
    pool = pool_of(shape)
    subset = ["--subset", pool.with_suffix(".npy")] if shape.subset else []
    settings = dict(shape.settings)
    for level in range(2, shape.clusters.count(",") + 2):
        settings |= {f"{level}.max_iter": 1}
    return cluster(
        pool, tree, limit, settings, "--n-clusters", shape.clusters, *shape.words, *subset, *words, command=command
    )


def held_within(run: Run, limit: int) -> None:
    print(f"peaks {[round(peak) for peak in run.peaks]} MiB of {limit} MiB")
    assert run.code == 0, run.said
    assert max(run.peaks) <= limit + SLACK


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(*item, marks=[pytest.mark.slow, pytest.mark.timeout(660)] * (item[0] not in QUICK))
        for item in (*SHAPES.items(), *SLOW_SHAPES.items())
    ],
)
def test_a_tree_is_built_within_the_limit(name: str, shape: Shape, pool_of: Pools, tmp_path: Path) -> None:
    held_within(clustered(shape, pool_of, tmp_path / "tree.zarr", shape.limit), shape.limit)


def test_clusters_that_do_not_fit_are_shared_out_in_ranges(pool_of: Pools, tmp_path: Path) -> None:
    ran = clustered(IN_RANGES, pool_of, tmp_path / "tree.zarr", IN_RANGES.limit)
    held_within(ran, IN_RANGES.limit)
    assert "the 5,000 clusters of level 1 are divided into" in ran.said


@pytest.mark.slow
def test_workers_that_share_clusters_out_hold_their_limit(pool_of: Pools, tmp_path: Path) -> None:
    shape = Shape(40_000, 128, 512, "30000", {**ONCE, "1.init": "random"})
    ran = clustered(shape, pool_of, tmp_path / "tree.zarr", shape.limit, "--workers", "2")
    held_within(ran, shape.limit)
    assert "the 30,000 clusters of level 1 are divided into" in ran.said


def test_threads_take_turns_where_they_do_not_fit_side_by_side(pool_of: Pools, tmp_path: Path) -> None:
    """Eight walks of the seeding at once would take 600 MiB."""
    shape = Shape(30_000, 32, 460, "10000", ONCE)
    held_within(clustered(shape, pool_of, tmp_path / "tree.zarr", shape.limit, command=ON_EIGHT), shape.limit)


REFUSED = {
    "greedy k-means++": GREEDY,
    "large centroids": replace(SLOW_SHAPES["large centroids"], settings=ONCE),
    "subset": SLOW_SHAPES["most rows of many"],
    "many members": SLOW_SHAPES["many members, many rows"],
    "five levels": SLOW_SHAPES["five large levels"],
}


@pytest.mark.parametrize(
    ("name", "shape"),
    [pytest.param(*item, marks=pytest.mark.slow) if i else item for i, item in enumerate(REFUSED.items())],
)
def test_what_does_not_fit_is_refused_with_a_limit_that_does(
    name: str, shape: Shape, pool_of: Pools, tmp_path: Path
) -> None:
    refused = clustered(shape, pool_of, tmp_path / "tree.zarr", 330)
    assert refused.code != 0
    assert refused.said.count("should be at least") == 1
    assert list(tmp_path.iterdir()) == []
    limit = int(refused.said.split("should be at least ")[1].split("MiB")[0])
    held_within(clustered(shape, pool_of, tmp_path / "tree.zarr", limit), limit)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["five levels", "float16, k-means||, subset", "cosine, random members, splits"])
def test_every_worker_holds_its_limit(name: str, pool_of: Pools, tmp_path: Path) -> None:
    shape = SHAPES[name]
    held_within(clustered(shape, pool_of, tmp_path / "tree.zarr", 512, "--workers", "2"), 512)


def test_samples_are_labeled_within_the_limit(pool_of: Pools) -> None:
    pool = pool_of(SHAPES["cosine, random members, splits"])
    code = (
        "import numpy as np, hkm_dask as hkm; rng = np.random.default_rng(0);"
        "km = hkm.KMeans(1000, init='random', max_iter=1, random_state=0, memory_limit='420MiB');"
        "km.fit(rng.random((3000, 32), dtype='f4'));"
        f"assert len(km.predict({str(pool)!r})) == 60_000"
    )
    held_within(run("-c", code), 420)


# -- what has no limit ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def large_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of ten million samples, 10,000 clusters and 100 above them, written without clustering anything."""
    path, n, ks = tmp_path_factory.mktemp("large") / "tree.zarr", 10_000_000, (10_000, 100)
    config = hkm.Config(levels=[hkm.Level(n_clusters=k, n_resamples=0) for k in ks])
    with store.staged(path) as wip:
        store.create_group(wip, {"format": layout.TREE_FORMAT, "format_version": layout.FORMAT_VERSION, "pool": "",
                                 "config": config.to_json(), "seed": 0, "metric": "l2", "software": ""})  # fmt: skip
        for t, (rows, k) in enumerate(zip((n, *ks), ks, strict=False), 1):
            folder = wip / f"level_{t}"
            level_arrays.create_row_arrays(folder, t, rows, 1 << 20)
            labels = (np.arange(rows) % k).astype(np.int32)
            level_arrays.write_row_arrays(folder, labels, np.zeros(rows, np.float32))
            with Runner() as runner:
                level_arrays.write_cluster_arrays(folder, t, np.zeros((k, 2), np.float32), [np.ones(1)], runner)
            store.mark_complete(folder, {"level": t, "seconds": 0.0})
        store.mark_complete(wip, {"seconds": 0.0})
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("info", "TREE"),
        ("sample", "TREE", "--size", "1000000", "--out", "FOLDER/subset.parquet"),
        pytest.param(
            (
                "sample",
                "TREE",
                "--size",
                "5000000",
                "--strategy",
                "flat",
                "--within",
                "closest",
                "--out",
                "FOLDER/s.csv",
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_ten_million_samples_are_looked_at_in_little_memory(
    words: tuple[str, ...], large_tree: Path, tmp_path: Path
) -> None:
    given = [word.replace("TREE", str(large_tree)).replace("FOLDER", str(tmp_path)) for word in words]
    done = run("-m", "hkm_dask", *given)
    print(f"peak {max(done.peaks):.0f} MiB of {FOR_TEN_MILLION} MiB")
    assert done.code == 0, done.said
    assert max(done.peaks) <= FOR_TEN_MILLION


@pytest.mark.slow
@pytest.mark.parametrize("where", [(), ("--workers", "2")])
def test_two_gigabytes_are_clustered_in_half_of_one(where: tuple[str, ...], pool_of: Pools, tmp_path: Path) -> None:
    shape = Shape(1_400_000, 384, 512, "500", {"1.max_iter": 3})
    held_within(clustered(shape, pool_of, tmp_path / "tree.zarr", 512, *where), 512)
