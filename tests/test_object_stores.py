"""Reading from and writing to a real S3 server gives the same results as a disk, even if runs are killed."""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster

import hkm_dask as hkm
from hkm_dask import cli
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.config import Config, Level
from hkm_dask.data.files import KILLED
from hkm_dask.data.objects import Location, ObjectPath, zarr_store
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy import level_plans, regroup
from hkm_dask.hierarchy import split as split_module
from hkm_dask.hierarchy.checkpoint import Checkpoints
from hkm_dask.kmeans.lloyd import LloydStep
from tests.forked import run_forked
from tests.object_store import ObjectStore

KILLS = ("chunk-written:3", "checked", "marked", "marked:3")
CONFIG = Config.from_flags((12, 3), n_resamples=1)


#: A level above that which a test is about, in few requests.
LAST = Level(n_clusters=3, init="random", n_resamples=0, max_iter=2)


def samples() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 4)).astype("f4")


def build(pool: str, tree: str, restart: bool = False, seed: int = 0) -> None:
    hkm.build_hierarchy(pool, tree, CONFIG.model_copy(update={"seed": seed}), restart=restart)


def contents(root: Location) -> dict[str, bytes]:
    """Objects or files below a place, but for the group's metadata, which tell paths and times."""
    files = {str(place).removeprefix(f"{root}/"): place for place in root.rglob("*") if place.is_file()}
    return {name: place.read_bytes() for name, place in files.items() if name.count("/") != name.endswith("zarr.json")}


def arrays(tree: Location) -> dict[str, np.ndarray]:
    opened = hkm.open_hierarchy(tree)
    return {
        f"{t}/{name}": values.values for t, level in opened.children.items() for name, values in level.data_vars.items()
    }


def same(a: Location, b: Location) -> bool:
    expected = arrays(b)
    return all(np.array_equal(x, expected[name], equal_nan=x.dtype.kind == "f") for name, x in arrays(a).items())


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool and its tree on a disk."""
    folder = tmp_path_factory.mktemp("disk")
    ids = [f"id-{row}" for row in range(200)]
    hkm.ingest(samples(), folder / "pool.zarr", ids=ids, chunk_mb=0.001)
    build(str(folder / "pool.zarr"), str(folder / "tree.zarr"))
    return folder


def put(folder: Path, place: ObjectPath) -> None:
    """Copy a store as it is."""
    for file in folder.rglob("*"):
        if file.is_file():
            (place / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


@pytest.fixture
def pool(bucket: ObjectPath, on_disk: Path) -> ObjectPath:
    put(on_disk / "pool.zarr", bucket / "pool.zarr")
    return bucket / "pool.zarr"


def test_a_pool_is_the_same_objects_as_files(bucket: ObjectPath, on_disk: Path) -> None:
    made = hkm.ingest(samples(), bucket / "pool.zarr", ids=[f"id-{row}" for row in range(200)], chunk_mb=0.001)
    assert contents(bucket / "pool.zarr") == contents(on_disk / "pool.zarr")
    assert made.fingerprint == hkm.open_pool(on_disk / "pool.zarr").fingerprint
    assert [place.name for place in bucket.iterdir()] == ["pool.zarr"]  # no lock, no scratch
    with pytest.raises(InputError, match="should not exist yet"):
        hkm.ingest(samples(), bucket / "pool.zarr")
    again = hkm.ingest(f"{bucket}/pool.zarr", on_disk / "back.zarr", chunk_mb=0.001)
    assert (again.fingerprint, again.ids([3])) == (made.fingerprint, ["id-3"])


@pytest.mark.slow
def test_a_tree_is_the_same_bits(
    pool: ObjectPath, bucket: ObjectPath, on_disk: Path, object_store: ObjectStore
) -> None:
    with object_store.counted() as counts:
        build(str(pool), f"{bucket}/tree.zarr")
    assert same(bucket / "tree.zarr", on_disk / "tree.zarr")
    assert [place.name for place in bucket.iterdir()] == ["pool.zarr", "tree.zarr"]
    # 16 arrays with one chunk or a few: what a stage asks for grows with them, and not with iterations.
    assert counts["PUT"] < 120
    assert counts["GET"] < 450
    with object_store.counted() as counts:
        hkm.open_hierarchy(bucket / "tree.zarr")
    assert counts["GET"] <= 45
    plain = xr.open_datatree(zarr_store(bucket / "tree.zarr"), engine="zarr")
    assert plain["level_1"]["labels"].values.tolist() == arrays(on_disk / "tree.zarr")["level_1/labels"].tolist()


@contextmanager
def strangers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Two workers of which none sees a folder of the driver, whose own temporary ones lie in `folder`."""
    monkeypatch.setattr(ClusterRunner, "_blind", lambda self, folder: ["worker"])
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_workers_that_share_no_folder_meet_in_the_store(
    pool: ObjectPath, bucket: ObjectPath, on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClusterRunner, "fits_one_task", lambda *_: False)
    config = Config.from_flags((12, 3), n_resamples=(1, 0), max_iter=2, fit_sample=150)
    hkm.build_hierarchy(on_disk / "pool.zarr", tmp_path / "tree.zarr", config)
    expected = hkm.assign(tmp_path / "tree.zarr", samples()[:50], tmp_path / "new.zarr").load()
    with strangers(tmp_path, monkeypatch) as client:
        hkm.build_hierarchy(pool, bucket / "tree.zarr", config, client=client)
        new = hkm.assign(bucket / "tree.zarr", samples()[:50], bucket / "new.zarr", client=client).load()
    assert same(bucket / "tree.zarr", tmp_path / "tree.zarr")
    assert new.drop_attrs().identical(expected.drop_attrs())
    assert [place.name for place in bucket.iterdir()] == ["new.zarr", "pool.zarr", "tree.zarr"]
    assert not list(tmp_path.rglob("hkm-*"))


