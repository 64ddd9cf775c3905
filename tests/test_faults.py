"""Runs that are killed, starved or given damaged data: what they leave, and how the next run handles it."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hkm_dask import cli
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.compute.shared_arrays import SharedArrayStore
from hkm_dask.config import Config, Level
from hkm_dask.data.files import FAILPOINTS
from hkm_dask.data.locks import lock
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy import checkpoint
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.ingestion.ingest import ingest

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[1]
KILLED = 137
CONFIG = Config(levels=(Level(n_clusters=20, n_resamples=2, max_iter=6), Level(n_clusters=5, n_resamples=1)), seed=4)

# One process imports everything and builds one tree, so that each of its children only has to build another: as a line
# of JSON says, dying on the way where that asks for it.
SERVER = """
import functools, json, os, resource, signal, sys, traceback
import numpy as np
from hkm_dask.events import subscribe
from hkm_dask.config import Config
from hkm_dask.hierarchy import build, checkpoint, level_plans, split
from hkm_dask.errors import HkmError

split._BATCHES_PER_ROUND = 1

def kill_at(event, left=[0]):
    left[0] -= event.kind == "iteration"
    if event.kind == "iteration" and not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

def work(pool, tree, config, restart=False, failpoint=None, every=None, kill=0, limit=None, user=None, ranges=1):
    level_plans.n_ranges_for = lambda stages_of, k, **_: ranges if k > 6 else 1
    if every is not None:
        build.Checkpoints = functools.partial(checkpoint.Checkpoints, every=every)
    if failpoint is not None:
        os.environ["HKM_FAILPOINT"] = failpoint
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    rows = np.load(pool) if pool.endswith(".npy") else pool
    if user is not None and os.getuid() == 0:
        os.setgid(user), os.setuid(user)
    kill_at.__defaults__[0][0] = kill
    with subscribe(kill_at):
        build.build_hierarchy(rows, tree, Config.from_json(config), restart=restart)

def run(job):
    try:
        work(**job)
    except HkmError as error:
        print(type(error).__name__, error, sep=": ", flush=True)
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(2)
    os._exit(0)

warm = json.loads(sys.stdin.readline())
work(**warm)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    _, status = os.waitpid(child, 0)
    print("exit", os.waitstatus_to_exitcode(status), flush=True)
