"""Adding new samples to a tree, against a tree computed in float64."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner

import hkm_dask as hkm
from hkm_dask.cli.commands import main
from hkm_dask.compute import memory
from hkm_dask.compute.runner import Runner
from hkm_dask.data import grow_pool, pool_writer, store
from hkm_dask.data.files import KILLED
from hkm_dask.data.pool import open_pool
from hkm_dask.errors import ComputeError, InputError, StoreError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy import assignment
from hkm_dask.hierarchy import update as tree_update
from tests.hierarchy.altered import set_attributes
from tests.pages import run_page

N, D, ADDED = 600, 5, 171
LEVELS = (50, 8, 3)


def rows(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)).astype("f4")


def names(prefix: str, n: int) -> np.ndarray:
    return np.array([f"{prefix}{i}" for i in range(n)], dtype=object)


def make_pool(path: Path, x: np.ndarray, prefix: str) -> Path:
    """A pool with ids and a column, in chunks of 100 rows."""
    hkm.ingest(x, path, ids=names(prefix, len(x)), chunk_mb=100 * D * 4 / 2**20)
    pool_writer.write_column(path, "score", [x[:, 0].astype("f8")], len(x))
    set_attributes(path, columns=["score"])
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, new samples, a tree of all of the pool, and one by cosine of most of it with clusters without members."""
    folder = tmp_path_factory.mktemp("update")
    make_pool(folder / "pool.zarr", rows(0), "a")
    make_pool(folder / "new.zarr", rows(1, ADDED), "b")
    np.save(folder / "idx.npy", np.arange(5, 580))
    levels = [hkm.Level(n_clusters=k, n_resamples=m) for k, m in zip(LEVELS, (0, 1, 0), strict=True)]
    hkm.build_hierarchy(folder / "pool.zarr", folder / "l2.zarr", hkm.Config(levels=levels))
    config = hkm.Config(levels=levels, metric="cosine", subset=str(folder / "idx.npy"))
    hkm.build_hierarchy(folder / "pool.zarr", folder / "cosine.zarr", config)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(made, tmp_path / "stores"))
    for name in ("l2.zarr", "cosine.zarr"):
        set_attributes(copy / name, pool=str(copy / "pool.zarr"))
    return copy


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x.astype("f8"), axis=1, keepdims=True)).astype("f4")


def check_by_hand(before: xr.DataTree, after: xr.DataTree, x: np.ndarray, n_before: int) -> None:
    """What a tree should be whose centroids are those of the tree before, of the rows x."""
    x = unit(x) if before.attrs["metric"] == "cosine" else x
    centroids = before["level_1/centroids"].values
    squared = np.square(x[n_before:, None].astype("f8") - centroids).sum(axis=2)
    labels = np.append(before["level_1/labels"].values, squared.argmin(axis=1))
    np.testing.assert_array_equal(after["level_1/labels"], labels)
    np.testing.assert_allclose(after["level_1/distances"].values[n_before:], squared.min(axis=1), rtol=1e-6)
    leaves = np.ones(len(x), int)
    for t in (1, 2, 3):
        level = after[f"level_{t}"]
        labels, distances = level["labels"].values, level["distances"].values
        np.testing.assert_array_equal(level["centroids"], before[f"level_{t}/centroids"])
        np.testing.assert_array_equal(level["inertia"], before[f"level_{t}/inertia"])
        if t > 1:
            np.testing.assert_array_equal(labels, before[f"level_{t}/labels"])
        groups = [sorted(np.flatnonzero(labels == c), key=lambda i: (distances[i], i)) for c in range(LEVELS[t - 1])]
        assert level["sizes"].values.tolist() == list(map(len, groups))
        assert level[f"members_{t}"].values.tolist() == [i for group in groups for i in group]
        leaves = np.array([leaves[group].sum() for group in groups])
        assert level["leaf_sizes"].values.tolist() == leaves.tolist()