@pytest.mark.slow
def test_clusters_are_split_through_the_store_and_an_interrupted_run_goes_on(
    pool: ObjectPath, bucket: ObjectPath, on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "some.npy", np.arange(0, 200, 2))  # rows without a label, too
    levels = [Level(n_clusters=6, n_splits=3, n_resamples=0, max_iter=3), LAST]
    split = Config(levels=levels, subset=str(tmp_path / "some.npy"))
    hkm.build_hierarchy(on_disk / "pool.zarr", tmp_path / "tree.zarr", split)
    monkeypatch.setattr(regroup, "rows_at_once", lambda runner: 30)  # several runs and shares
    monkeypatch.setattr(regroup, "_LEAST_RUN", 30)
    monkeypatch.setattr(split_module, "_BATCHES_PER_ROUND", 1)
    rounds, events, note = list[int](), list[Event](), Checkpoints.split

    def interrupted(self: Checkpoints, level: int, cuts: np.ndarray, checksums: list[int]) -> None:
        self.every = 0.0
        note(self, level, cuts, checksums)
        rounds.append(len(checksums))
        if len(rounds) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "split", interrupted)
    with strangers(tmp_path, monkeypatch) as client:
        with pytest.raises(KeyboardInterrupt):
            hkm.build_hierarchy(pool, bucket / "tree.zarr", split, client=client)
        left = {place.name for place in (bucket / "tree.zarr.work").rglob("*")}
        assert {"level_1-split.npz", "found-0.npy"} < left
        assert not any(name.startswith(("regrouped", "run", "places", "shares")) for name in left)
        (found,) = (bucket / "tree.zarr.work").rglob("found-0.npy")
        found.unlink()  # that batch is split again
        with subscribe(events.append):
            hkm.build_hierarchy(pool, bucket / "tree.zarr", split, client=client)
    assert any("clusters were already split" in event.fields.get("what", "") for event in events)
    assert same(bucket / "tree.zarr", tmp_path / "tree.zarr")
    assert [place.name for place in bucket.iterdir()] == ["pool.zarr", "tree.zarr"]