"""

Build = Callable[..., tuple[int, str]]


def blobs(n: int = 300, d: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 6, (n, 1)) * 3 + rng.normal(size=(n, d))).astype("f4")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    # A dozen chunks, so that some of them are not the first.
    return ingest(blobs(), tmp_path_factory.mktemp("pool") / "pool.zarr", chunk_mb=0.0004)


@pytest.fixture(scope="module")
def quiet(pool: Pool) -> dict[str, np.ndarray]:
    """What a run nobody disturbs makes."""
    build_hierarchy(pool, Path(pool.path).with_name("quiet.zarr"), CONFIG)
    return arrays(Path(pool.path).with_name("quiet.zarr"))


@pytest.fixture(scope="module")
def elsewhere(pool: Pool) -> Iterator[Build]:
    """Build in another process; give its exit code and what it said."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def ask(job: dict[str, Any], end: str) -> str:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        said = []
        for line in server.stdout:
            if line.startswith(end):
                return "".join([*said, line])
            said.append(line)
        raise AssertionError(f"it ended: {said}")

    def build(tree: Path, *, config: Config = CONFIG, rows: Path | None = None, **options: Any) -> tuple[int, str]:
        said = ask({"pool": str(rows or pool.path), "tree": str(tree), "config": config.to_json(), **options}, "exit ")
        return int(said.splitlines()[-1].split()[1]), said

    warm = Path(pool.path).with_name("warm.zarr")
    ask({"pool": pool.path, "tree": str(warm), "config": CONFIG.to_json(), "every": 0}, "ready")
    yield build
    server.stdin.close()
    server.wait(timeout=30)
    server.stdout.close()


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything a tree holds, read by Zarr."""
    members = zarr.open_group(path, mode="r").members(max_depth=None)
    return {name: array[...] for name, array in members if isinstance(array, zarr.Array)}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name, values in actual.items():
        assert values.tobytes() == expected[name].tobytes(), name


@pytest.fixture(scope="module")
def _begun(pool: Pool, elsewhere: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    assert elsewhere(folder / "tree.zarr", failpoint="step:2")[0] == KILLED
    return folder


@pytest.fixture
def begun(_begun: Path, tmp_path: Path) -> Path:
    """A tree of which two steps were made before the run was killed, in a folder of its own."""
    shutil.copytree(_begun, tmp_path, dirs_exist_ok=True)
    return tmp_path / "tree.zarr"


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock of a dead run, which goes with the next one."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finish(pool: Pool, tree: Path, quiet: dict[str, np.ndarray]) -> list[Event]:
    """Run the same again, and compare; give what it told."""
    told: list[Event] = []
    with subscribe(told.append):
        build_hierarchy(pool, tree, CONFIG)
    assert_same(arrays(tree), quiet)
    assert [path.name for path in tree.parent.iterdir()] == [tree.name]
    return told


# --- killed on the way ------------------------------------------------------------------------------------------------

# Each level is committed, and then the tree; every step of a level is kept.
DEATHS = [
    *("chunk-partial", "chunk-partial:5", "chunk-written", "chunk-written:3", "chunk-written:9", "chunk-written:14"),
    *(f"{point}:{n}" for point in ("checked", "synced", "marked") for n in (1, 2, 3)),
    *(f"step:{n}" for n in range(1, 6)),
    "renamed",
]
#: Further times that a point is passed.
AGAIN = {"chunk-written:3", "chunk-written:14", "checked:2", "synced:2", "marked:2", "step:2", "step:4"}


def test_every_point_of_the_commit_is_tried() -> None:
    # "retired" is passed only where there is an old tree: see below.
    assert {death.split(":")[0] for death in DEATHS} == {*FAILPOINTS, "step"} - {"retired"}


@pytest.mark.parametrize(
    "death", [pytest.param(death, marks=[pytest.mark.slow] * (death in AGAIN)) for death in DEATHS]
)
def test_killed_at_any_point_the_rerun_is_as_if_nothing_happened(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build, death: str
) -> None:
    tree = tmp_path / "tree.zarr"
    assert elsewhere(tree, failpoint=death) == (KILLED, f"exit {KILLED}\n")
    # What has the name is whole.
    assert tree.exists() == (death == "renamed")
    if tree.exists():
        assert_same(arrays(tree), quiet)
    else:
        with pytest.raises(StoreError, match=r"tree.zarr.wip is unfinished, run the same `hkm cluster` again"):
            open_hierarchy(tree)
    steps = [event for event in finish(pool, tree, quiet) if event.kind == "step_started"]
    # Nothing that was finished is done again: 3 and 2 steps there are, and one more is begun after each `step`.
    done = {"step": int(death[-1]) if death.startswith("step") else 0, "renamed": 5}.get(death.split(":")[0])
    if done is not None:
        assert len(steps) == 5 - done


def test_dying_at_every_iteration_it_gets_there_all_the_same(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build
) -> None:
    tree = tmp_path / "tree.zarr"
    runs = 0
    while (code := elsewhere(tree, failpoint="iteration", every=0)[0]) == KILLED:
        runs += 1
    assert code == 0
    # The last iteration of every step is not kept by itself: its step is.
    steps = [quiet[f"level_{t}/inertia"] for t in (1, 2)]
    assert runs == sum(int((~np.isnan(history)).sum()) - len(history) for history in steps)
    finish(pool, tree, quiet)


@pytest.mark.parametrize("iteration", [1, 4, 9])
def test_kill_9_of_the_driver(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build, iteration: int
) -> None:
    assert elsewhere(tmp_path / "tree.zarr", kill=iteration) == (-signal.SIGKILL, f"exit {-signal.SIGKILL}\n")
    finish(pool, tmp_path / "tree.zarr", quiet)


@pytest.fixture(scope="module")
def random_start(pool: Pool) -> tuple[Config, dict[str, np.ndarray]]:
    """Settings with which clusters may be shared out in ranges, and the tree of those that are not."""
    levels = tuple(level.model_copy(update={"init": "random"}) for level in CONFIG.levels)
    config, tree = CONFIG.model_copy(update={"levels": levels}), Path(pool.path).with_name("random.zarr")
    build_hierarchy(pool, tree, config)
    return config, arrays(tree)


def test_dying_at_every_iteration_clusters_in_ranges_get_there_all_the_same(
    tmp_path: Path, elsewhere: Build, random_start: tuple[Config, dict[str, np.ndarray]]
) -> None:
    (config, quiet), tree, runs = random_start, tmp_path / "tree.zarr", 0
    # As many ranges as there is memory for this time.
    while (code := elsewhere(tree, config=config, failpoint="iteration", every=0, ranges=3 + runs % 2)[0]) == KILLED:
        runs += 1
    assert code == 0
    steps = [quiet[f"level_{t}/inertia"] for t in (1, 2)]
    assert runs == sum(int((~np.isnan(history)).sum()) - len(history) for history in steps)
    assert_same(arrays(tree), quiet)
    assert [path.name for path in tmp_path.iterdir()] == [tree.name]


@pytest.mark.parametrize("damage", ["short", "flipped", "gone"])
def test_a_damaged_range_of_a_checkpoint_costs_its_step_and_no_more(
    tmp_path: Path, pool: Pool, elsewhere: Build, random_start: tuple[Config, dict[str, np.ndarray]], damage: str
) -> None:
    (config, quiet), tree = random_start, tmp_path / "tree.zarr"
    assert elsewhere(tree, config=config, failpoint="step:2", ranges=3)[0] == KILLED
    path = next((tmp_path / "tree.zarr.work" / "ranges").glob("level_1-step_1-*-1.npy"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.unlink()
    if damage != "gone":
        path.write_bytes(content if damage == "flipped" else content[:-9])
    told: list[Event] = []
    with subscribe(told.append):
        build_hierarchy(pool, tree, config)
    assert [event.fields["step"] for event in told if event.kind == "step_started"] == [1, 2, 0, 1]
    assert_same(arrays(tree), quiet)


@pytest.mark.parametrize("n_rounds", [1, 2])
def test_killed_between_clusters_that_are_split_the_rerun_splits_the_others(
    tmp_path: Path, pool: Pool, elsewhere: Build, n_rounds: int
) -> None:
    config = Config(levels=(Level(n_clusters=16, n_splits=3, n_resamples=0, max_iter=4),), seed=4)
    expected = build_hierarchy(pool, tmp_path / "expected.zarr", config)
    tree = tmp_path / "dead" / "tree.zarr"
    assert elsewhere(tree, config=config, failpoint=f"split:{n_rounds}", every=0)[0] == KILLED
    told: list[Event] = []
    with subscribe(told.append):
        build_hierarchy(pool, tree, config)
    (kept,) = (event.fields["what"] for event in told if "were already split" in event.fields.get("what", ""))
    n_split, n_clusters = (int(word) for word in re.findall(r"(\d+)", kept)[1:])
    assert 0 < n_split < n_clusters == 16
    assert_same(arrays(tree), arrays(Path(expected.encoding["source"])))
    assert [path.name for path in tree.parent.iterdir()] == [tree.name]


def test_what_dead_writers_left_is_swept(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build
) -> None:
    tree = tmp_path / "tree.zarr"
    assert elsewhere(tree, failpoint="chunk-partial:20")[0] == KILLED
    wip = tmp_path / "tree.zarr.wip"
    assert list(wip.rglob("*.partial"))
    for folder in (wip, wip / "level_1", wip / "level_1" / "labels" / "c"):
        (folder / "0.abc.partial").write_bytes(b"half")
    (tmp_path / "tree.zarr.work" / "level_2-step_0.partial").write_bytes(b"half")
    (tmp_path / "tree.zarr.work" / "rows-1.npy").write_bytes(b"half")
    finish(pool, tree, quiet)
    assert not list(tree.rglob("*.partial"))


def test_scratch_of_dead_runs_is_swept_before_any_work(pool: Pool, quiet: dict[str, np.ndarray], begun: Path) -> None:
    tree, work = begun, begun.with_name("tree.zarr.work")
    for name in ("rows-1.npy", "regrouped-1.npy", "input-1.npy"):
        (work / name).write_bytes(b"pool-sized")
    (work / "shared-1").mkdir()
    (work / "shared-1" / "centroids.npy").write_bytes(b"large")
    left: list[list[str]] = []

    def look(event: Event) -> None:
        if event.kind == "run_started":
            left.append(sorted(path.name for path in work.iterdir()))

    with subscribe(look):
        steps = [event for event in finish(pool, tree, quiet) if event.kind == "step_started"]
    assert left == [["level_1-step_0.npz", "level_1-step_1.npz"]]
    assert len(steps) == 3


def test_a_run_that_fails_leaves_checkpoints_and_no_scratch(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With workers, resampled rows and rows regrouped by cluster lie in files, unless one task makes a whole step."""
    monkeypatch.setattr(ClusterRunner, "fits_one_task", lambda *_: False)
    config = Config(levels=(Level(n_clusters=10, n_splits=2, n_resamples=1, max_iter=3),))
    with connect(workers=1, memory_limit="800MiB") as runner:
        for kind, n_steps in (("step_started", 1), ("splitting", 2)):

            def interrupt(event: Event, kind: str = kind) -> None:
                if event.kind == kind and event.fields.get("step", 1) == 1:
                    raise KeyboardInterrupt

            tree = tmp_path / f"{kind}.zarr"
            with subscribe(interrupt), pytest.raises(KeyboardInterrupt):
                build_hierarchy(pool, tree, config, client=runner.client)
            left = sorted(path.name for path in tree.with_name(f"{kind}.zarr.work").iterdir())
            assert left == [f"level_1-step_{step}.npz" for step in range(n_steps)]