@pytest.mark.parametrize(("metric", "linked"), [("l2", True), ("cosine", False)], ids=["linked", "rewritten"])
def test_it_is_the_tree_of_all_samples(folder: Path, metric: str, linked: bool) -> None:
    target, pool = folder / f"{metric}.zarr", folder / "pool.zarr"
    before, known = hkm.open_hierarchy(target).load(), open_pool(pool).fingerprint
    first = (pool / "embeddings/c/0/0").stat().st_ino
    with patch.object(grow_pool, "_MOST_TIMES_SHORTER", 100 if linked else 1):
        after = hkm.update(target, pool, folder / "new.zarr")
    x = np.concatenate([rows(0), rows(1, ADDED)])
    check_by_hand(before, after, x, N)
    grown = open_pool(pool)
    assert ((pool / "embeddings/c/0/0").stat().st_ino == first) == linked
    np.testing.assert_array_equal(grown.rows().read(0, N + ADDED), x)
    assert grown.ids().tolist() == [*names("a", N), *names("b", ADDED)]
    np.testing.assert_array_equal(grown.column("score"), x[:, 0].astype("f8"))
    assert grown.n_known_as(known) == N
    assert hkm.verify(pool).sound
    found, measured = hkm.verify(target), N + ADDED if metric == "l2" else 575 + ADDED
    assert found.sound, str(found)
    assert f"{measured} of level 1" in found.checks["measured"]
    if linked:  # a tree of what the pool was is sound still, and follows without anything new
        other = folder / "cosine.zarr"
        assert hkm.verify(other).sound
        before = hkm.open_hierarchy(other).load()
        check_by_hand(before, hkm.update(other, pool), x, N)
    assert sorted(path.name for path in folder.iterdir()) == [
        "cosine.zarr", "idx.npy", "l2.zarr", "new.zarr", "pool.zarr",
    ]  # fmt: skip


def test_a_cluster_that_was_empty_gets_a_cluster_above(folder: Path) -> None:
    tree = hkm.open_hierarchy(folder / "l2.zarr").load()
    arrays = tree_update.TreeArrays(tree)
    labels, distances = arrays.read(2, "labels").copy(), arrays.read(2, "distances").copy()
    labels[7], distances[7] = -1, np.nan
    tree_update._place_used(arrays, 2, np.ones(LEVELS[0], int), labels, distances)
    squared = np.square(tree["level_1/centroids"].values[7].astype("f8") - tree["level_2/centroids"].values).sum(axis=1)
    assert labels[7] == squared.argmin()
    assert distances[7] == np.float32(squared.min())


def stop_when_renamed(name: str) -> None:
    if name == "renamed":
        raise KeyboardInterrupt