def test_splits_of_other_rows_at_the_same_place_are_read_as_they_are(
    bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers remember headers by the names of arrays, and those of another tree had the same: its width was taken."""
    config = Config(levels=[Level(n_clusters=6, n_splits=3, n_resamples=0, max_iter=3), LAST])
    tables = samples(), samples()[:, :3]
    for rows in tables:
        hkm.build_hierarchy(rows, tmp_path / f"{rows.shape[1]}.zarr", config)
    with strangers(tmp_path, monkeypatch) as client:
        for rows in tables:
            hkm.build_hierarchy(rows, bucket / "tree.zarr", config, client=client, restart=True)
            assert same(bucket / "tree.zarr", tmp_path / f"{rows.shape[1]}.zarr")


def test_what_a_cluster_keeps_of_a_pool_is_not_told_of_the_next(
    bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with strangers(tmp_path, monkeypatch):
        kept = []
        for rows in (samples(), -samples()):
            pool = hkm.ingest(rows, bucket / "pool.zarr", overwrite=True)
            kept.append(pool.to_xarray()["embeddings"].persist())
            np.testing.assert_array_equal(kept[-1], rows)


def test_clusters_are_shared_out_through_the_store_and_an_interrupted_run_goes_on(
    pool: ObjectPath, bucket: ObjectPath, on_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = [Level(n_clusters=30, init="random", n_resamples=1, max_iter=3), LAST]
    hkm.build_hierarchy(on_disk / "pool.zarr", tmp_path / "tree.zarr", Config(levels=levels))
    monkeypatch.setattr(level_plans, "n_ranges_for", lambda stages_of, k, **_: 4 if k > 20 else 1)
    steps, events, note = list[int](), list[Event](), Checkpoints.iteration

    def interrupted(self: Checkpoints, level: int, step: int, moved: LloydStep) -> None:
        self.every = 0.0
        note(self, level, step, moved)
        steps.append(step)
        if steps == [0, 0, 0, 1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "iteration", interrupted)
    with strangers(tmp_path, monkeypatch) as client:
        with pytest.raises(KeyboardInterrupt):
            hkm.build_hierarchy(pool, bucket / "tree.zarr", Config(levels=levels), client=client)
        left = {place.name for place in (bucket / "tree.zarr.work" / "ranges").iterdir()}
        kept = {re.sub("-[0-9a-f]{16}-", " ", name) for name in left}
        assert kept == {f"level_1-step_{name}-4-{i}.npy" for name in ("0 3", "1-iteration 1") for i in range(4)}
        with subscribe(events.append):
            hkm.build_hierarchy(pool, bucket / "tree.zarr", Config(levels=levels), client=client)
    assert any("continues after step 0 of 1" in event.fields.get("what", "") for event in events)
    assert same(bucket / "tree.zarr", tmp_path / "tree.zarr")
    assert [place.name for place in bucket.iterdir()] == ["pool.zarr", "tree.zarr"]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts need root")
def test_workers_with_folders_of_their_own_meet_in_the_store(
    pool: ObjectPath, bucket: ObjectPath, on_disk: Path, tmp_path: Path, object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Real processes in mount namespaces: where the driver has its folders, they have empty ones."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    hides = f"mount -t tmpfs none {tmp_path.parent} && exec {sys.executable} -m distributed.cli.dask_worker"
    environment = os.environ | object_store.environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster, Client(cluster) as client:
        command = ["unshare", "-m", "sh", "-c", f"{hides} {cluster.scheduler_address} --nthreads 1 --no-dashboard"]
        workers = [subprocess.Popen(command, env=environment, cwd="/") for _ in range(2)]
        try:
            client.wait_for_workers(2, timeout=60)
            assert not any(client.run(os.path.exists, str(on_disk)).values())
            config = Config.from_flags((12, 3), n_resamples=(1, 0), max_iter=2, fit_sample=150)
            hkm.build_hierarchy(pool, bucket / "tree.zarr", config, client=client)
            split = Config(levels=[Level(n_clusters=6, n_splits=3), Level(n_clusters=3)])
            hkm.build_hierarchy(pool, bucket / "split.zarr", split, client=client)
            new = hkm.assign(bucket / "tree.zarr", samples()[:50], bucket / "new.zarr", client=client).load()
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()
    hkm.build_hierarchy(on_disk / "pool.zarr", tmp_path / "tree.zarr", config)
    assert same(bucket / "tree.zarr", tmp_path / "tree.zarr")
    hkm.build_hierarchy(on_disk / "pool.zarr", tmp_path / "split.zarr", split)
    assert same(bucket / "split.zarr", tmp_path / "split.zarr")
    expected = hkm.assign(tmp_path / "tree.zarr", samples()[:50], tmp_path / "new.zarr").load()
    assert new.drop_attrs().identical(expected.drop_attrs())
    assert [place.name for place in bucket.iterdir()] == ["new.zarr", "pool.zarr", "split.zarr", "tree.zarr"]


@pytest.mark.slow
def test_a_tree_on_a_disk_of_a_pool_in_a_store(pool: ObjectPath, tmp_path: Path, on_disk: Path) -> None:
    build(str(pool), str(tmp_path / "tree.zarr"))
    assert same(tmp_path / "tree.zarr", on_disk / "tree.zarr")


def test_whatever_takes_a_store_takes_its_url(pool: ObjectPath, bucket: ObjectPath, tmp_path: Path) -> None:
    def run(*words: str) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words), prog_name="hkm")
        assert not ended.value.code

    tree, subset = f"{bucket}/tree.zarr", str(tmp_path / "subset.npy")
    build(str(pool), tree)
    run("sample", tree, "--size", "20", "--out", subset)
    kept, removed, groups = (bucket / name for name in ("kept.npy", "removed.txt", "groups.parquet"))
    run(
        "dedup",
        str(pool),
        "--threshold",
        "0.99",
        "--out",
        str(kept),
        "--removed",
        str(removed),
        "--groups",
        str(groups),
    )
    found = hkm.dedup(samples(), 0.99)
    assert np.array_equal(np.load(io.BytesIO(kept.read_bytes())), found.rows)
    assert removed.read_bytes().decode().split() == [f"id-{row}" for row in found.removed]
    assert groups.exists()
    run("compare", str(pool), subset, "--tree", tree)
    run("compare", tree, str(pool))
    run("report", tree, "--pool", str(pool), "--subset", subset, "--out", str(tmp_path / "report.html"))
    assert "id-1" in (tmp_path / "report.html").read_text()  # ids of the pool, which is not taken for gone
    with hkm.browse(tree, out=tmp_path / "weights.csv") as browser:
        assert browser.answers.tree()["ids"]
        assert f"hkm sample {tree} --size" in browser.answers.save()["command"]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["step:2", *KILLS])
def test_killed_anywhere_it_goes_on_from_another_machine(
    pool: ObjectPath, bucket: ObjectPath, on_disk: Path, object_store: ObjectStore, point: str
) -> None:
    tree = bucket / "tree.zarr"
    environment = {**object_store.environment(), "HKM_FAILPOINT": point}
    assert run_forked(build, str(pool), str(tree), **environment) == KILLED
    whole = point == "marked:3"
    if point == "step:2":
        assert [place.name for place in (bucket / "tree.zarr.work").iterdir()] == [
            "level_1-step_0.npz",
            "level_1-step_1.npz",
        ]
    if not whole:
        with pytest.raises(StoreError, match=r"is not complete|is missing"):
            hkm.open_hierarchy(tree)
        if (tree / "zarr.json").is_file():
            with pytest.raises(Exception, match="unfinished"):
                zarr.open(zarr_store(tree), mode="r")
    with object_store.counted() as counts:
        build(str(pool), str(tree))
    # 16 arrays with one chunk or a few: what is asked for grows with them, and not with iterations.
    assert counts["PUT"] < 90
    assert counts["GET"] < 420
    assert same(tree, on_disk / "tree.zarr")
    assert [place.name for place in bucket.iterdir()] == ["pool.zarr", "tree.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["step", "marked:3", "retired", "renamed"])
def test_the_old_tree_stays_until_the_new_one_is_complete(
    bucket: ObjectPath, on_disk: Path, object_store: ObjectStore, point: str
) -> None:
    pool, tree = on_disk / "pool.zarr", bucket / "tree.zarr"
    put(on_disk / "tree.zarr", tree)
    environment = {**object_store.environment(), "HKM_FAILPOINT": point}
    assert run_forked(build, str(pool), str(tree), True, 1, **environment) == KILLED
    if point in ("step", "marked:3"):
        assert same(tree, on_disk / "tree.zarr")
    build(str(pool), str(tree), seed=1)
    assert hkm.open_hierarchy(tree).attrs["seed"] == 1
    assert hkm.verify(tree).sound
    assert [place.name for place in bucket.iterdir()] == ["tree.zarr"]


def test_what_is_no_store_of_ours_is_not_touched(bucket: ObjectPath, on_disk: Path) -> None:
    (bucket / "tree.zarr/mine.txt").write_bytes(b"mine")
    for restart in (False, True):
        with pytest.raises(InputError, match="should be a store of hkm_dask to be overwritten, but is not"):
            build(str(on_disk / "pool.zarr"), f"{bucket}/tree.zarr", restart)
    assert (bucket / "tree.zarr/mine.txt").read_bytes() == b"mine"


@pytest.mark.slow
def test_another_tree_that_was_begun_is_told(bucket: ObjectPath, on_disk: Path, object_store: ObjectStore) -> None:
    pool, tree = str(on_disk / "pool.zarr"), f"{bucket}/tree.zarr"
    run_forked(build, pool, tree, **object_store.environment(), HKM_FAILPOINT="step")
    with pytest.raises(InputError, match=r"(?s)seed: 0 .*begun with the same settings; use restart=True to discard it"):
        build(pool, tree, seed=1)
    build(pool, tree, True, 1)
    assert hkm.open_hierarchy(tree).attrs["seed"] == 1


def test_a_pool_replaced_meanwhile_is_noticed(pool: ObjectPath, bucket: ObjectPath) -> None:
    opened = hkm.open_pool(pool)
    hkm.ingest(samples() + 1, pool, overwrite=True, chunk_mb=0.001)
    with pytest.raises(StoreError, match="was replaced by another"):
        opened.rows()
    with pytest.raises(StoreError, match="was replaced by another pool meanwhile"):
        opened.check_unchanged()