@pytest.mark.parametrize("damage", ["short", "flipped", "empty"])
def test_a_damaged_checkpoint_costs_its_step_and_no_more(
    pool: Pool, quiet: dict[str, np.ndarray], begun: Path, damage: str
) -> None:
    path = begun.with_name("tree.zarr.work") / "level_1-step_1.npz"
    content = bytearray(path.read_bytes())
    content[200] ^= 16
    path.write_bytes({"short": path.read_bytes()[:-9], "flipped": bytes(content), "empty": b""}[damage])
    told = finish(pool, begun, quiet)
    assert [event.fields["step"] for event in told if event.kind == "step_started"] == [1, 2, 0, 1]


# --- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", ["step:2", "marked:2", "marked:3", "retired", "renamed"])
def test_a_restart_that_was_killed_goes_on_without_another(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build, death: str
) -> None:
    tree = tmp_path / "tree.zarr"
    old = CONFIG.model_copy(update={"seed": 9})
    build_hierarchy(pool, tree, old)
    assert elsewhere(tree, restart=True, failpoint=death)[0] == KILLED
    if death in ("step:2", "marked:2", "marked:3"):
        # The old tree stays until the new one is there.
        assert open_hierarchy(tree).attrs["seed"] == 9
    steps = [event for event in finish(pool, tree, quiet) if event.kind == "step_started"]
    assert len(steps) == (3 if death == "step:2" else 0)
    assert open_hierarchy(tree).attrs["seed"] == 4