@pytest.mark.faults
def test_interrupted_it_goes_on(folder: Path) -> None:
    target, pool, new = folder / "l2.zarr", folder / "pool.zarr", folder / "new.zarr"
    before = hkm.open_hierarchy(target).load()
    known = open_pool(pool).fingerprint
    with patch.object(tree_update, "_write_level", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        hkm.update(target, pool, new)
    assert open_pool(pool).fingerprint == known  # both are as they were
    assert hkm.open_hierarchy(target).attrs["digest"] == before.attrs["digest"]
    # The labels are kept; between the two renames it is stopped again.
    with (
        patch.object(assignment, "_write_labels", side_effect=AssertionError),
        patch.object(store, "failpoint", stop_when_renamed),
        pytest.raises(KeyboardInterrupt),
    ):
        hkm.update(target, pool, new)
    assert open_pool(pool).n_samples == N + ADDED
    assert hkm.open_hierarchy(target).hkm.n_samples == N
    with pytest.raises(InputError, match=r"there are 171 samples of .*pool.zarr that it lacks; run `hkm update "):
        hkm.update(target, pool, rows(5, 3))
    after = hkm.update(target, pool, new)
    check_by_hand(before, after, np.concatenate([rows(0), rows(1, ADDED)]), N)
    # Once more is nothing more.
    digest = after.attrs["digest"]
    assert hkm.update(target, pool, new).attrs["digest"] == digest


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("point", ["retired:1", "retired:2", "renamed:2", "renamed:3", "marked:5", "chunk-written:20"])
def test_killed_at_any_step_it_goes_on(folder: Path, point: str) -> None:
    target, pool, new = folder / "l2.zarr", folder / "pool.zarr", folder / "new.zarr"
    before = hkm.open_hierarchy(target).load()
    words = [sys.executable, "-m", "hkm_dask", "update", *map(str, (target, pool, new))]
    killed = subprocess.run(words, env={**os.environ, "HKM_FAILPOINT": point}, capture_output=True, check=False)
    assert killed.returncode == KILLED
    after = hkm.update(target, pool, new)
    check_by_hand(before, after, np.concatenate([rows(0), rows(1, ADDED)]), N)
    assert hkm.verify(pool).sound
    assert not [path for path in folder.iterdir() if ".wip" in path.name or ".work" in path.name]


def test_the_command_says_how_many_of_the_pool_a_tree_has(folder: Path) -> None:
    tree = hkm.open_hierarchy(folder / "cosine.zarr")
    n = tree["level_1"].sizes["member_1"]
    words = ["update", *(str(folder / name) for name in ("cosine.zarr", "pool.zarr", "new.zarr"))]
    said = CliRunner().invoke(main, words)
    assert n < N
    assert (
        f"cosine.zarr: {n + ADDED} of the pool's {N + ADDED} samples, of which {ADDED} were added in the" in said.output
    )


def test_the_command_and_two_updates(folder: Path) -> None:
    target, pool = folder / "l2.zarr", folder / "pool.zarr"
    said = CliRunner().invoke(main, ["update", str(target), str(pool), str(folder / "new.zarr")])
    assert said.exit_code == 0, said.output
    assert f"{target}: 771 samples, of which 171 were added in the last update" in said.output
    far = make_pool(folder / "far.zarr", 9 * rows(2, 40), "c")
    said = CliRunner().invoke(main, ["update", str(target), str(pool), str(far)])
    assert "times as far from their centroids as the others" in said.output
    assert (
        "joined    211 samples since it was made, in 2 updates"
        in CliRunner().invoke(main, ["info", str(target)]).output
    )
    tree = hkm.open_hierarchy(target)
    assert "211 samples since it was made" in repr(tree.hkm)
    assert hkm.sample(tree, 200)[-1] >= 771


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (lambda folder: rows(3, 9), r"^what is new should have ids, as .*pool\.zarr has; name their column with ids "),
        (lambda folder: folder / "no.npy", "no.npy does not exist"),
        (lambda folder: folder / "pool.zarr", "should have other rows than"),
        (
            lambda folder: make_pool(folder / "w.zarr", rows(3)[:, :4].copy(), "w"),
            "n_features=4 of .* should be 5, as in",
        ),
        (
            lambda folder: make_pool(folder / "w.zarr", rows(3, 9), "a"),
            "id='a0' and 8 more should not be in the pool already",
        ),
        (lambda folder: hkm.ingest(rows(3, 9), folder / "w.zarr", ids=np.arange(9)), "should have the columns score"),
    ],
)
def test_what_cannot_join_is_refused_and_nothing_changes(
    folder: Path, new: Callable[[Path], object], message: str
) -> None:
    known = open_pool(folder / "pool.zarr").fingerprint
    with pytest.raises(InputError, match=message):
        hkm.update(folder / "l2.zarr", folder / "pool.zarr", new(folder))
    assert open_pool(folder / "pool.zarr").fingerprint == known


def test_more_than_memory_has_room_for_is_refused_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, pool = hkm.open_hierarchy(folder / "l2.zarr"), open_pool(folder / "pool.zarr")
    with Runner(n_threads=2, memory_limit=1 << 30) as runner:
        tree_update.check_memory(tree, pool, 10**7, runner)
        with pytest.raises(ComputeError, match=r"should be at least \d+MiB, labeling the new samples needs"):
            tree_update.check_memory(tree, pool, 10**8, runner)
    monkeypatch.setattr(memory, "LABEL_BYTES", 10**7)
    monkeypatch.setattr(grow_pool, "grow", None)
    with pytest.raises(ComputeError, match=r"memory_limit=1024MiB should be at least \d+MiB, labeling the new samples"):
        hkm.update(folder / "l2.zarr", folder / "pool.zarr", folder / "new.zarr", memory_limit="1GiB")
    assert open_pool(folder / "pool.zarr").fingerprint == pool.fingerprint


