"""Power failures: unsynced data are lost or reordered, and yet stores are either complete or absent.

Runs are recorded once; Hypothesis chooses where they stop and which data are lost (see `tests.power_loss`).
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.config import Config, Level
from hkm_dask.data.files import write_whole
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy import build, checkpoint, level_arrays
from hkm_dask.hierarchy.checkpoint import Checkpoints
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.ingestion.ingest import ingest
from tests.power_loss import Recording, recorded

pytestmark = pytest.mark.faults

CONFIG = Config(levels=(Level(n_clusters=20, n_resamples=1, max_iter=4), Level(n_clusters=5, n_resamples=1)), seed=4)
OTHER = CONFIG.model_copy(update={"seed": 9})
Arrays = dict[str, np.ndarray]
#: Crashes of a pool that are tried, three times as many as of a tree: others in every run, and more with --slow.
EXAMPLES = int(os.environ.get("HKM_CRASHES", "15"))


def rows(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 6, (300, 1)) * 3 + rng.normal(size=(300, 4))).astype("f4")


@dataclass(frozen=True)
class Scenario:
    """A recorded run, and how its store is opened and made again."""

    recording: Recording
    store: str
    open: Callable[[Path], Arrays]
    run: Callable[[Path], None]
    allowed: tuple[Arrays, ...]  # what the name may stand for after a crash; what the run makes is the last

    def check(self, folder: Path, after: int, lost: float, seed: int) -> None:
        """Break the run off, look at what has the name, run again, and look again."""
        shutil.rmtree(folder, ignore_errors=True)
        self.recording.crash(after, folder, lost, seed)
        path = folder / self.store
        opened = None
        try:
            opened = self.open(path)
        except StoreError as error:
            assert str(error).startswith((f"{path} is missing", f"{path} is not complete"))  # noqa: PT017
        if opened is not None:
            assert any(same(opened, arrays) for arrays in self.allowed)
        if after == len(self.recording):
            assert opened is not None, "it was reported as done"
            assert same(opened, self.allowed[-1])
        self.run(path)
        assert same(self.open(path), self.allowed[-1])
        assert [child.name for child in path.parent.iterdir()] == [path.name]


def same(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def open_rows(path: Path) -> Arrays:
    pool = open_pool(path)
    return {"rows": pool.rows().read(0, pool.n_samples), "ids": pool.ids()}


def open_arrays(path: Path) -> Arrays:
    open_hierarchy(path)
    folders = [file.parent for file in path.glob("level_*/*/zarr.json")]
    return {f"{folder.parent.name}/{folder.name}": level_arrays.read_whole(folder) for folder in folders}


def make_pool(path: Path, seed: int, *, overwrite: bool = True) -> None:
    ingest(rows(seed), path, ids=np.arange(300), chunk_mb=0.001, overwrite=overwrite)


def make_tree(path: Path, config: Config, *, restart: bool = False) -> None:
    build.build_hierarchy(rows(0), path, config, restart=restart)


def make_tree_of_fast_steps(path: Path) -> None:
    """Make a tree whose checkpoints all come so soon after another that none of them is synced."""

    def never_synced(target: Path, write: Callable[[Path], None], *, synced: bool) -> None:
        write_whole(target, write, synced=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_whole", never_synced)
        make_tree(path, CONFIG)


def resume_tree(path: Path) -> None:
    """Run again as it was run; where an older run came to light, discard that."""
    try:
        make_tree(path, CONFIG)
    except InputError as error:
        assert "use restart=True to discard it" in str(error)  # noqa: PT017
        make_tree(path, CONFIG, restart=True)


def interrupted(path: Path, config: Config, kind: str) -> None:
    """Leave a tree unfinished, with checkpoints."""

    def stop(event: Event) -> None:
        if event.kind == kind and event.fields["level"] == 2:
            raise KeyboardInterrupt

    with subscribe(stop), suppress(KeyboardInterrupt):
        make_tree(path, config)
    assert list(path.with_name(f"{path.name}.work").glob("*.npz"))


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        # Every iteration is kept.
        patch.setattr(build, "Checkpoints", lambda *run, **options: Checkpoints(*run, every=0, **options))
        yield patch


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> dict[str, Scenario]:
    made = {}

    def record(
        name: str, store: str, open: Callable[[Path], Arrays], run: Callable[[Path], None], **more: Callable
    ) -> None:
        folder = tmp_path_factory.mktemp(name)
        path = folder / store
        before = ()
        if "before" in more:
            more["before"](path)
            with suppress(StoreError):
                before = (open(path),)
        with recorded(folder, patch) as recording:
            more.get("first", run)(path)
        made[name] = Scenario(recording, store, open, run, (*before, open(path)))

    def new_pool(path: Path) -> None:
        make_pool(path, 0)

    record("pool", "new/folder/pool.zarr", open_rows, new_pool)
    record("pool over another", "pool.zarr", open_rows, new_pool, before=lambda path: make_pool(path, 1))
    record("tree", "tree.zarr", open_arrays, resume_tree)
    record(
        "tree over an unfinished one", "tree.zarr", open_arrays, resume_tree,
        before=lambda path: interrupted(path, OTHER, "iteration"),
        first=lambda path: make_tree(path, CONFIG, restart=True),
    )  # fmt: skip
    record("tree of fast steps", "tree.zarr", open_arrays, resume_tree, first=make_tree_of_fast_steps)
    return made


NAMES = ["pool", "pool over another", "tree", "tree over an unfinished one", "tree of fast steps"]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_reported_as_done_is_there_whatever_was_not_synced(
    name: str, scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    scenario = scenarios[name]
    for seed in range(5):
        scenario.check(tmp_path / "disk", len(scenario.recording), lost=1.0, seed=seed)


@pytest.mark.parametrize("n_times", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_a_power_failure_leaves_no_half_store(
    name: str, n_times: int, scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    scenario = scenarios[name]

    @settings(max_examples=n_times * EXAMPLES if "pool" in name else n_times * EXAMPLES // 3)
    @given(
        after=st.integers(0, len(scenario.recording)),
        lost=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
        seed=st.integers(0, 1 << 30),
    )
    def check(after: int, lost: float, seed: int) -> None:
        scenario.check(tmp_path / "disk", after, lost, seed)

    check()


def test_of_a_store_that_is_removed_the_metadata_go_first(scenarios: dict[str, Scenario], tmp_path: Path) -> None:
    """Half of an unfinished store would pass for one that is to be continued."""
    recording = scenarios["tree over an unfinished one"].recording
    whole: set[str] = set()
    for after in range(60):
        recording.crash(after, tmp_path / str(after), lost=0)
        wip = tmp_path / str(after) / "tree.zarr.wip"
        levels = {path.relative_to(wip).as_posix() for path in wip.glob("level_1/**/*")}
        whole = whole or levels
        if not levels:
            break
        assert levels == whole or not (wip / "zarr.json").exists()
    assert whole
    assert not levels, "more operations should be looked at"


def test_levels_of_nobody_knows_what_tree_are_not_continued(tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path / "quiet" / "tree.zarr", CONFIG)
    interrupted(tmp_path / "tree.zarr", OTHER, "iteration")
    (tmp_path / "tree.zarr.wip" / "zarr.json").unlink()
    make_tree(tmp_path / "tree.zarr", CONFIG)
    assert same(open_arrays(tmp_path / "tree.zarr"), open_arrays(tmp_path / "quiet" / "tree.zarr"))