def test_the_command_resumes_a_restart_without_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build
) -> None:
    tree = tmp_path / "tree.zarr"
    build_hierarchy(pool, tree, CONFIG.model_copy(update={"seed": 9}))
    assert elsewhere(tree, restart=True, failpoint="step:4")[0] == KILLED
    settings = Path(pool.path).with_name("run.yaml")
    settings.write_text(CONFIG.to_yaml())
    with pytest.raises(SystemExit) as exit_:
        cli.main(["cluster", pool.path, str(tree), "--config", str(settings)], prog_name="hkm")
    out, err = capsys.readouterr()
    assert not exit_.value.code, err
    assert "already complete" not in out
    assert "level 2 continues after step 0 of 1" in err
    assert_same(arrays(tree), quiet)


def test_a_restart_that_was_killed_can_be_begun_again(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build
) -> None:
    tree = tmp_path / "tree.zarr"
    assert elsewhere(tree, restart=True, failpoint="step:2")[0] == KILLED
    told: list[Event] = []
    with subscribe(told.append):
        build_hierarchy(pool, tree, CONFIG, restart=True)
    assert len([event for event in told if event.kind == "step_started"]) == 5
    finish(pool, tree, quiet)


def test_an_old_tree_asked_for_again_is_there_beside_an_unfinished_one(
    tmp_path: Path, pool: Pool, elsewhere: Build
) -> None:
    tree = tmp_path / "tree.zarr"
    old = CONFIG.model_copy(update={"seed": 9})
    build_hierarchy(pool, tree, old)
    assert elsewhere(tree, restart=True, failpoint="step:2")[0] == KILLED
    assert build_hierarchy(pool, tree, old).attrs["seed"] == 9
    with pytest.raises(InputError, match="seed: 9 in the tree, 5 asked for"):
        build_hierarchy(pool, tree, CONFIG.model_copy(update={"seed": 5}))