def test_rows_of_files_get_their_ids_and_columns_from_a_table(folder: Path) -> None:
    target, pool, table = folder / "l2.zarr", folder / "pool.zarr", folder / "rows.csv"
    x = rows(3, 30)
    np.save(folder / "a.npy", x[:10])
    np.save(folder / "b.npy", x[10:])
    table.write_text("name,score,other\n" + "".join(f"c{i},{x[i, 0]:.9g},z\n" for i in range(30)))
    words = ["update", *map(str, (target, pool, folder / "new.zarr", folder / "a.npy", folder / "b.npy"))]
    words += ["--ids-file", str(table), "--ids", "name"]
    before = hkm.open_hierarchy(target).load()
    for _ in range(2):  # once more is nothing more
        said = CliRunner().invoke(main, words)
        assert said.exit_code == 0, said.output
        assert f"{target}: 801 samples, of which 201 were added in the last update" in said.output
    everything = np.concatenate([rows(0), rows(1, ADDED), x])
    check_by_hand(before, hkm.open_hierarchy(target), everything, N)
    grown = open_pool(pool)
    assert grown.ids().tolist() == [*names("a", N), *names("b", ADDED), *names("c", 30)]
    np.testing.assert_array_equal(grown.column("score").astype("f4"), everything[:, 0])
    assert grown.columns == ("score",)
    assert hkm.verify(pool).sound


def test_rows_of_tables_and_arrays_name_their_ids(folder: Path) -> None:
    target, pool, x = folder / "l2.zarr", folder / "pool.zarr", rows(3, 9)
    columns = {"key": names("c", 9), "score": x[:, 0].astype("f8"), "text": list(x), "image": list(-x)}
    pd.DataFrame(columns).to_parquet(folder / "new.parquet")
    hkm.update(target, pool, folder / "new.parquet", ids="key", column="image")
    hkm.ingest(rows(0), folder / "plain.zarr", ids=np.arange(N))
    hkm.build_hierarchy(folder / "plain.zarr", folder / "tree.zarr", hkm.Config.from_flags((4,), n_resamples=0))
    hkm.update(folder / "tree.zarr", folder / "plain.zarr", x[:4], x[4:], ids=np.arange(N, N + 9))
    for path, new, ids in ((pool, -x, names("c", 9)), (folder / "plain.zarr", x, np.arange(N, N + 9))):
        grown = open_pool(path)
        np.testing.assert_array_equal(grown.rows().read(N, N + 9), new)
        assert grown.ids()[N:].tolist() == ids.tolist()
    np.testing.assert_array_equal(open_pool(pool).column("score")[N:], x[:, 0].astype("f8"))


def test_known_samples_are_skipped(folder: Path) -> None:
    target, pool, x = folder / "l2.zarr", folder / "pool.zarr", np.concatenate([rows(0)[::7], rows(3, 30)])
    key = np.concatenate([names("a", N)[::7], names("c", 30)])
    order = np.random.default_rng(1).permutation(len(x))
    week = folder / "week"
    week.mkdir()
    for part, some in enumerate(np.array_split(order, 3)):
        columns = {"key": key[some], "score": x[some, 0].astype("f8"), "vector": list(x[some])}
        pd.DataFrame(columns).to_parquet(week / f"{part}.parquet")
    words = ["update", *map(str, (target, pool, week)), "--ids", "key"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 1
    said = "and 85 more should not be in the pool already; leave such rows out, with --skip-known"
    assert said in refused.output
    before = hkm.open_hierarchy(target).load()
    left = order[order >= len(x) - 30]
    notes = []
    for _ in range(2):
        said = CliRunner().invoke(main, [*words, "--skip-known"])
        assert said.exit_code == 0, said.output
        assert f"{target}: 630 samples, of which 30 were added in the last update" in said.output
        notes += re.findall(r"(\d+ of \d+) new samples are in the pool already", said.output)
        grown = open_pool(pool)
        assert grown.ids().tolist() == [*names("a", N), *key[left]]
        np.testing.assert_array_equal(grown.rows().read(N, N + 30), x[left])
        np.testing.assert_array_equal(grown.column("score")[N:], x[left, 0].astype("f8"))
        check_by_hand(before, hkm.open_hierarchy(target), np.concatenate([rows(0), x[left]]), N)
    assert notes == ["86 of 116", "116 of 116"]
    assert hkm.verify(pool).sound
    assert hkm.verify(target).sound
    assert not list(folder.glob("*.w*"))


def test_known_samples_are_skipped_after_an_interruption(folder: Path) -> None:
    target, pool, x = folder / "l2.zarr", folder / "pool.zarr", np.concatenate([rows(0, 9), rows(3, 12)])
    hkm.update(folder / "cosine.zarr", pool, folder / "new.zarr")  # the pool has grown without this tree
    columns = {"key": np.append(names("a", 9), names("b", 12)), "score": x[:, 0].astype("f8"), "vector": list(x)}
    pd.DataFrame(columns).to_parquet(folder / "old.parquet")
    tree = hkm.update(target, pool, folder / "old.parquet", ids="key", skip_known=True)
    assert tree.hkm.n_samples == open_pool(pool).n_samples == N + ADDED


def test_only_rows_with_ids_are_known(folder: Path) -> None:
    hkm.ingest(rows(0), folder / "plain.zarr")
    tree = hkm.build_hierarchy(folder / "plain.zarr", folder / "t.zarr", hkm.Config.from_flags(4, n_resamples=0))
    with pytest.raises(InputError, match=r"skip_known=True should be for a pool with ids, but .*plain\.zarr has none"):
        hkm.update(folder / "t.zarr", folder / "plain.zarr", rows(5, 3), skip_known=True)
    with pytest.raises(InputError, match="skip_known should be of new samples that are no"):
        hkm.update(folder / "l2.zarr", folder / "pool.zarr", folder / "new.zarr", skip_known=True)
    table = {"key": np.arange(3), "score": np.zeros(3), "vector": list(rows(5, 3))}
    pd.DataFrame(table).to_parquet(folder / "numbers.parquet")
    with pytest.raises(InputError, match="ids of the new samples should be of the same kind as in the pool"):
        hkm.update(folder / "l2.zarr", folder / "pool.zarr", folder / "numbers.parquet", ids="key", skip_known=True)
    assert tree.hkm.n_samples == N


@pytest.mark.parametrize(
    ("new", "options", "said"),
    [
        (
            "bare.npy",
            [],
            r"bare\.npy should have ids, as .*pool\.zarr has; name their column with --ids, or ",
        ),
        (
            "bare.npy",
            ["--ids-file", "ids.txt"],
            r"bare\.npy should have the columns score, as .*pool\.zarr has; give them in the table of --ids-file,",
        ),
        ("bare.npy", ["--ids-file", "few.csv", "--ids", "id"], r"few\.csv: n_ids=2 should be 9, one per row"),
        ("two.npz", ["--ids", "c"], r"--column should be one of the arrays of .*two\.npz \(a, b\); choose one"),
        ("new.zarr", ["--ids-file", "ids.txt"], "--ids-file should be of new samples that are no pools"),
    ],
)
def test_options_of_rows_that_are_in_no_pool(folder: Path, new: str, options: list[str], said: str) -> None:
    np.save(folder / "bare.npy", rows(3, 9))
    (folder / "ids.txt").write_text("".join(f"c{i}\n" for i in range(9)))
    (folder / "few.csv").write_text("id,score\nc,1.5\nd,2.5\n")
    np.savez(folder / "two.npz", a=rows(3, 9), b=rows(3, 9), c=names("c", 9).astype(str), score=np.ones(9))
    known = open_pool(folder / "pool.zarr").fingerprint
    with contextlib.chdir(folder):
        result = CliRunner().invoke(main, ["update", "l2.zarr", "pool.zarr", new, *options])
    assert result.exit_code == 1
    assert re.search(said, result.output), result.output
    assert open_pool(folder / "pool.zarr").fingerprint == known


def test_the_same_embeddings_under_other_ids_are_other_samples(folder: Path) -> None:
    tree, pool = folder / "l2.zarr", folder / "pool.zarr"
    told: list[Event] = []
    with subscribe(told.append):
        for prefix, n in (("b", N + 3), ("c", N + 6), ("c", N + 6)):
            new = make_pool(folder / f"{prefix}{len(told)}.zarr", rows(1, 3), prefix)
            assert hkm.update(tree, pool, new).hkm.n_samples == n
    assert open_pool(pool).ids(np.arange(N, N + 6)).tolist() == ["b0", "b1", "b2", "c0", "c1", "c2"]  # type: ignore[union-attr]
    assert [event.fields["what"] for event in told if event.kind == "resumed"] == [
        "these samples are already in the pool"
    ]
    warned = [event.fields["message"] for event in told if event.kind == "warning"]
    assert warned == ["samples with the same embeddings were added before: they are in the pool twice"]


def test_stores_that_do_not_belong_together(folder: Path) -> None:
    with pytest.raises(InputError, match=r"l2\.zarr should be a tree of .*new\.zarr, but was built from .*pool\.zarr"):
        hkm.update(folder / "l2.zarr", folder / "new.zarr")
    zero = np.ones((3, D), "f4")
    zero[1] = 0
    with pytest.raises(InputError, match="n_zero_rows=1 of the new samples should be 0"):
        hkm.update(folder / "cosine.zarr", folder / "pool.zarr", make_pool(folder / "z.zarr", zero, "z"))
    store.create_group(folder / "l2.zarr.wip", {"format": "hkm_dask.tree"})
    with pytest.raises(InputError, match="it is an unfinished tree"):
        hkm.update(folder / "l2.zarr", folder / "pool.zarr", folder / "new.zarr")


def test_a_pool_that_another_has_replaced_is_not_said_to_be_the_trees_own(folder: Path) -> None:
    """It read: it should be a tree of pool.zarr, it was made of pool.zarr."""
    hkm.ingest(rows(7), folder / "pool.zarr", overwrite=True)
    fact = r"l2\.zarr should be a tree of .*pool\.zarr, but the content of that pool has changed; put the old one back"
    with pytest.raises(InputError, match=fact):
        hkm.update(folder / "l2.zarr", folder / "pool.zarr", folder / "new.zarr")


def test_a_tree_learns_the_new_name_of_its_pool(folder: Path) -> None:
    target = folder / "l2.zarr"
    moved = (folder / "pool.zarr").rename(folder / "renamed.zarr")
    before = hkm.open_hierarchy(target).load()
    with pytest.raises(StoreError, match=r"pool\.zarr is missing"):
        hkm.sample(target, 9, within="best", by="score")
    for is_new in (True, False):
        said = CliRunner().invoke(main, ["update", str(target), str(moved)])
        assert said.exit_code == 0
        assert (f"{target} finds its pool at {moved} from now on" in said.output) == is_new
    assert len(hkm.sample(target, 9, within="best", by="score")) == 9
    assert hkm.open_hierarchy(target).load().equals(before)
    assert hkm.verify(target).sound


def test_the_page(tmp_path: Path) -> None:
    run = run_page("docs/ask-a-tree.md", tmp_path)
    drawn, more = (np.load(tmp_path / name) for name in ("subset.npy", "more.npy"))
    assert not set(drawn) & set(more)
    assert set(run.namespace["novel"]["id"]) <= {f"new{i}" for i in range(500)}
    assert len(run.namespace["typical"]) == 10