# --- going on with something else -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "seed: 4 in the tree, 5 asked for"),
        (
            {"levels": (CONFIG.levels[0], Level(n_clusters=4, n_resamples=1))},
            "levels.2.n_clusters: 5 in the tree, 4 asked",
        ),
        ({"levels": CONFIG.levels[:1]}, "levels: 2 in the tree, 1 asked for"),
        ({"metric": "cosine"}, "metric: l2 in the tree, cosine asked for"),
        ({"subset": "idx.npy"}, "subset: contents none in the tree, "),
    ],
)
def test_what_was_begun_otherwise_is_not_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, pool: Pool, begun: Path, change: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(Path(pool.path).parent)
    np.save("idx.npy", np.arange(100))
    before = contents(begun.parent)
    with pytest.raises(InputError, match=message) as error:
        build_hierarchy(pool, begun, CONFIG.model_copy(update=change))
    assert len(error.value.problems) == 2
    assert error.value.problems[1].endswith("use restart=True to discard it")
    assert contents(begun.parent) == before  # refused, and nothing lost


def test_another_pool_is_not_gone_on_with(pool: Pool, quiet: dict[str, np.ndarray], begun: Path) -> None:
    other = ingest(blobs(seed=1), Path(pool.path).with_name("other.zarr"), overwrite=True)
    with pytest.raises(
        InputError, match=rf"pool: contents {pool.fingerprint[:12]} in the tree, {other.fingerprint[:12]}"
    ):
        build_hierarchy(other, begun, CONFIG)
    finish(pool, begun, quiet)


# --- two at once ------------------------------------------------------------------------------------------------------


def test_the_second_driver_is_refused_naming_the_first(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build
) -> None:
    tree = tmp_path / "tree.zarr"
    seen = []

    def ask(event: Event) -> None:
        if event.kind == "step_started" and not seen:
            seen.append(elsewhere(tree, restart=True))

    with subscribe(ask):
        build_hierarchy(pool, tree, CONFIG)
    ((code, said),) = seen
    assert code == 1
    assert f"StoreError: {tree} is being written by pid {os.getpid()} on host " in said
    finish(pool, tree, quiet)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "is missing"),
        ("short", "bytes instead of"),
        ("flipped", "was altered on disk: its checksum does not match"),
    ],
)
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_damaged_pool_is_told_by_its_chunk(tmp_path: Path, damage: str, message: str, metric: str) -> None:
    pool = ingest(blobs(), tmp_path / "pool.zarr", chunk_mb=0.0004)
    path = tmp_path / "pool.zarr" / "embeddings" / "c" / "5" / "0"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[77] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(flipped) if damage == "flipped" else content[:-1])
    config = CONFIG.model_copy(update={"metric": metric})
    with pytest.raises(
        StoreError, match=rf"embeddings: chunk 5 \(.*/c/5/0, rows .*{message}.*; make it again .*ingest"
    ):
        build_hierarchy(pool, tmp_path / "tree.zarr", config)
    # Mended, the same goes on.
    path.write_bytes(content)
    assert build_hierarchy(pool, tmp_path / "tree.zarr", config).hkm.n_levels == 2


def test_a_pool_that_is_lost_on_the_way(tmp_path: Path, quiet: dict[str, np.ndarray]) -> None:
    pool = ingest(blobs(), tmp_path / "pool.zarr", chunk_mb=0.0004)
    moved = tmp_path / "moved"

    def lose(event: Event) -> None:
        if event.kind == "step_started" and not moved.exists():
            (tmp_path / "pool.zarr" / "embeddings" / "c" / "3").rename(moved)

    with subscribe(lose), pytest.raises(StoreError, match=r"chunk 3 .* is missing"):
        build_hierarchy(pool, tmp_path / "tree.zarr", CONFIG)
    moved.rename(tmp_path / "pool.zarr" / "embeddings" / "c" / "3")
    assert_same(arrays(Path(build_hierarchy(pool, tmp_path / "tree.zarr", CONFIG).encoding["source"])), quiet)


def test_a_finished_level_that_was_damaged_since_is_built_again(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build
) -> None:
    tree = tmp_path / "tree.zarr"
    assert elsewhere(tree, failpoint="marked:1")[0] == KILLED
    (tmp_path / "tree.zarr.wip" / "level_1" / "centroids" / "c" / "0" / "0").unlink()
    told: list[Event] = []
    with subscribe(told.append):
        build_hierarchy(pool, tree, CONFIG)
    (warning,) = (event.fields["message"] for event in told if event.kind == "warning")
    assert re.search(r"level_1/centroids: chunk 0 .* is missing; level 1 is built again", warning)
    assert_same(arrays(tree), quiet)


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [300, 1500, pytest.param(900, marks=pytest.mark.slow), 4000])
def test_a_full_disk_is_told_and_what_was_done_is_kept(
    tmp_path: Path, pool: Pool, quiet: dict[str, np.ndarray], elsewhere: Build, limit: int
) -> None:
    tree = tmp_path / "tree.zarr"
    code, said = elsewhere(tree, limit=limit)
    assert code == 1
    assert said.startswith("StoreError: ")
    assert "the disk is full (File too large); free space and run the same command again" in said
    assert not tree.exists()
    finish(pool, tree, quiet)


def test_a_full_disk_is_told_of_what_workers_share_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StoreError, match=r"writing .*centroids\.npy: the disk is full"):
        SharedArrayStore(str(tmp_path)).put("centroids", np.zeros(3))


def test_where_nothing_can_be_written_is_told_before_any_work(tmp_path: Path, pool: Pool, elsewhere: Build) -> None:
    np.save(tmp_path / "rows.npy", blobs())
    folder = tmp_path / "read only"
    folder.mkdir(mode=0o555)
    code, said = elsewhere(folder / "tree.zarr", rows=tmp_path / "rows.npy", user=65534)
    assert code == 1
    assert said.startswith("StoreError: ")
    assert "Permission denied; check the path and its permissions" in said
    assert list(folder.iterdir()) == []


# --- interrupted ------------------------------------------------------------------------------------------------------


# After the first, the last of a level and the first of the next; killed after any of the five: see above.
@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupt_keeps_every_finished_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Pool, quiet: dict[str, np.ndarray], after: int
) -> None:
    passed = []

    def interrupt(name: str) -> None:
        passed.append(name)
        if passed.count("step") == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "failpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build_hierarchy(pool, tmp_path / "tree.zarr", CONFIG)
    # Nothing is held on to: neither the lock nor files.
    with lock(tmp_path / "tree.zarr"):
        pass
    steps = [event for event in finish(pool, tmp_path / "tree.zarr", quiet) if event.kind == "step_started"]
    assert len(steps) == 5 - after


def test_this_process_may_write_large_files_again() -> None:
    # The limits above were set in children only.
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
