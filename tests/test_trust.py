"""Stored data are verified: chunks, metadata and links that were altered, swapped, replaced or planted."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

from hkm_dask import cli
from hkm_dask.config import Config, Level
from hkm_dask.curation.dedup import dedup
from hkm_dask.data import layout
from hkm_dask.data.chunks import StoredArray, open_array
from hkm_dask.data.files import remove
from hkm_dask.data.locks import lock
from hkm_dask.data.pool import open_pool
from hkm_dask.data.rows import ZarrRows
from hkm_dask.errors import StoreError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.hierarchy.checkpoint import Checkpoints
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.kmeans.estimator import KMeans
from hkm_dask.kmeans.fit import Fit
from hkm_dask.view.sample_sources import SampleSources

pytestmark = pytest.mark.faults

CONFIG = Config(levels=(Level(n_clusters=12, n_resamples=1, max_iter=4), Level(n_clusters=3, n_resamples=0)), seed=4)
ROWS = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of four chunks, one of the same shape with other rows, and a tree over the first."""
    folder = tmp_path_factory.mktemp("stores")
    for name, rows in (("pool", ROWS), ("other", ROWS[::-1].copy())):
        np.save(folder / "rows.npy", rows)
        ids = [f"{name} {row}" for row in range(len(rows))]
        ingest(folder / "rows.npy", folder / f"{name}.zarr", ids=ids, chunk_mb=500 * 24 / 2**20)
    build_hierarchy(folder / "pool.zarr", folder / "tree.zarr", CONFIG)
    build_hierarchy(folder / "other.zarr", folder / "other tree.zarr", CONFIG)
    return folder


@pytest.fixture
def copies(stores: Path, tmp_path: Path) -> Path:
    shutil.copytree(stores, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def swap(first: Path, second: Path) -> None:
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def alter_rows(file: Path) -> None:
    """Change a value of a chunk, and make its checksum right."""
    data = bytearray(file.read_bytes()[:-4])
    data[100] ^= 1
    file.write_bytes(data + google_crc32c.value(bytes(data)).to_bytes(4, "little"))


def of_attributes(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "pool.zarr/zarr.json", lambda m: m["attributes"].__setitem__(name, value))


POOL = {
    "max_abs": (of_attributes("max_abs", 1e-6), "attributes were altered"),
    "fingerprint": (of_attributes("fingerprint", "0" * 64), "attributes were altered"),
    "sources": (of_attributes("sources", ["elsewhere.npy"]), "attributes were altered"),
    "note": (of_attributes("note", "mine"), "attributes were altered"),
    "type": (
        lambda folder: edit(folder / "pool.zarr/embeddings/zarr.json", lambda m: m.update(data_type="int32")),
        r"embeddings: its zarr.json is missing or was altered",
    ),
    "no array": (lambda folder: shutil.rmtree(folder / "pool.zarr/mean"), "mean: its zarr.json is missing"),
    "swapped chunks": (
        lambda folder: swap(folder / "pool.zarr/embeddings/c/0/0", folder / "pool.zarr/embeddings/c/2/0"),
        r"chunk 0 .*rows 0:500\) is not the chunk that was written here; make it again from its sources",
    ),
    "a chunk of another pool": (
        lambda folder: shutil.copy(folder / "other.zarr/embeddings/c/1/0", folder / "pool.zarr/embeddings/c/1/0"),
        "chunk 1 .* is not the chunk",
    ),
    "values": (lambda folder: alter_rows(folder / "pool.zarr/embeddings/c/3/0"), "chunk 3 .* is not the chunk"),
    "no checksums": (lambda folder: (folder / "pool.zarr/embeddings/checksums").unlink(), "checksums is missing or of"),
    "checksums of another pool": (
        lambda folder: shutil.copy(folder / "other.zarr/embeddings/checksums", folder / "pool.zarr/embeddings"),
        "checksums is missing or of another array",
    ),
    "the array of another pool": (
        lambda folder: (
            shutil.rmtree(folder / "pool.zarr/embeddings"),
            shutil.copytree(folder / "other.zarr/embeddings", folder / "pool.zarr/embeddings"),
        ),
        "embeddings: its zarr.json is missing or was altered",
    ),
}


@pytest.mark.parametrize("damage", POOL)
def test_an_altered_pool_is_clustered_by_nothing(copies: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = POOL[damage]
    spoil(copies)
    with pytest.raises(StoreError, match=message):
        build_hierarchy(copies / "pool.zarr", copies / "new.zarr", CONFIG)
    assert not (copies / "new.zarr").exists()
    with pytest.raises(StoreError, match=message):
        KMeans(n_clusters=3).fit(str(copies / "pool.zarr"))
    command = ["cluster", str(copies / "pool.zarr"), str(copies / "new.zarr"), "--n-clusters", "5"]
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code == 1
    assert re.match(rf"Error: .*{message}", capsys.readouterr().err)


def test_ids_of_another_pool_are_refused(copies: Path) -> None:
    shutil.copy(copies / "other.zarr/ids/c/0", copies / "pool.zarr/ids/c/0")
    with pytest.raises(StoreError, match=r"ids: chunk 0 .* is not the chunk"):
        open_pool(copies / "pool.zarr").ids()


def test_a_wrong_bound_is_found_by_the_first_row_beyond_it(copies: Path) -> None:
    """Even where someone made the digest right."""

    def lower(metadata: dict[str, Any]) -> None:
        metadata["attributes"]["max_abs"] = 1e-6
        listed = metadata["consolidated_metadata"]["metadata"]
        metadata["attributes"]["digest"] = layout.metadata_digest(metadata["attributes"], listed)

    edit(copies / "pool.zarr/zarr.json", lower)
    with pytest.raises(StoreError, match=r"values reach \d.*, its attributes say max_abs=1e-06"):
        build_hierarchy(copies / "pool.zarr", copies / "new.zarr", CONFIG)


@pytest.mark.parametrize("stored", [np.float16, np.float32])
@pytest.mark.parametrize("value", [-30.0, 30.0, np.nan, -np.nan, np.inf, -np.inf])
def test_values_beyond_the_bound_of_a_pool(tmp_path: Path, stored: type, value: float) -> None:
    rows = ROWS[:50].astype(stored)
    np.save(tmp_path / "rows.npy", rows)
    pool = ingest(tmp_path / "rows.npy", tmp_path / "pool.zarr")
    assert np.array_equal(pool.rows().read(0, 50), rows)
    rows[7, 3] = value
    array = open_array(tmp_path / "pool.zarr/embeddings")
    StoredArray(array.path, array.spec).write(0, rows)
    bounded = ZarrRows(tmp_path / "pool.zarr", "embeddings", max_abs=pool.max_abs)
    object.__setattr__(bounded.array, "fingerprint", "")
    for read in (lambda: bounded.read(5, 9), lambda: bounded.take(np.array([1, 7]))):
        with pytest.raises(StoreError, match=f"its attributes say max_abs={pool.max_abs:.6g}"):
            read()
    assert np.array_equal(bounded.read(8, 50), rows[8:])


# --- replaced while in use --------------------------------------------------------------------------------------------


def replace(folder: Path, name: str, other: str) -> None:
    shutil.rmtree(folder / name)
    shutil.copytree(folder / other, folder / name)


def test_a_pool_replaced_before_it_is_read_fails(copies: Path) -> None:
    pool = open_pool(copies / "pool.zarr")
    replace(copies, "pool.zarr", "other.zarr")
    with pytest.raises(StoreError, match="was replaced by another array meanwhile"):
        build_hierarchy(pool, copies / "new.zarr", CONFIG)


@pytest.mark.parametrize("when", ["step_started", "iteration", "level_finished"])
def test_a_pool_replaced_during_a_run_fails_at_the_commit(copies: Path, when: str) -> None:
    def meddle(event: Event) -> None:
        if event.kind == when:
            replace(copies, "pool.zarr", "other.zarr")

    with subscribe(meddle), pytest.raises(StoreError, match=r"was replaced by another|is not the chunk"):
        build_hierarchy(copies / "pool.zarr", copies / "new.zarr", CONFIG)
    assert not (copies / "new.zarr").exists()


def test_a_file_of_rows_replaced_during_a_run_fails(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)

    def meddle(event: Event) -> None:
        if event.kind == "seeding":
            np.save(tmp_path / "rows.npy", ROWS[::-1])

    with subscribe(meddle), pytest.raises(StoreError, match="was replaced or written to meanwhile"):
        build_hierarchy(tmp_path / "rows.npy", tmp_path / "new.zarr", CONFIG)


def test_a_pool_replaced_while_open_mixes_nothing(copies: Path) -> None:
    pool, rows = open_pool(copies / "pool.zarr"), np.array([1, 700])
    data = pool.to_xarray()
    np.testing.assert_array_equal(data["embeddings"], ROWS)
    replace(copies, "pool.zarr", "other.zarr")
    for ask in (
        lambda: pool.ids(rows),
        lambda: pool.ids(),
        lambda: pool.to_xarray(),
        lambda: data["ids"][:3].to_numpy(),
        lambda: data["embeddings"].to_numpy(),
    ):
        with pytest.raises(StoreError, match=r"was replaced by another pool|is not the chunk|may have been replaced"):
            ask()


def test_columns_of_a_replaced_pool_are_not_shown_for_its_own(tmp_path: Path) -> None:
    for name, rows in (("pool", ROWS[:50]), ("other", ROWS[50:100])):
        table = {"embedding": rows.tolist(), "id": list(range(50)), "caption": [f"{name} {row}" for row in range(50)]}
        pq.write_table(pa.table(table), tmp_path / "rows.parquet")
        ingest(tmp_path / "rows.parquet", tmp_path / f"{name}.zarr", ids="id", keep=["caption"], chunk_mb=0.0001)
    pool = open_pool(tmp_path / "pool.zarr")
    untouched, found = SampleSources(50, pool), dedup(pool, 0.999)
    assert untouched.captions is not None
    replace(tmp_path, "pool.zarr", "other.zarr")
    for ask in (
        lambda: pool.column("caption"),
        lambda: pool.column_piece("caption", 0, 3),
        lambda: untouched.captions.take(np.array([3])),
        found.table,
    ):
        with pytest.raises(StoreError, match="was replaced by another pool"):
            ask()


def test_a_tree_replaced_while_open_mixes_nothing(copies: Path) -> None:
    tree, fresh = open_hierarchy(copies / "tree.zarr"), open_hierarchy(copies / "tree.zarr")
    lazy, path = tree.hkm.labels(2), tree.hkm.path(0)
    replace(copies, "tree.zarr", "other tree.zarr")
    assert tree.hkm.path(0) == path  # what was read is kept
    for ask in (
        lambda: lazy.to_numpy(),
        lambda: tree.hkm.labels(1).to_numpy(),
        lambda: tree.hkm.members(1, 0),
        lambda: tree["level_1/members_1"].to_numpy(),
        lambda: fresh["level_1/centroids"][3:5].to_numpy(),
        lambda: fresh.hkm.path(0),
    ):
        with pytest.raises(StoreError, match=r"is not the chunk|may have been replaced"):
            ask()


# --- trees ------------------------------------------------------------------------------------------------------------


def test_arrays_of_a_tree_are_read_as_they_are_by_any_index(stores: Path) -> None:
    tree, plain = open_hierarchy(stores / "tree.zarr"), xr.open_datatree(stores / "tree.zarr", engine="zarr")
    for level in ("level_1", "level_2"):
        for name, values in plain[level].data_vars.items():
            checked = tree[level][name]
            assert (checked.dims, checked.dtype, checked.attrs) == (values.dims, values.dtype, values.attrs)
            assert np.array_equal(checked, values, equal_nan=True)
            for index in (0, -1, slice(1, 3), slice(None, None, -1), slice(3, 0, -2), slice(9, 2), [0, -1]):
                assert np.array_equal(checked[index], values[index], equal_nan=True), (level, name, index)
    assert np.array_equal(tree["level_1/centroids"][2:7, ::2], plain["level_1/centroids"][2:7, ::2])


def test_plain_xarray_cannot_take_a_missing_chunk_for_data(copies: Path) -> None:
    for file in [*copies.glob("tree.zarr/level_*/*/c/0"), *copies.glob("pool.zarr/*/c/0")]:
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    for store in ("tree.zarr", "pool.zarr"):
        tree = xr.open_datatree(copies / store, engine="zarr")
        for node in tree.subtree:
            for name, values in node.data_vars.items():
                value = values.to_numpy().flat[0]
                if values.dtype.kind == "f":
                    assert value == -np.inf, name
                elif values.dtype.kind == "i":
                    assert value == np.iinfo(values.dtype).min, name
                else:
                    assert value == "a chunk is missing"
    with pytest.raises(StoreError, match=r"chunk 0 .* is missing"):
        open_hierarchy(copies / "tree.zarr")["level_1/labels"].to_numpy()


TREE = {
    "an attribute": lambda folder: edit(folder / "zarr.json", lambda m: m["attributes"].update(seed=5)),
    "an attribute of a level": lambda folder: edit(folder / "level_1/zarr.json", lambda m: m["attributes"].update(x=5)),
    "an attribute of an array": lambda folder: edit(
        folder / "level_2/labels/zarr.json", lambda m: m["attributes"].update(missing=0)
    ),
    "a level of another tree": lambda folder: (
        shutil.rmtree(folder / "level_2"),
        shutil.copytree(folder.parent / "other tree.zarr/level_2", folder / "level_2"),
    ),
}


@pytest.mark.parametrize("damage", TREE)
def test_altered_metadata_of_a_tree(copies: Path, damage: str) -> None:
    TREE[damage](copies / "tree.zarr")
    with pytest.raises(StoreError, match="altered since it was completed; make it again from its pool"):
        open_hierarchy(copies / "tree.zarr")


@pytest.mark.parametrize("name", ["c/0", "checksums"])
def test_a_finished_level_that_was_altered_is_built_again(copies: Path, name: str) -> None:
    class Stop(BaseException):
        pass

    def stop(event: Event) -> None:
        if event.kind == "level_started" and event.fields["level"] == 2:  # which has read the level below
            raise Stop

    with subscribe(stop), pytest.raises(Stop):
        build_hierarchy(copies / "pool.zarr", copies / "new.zarr", CONFIG)
    altered = "level_1/centroids/c/0/0" if name == "c/0" else "level_1/centroids/checksums"
    shutil.copy(copies / "other tree.zarr" / altered, copies / "new.zarr.wip" / altered)
    told: list[str] = []
    with subscribe(lambda event: told.append(event.fields["message"]) if event.kind == "warning" else None):
        tree = build_hierarchy(copies / "pool.zarr", copies / "new.zarr", CONFIG)
    assert len(told) == 1
    assert ("level_1/centroids: chunk 0" if name == "c/0" else altered) in told[0]
    assert told[0].endswith("level 1 is built again")
    for level, node in open_hierarchy(copies / "tree.zarr").children.items():
        assert node.dataset.equals(tree[level].dataset)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_any_altered_checkpoint_is_none(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, "run")
    done = Fit(np.arange(6, dtype=np.float32).reshape(3, 2), np.array([2.0, 1.0]), 0, 1.0, "")
    kept.finish(1, 0, done)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    assert np.array_equal(kept.finished(1).centroids, done.centroids)
    assert len(Checkpoints(tmp_path, "another run").finished(1)) == 0
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert len(kept.finished(1)) == 0, place
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        assert len(kept.finished(1)) == 0, length
    file.write_bytes(whole)
    file.rename(file.with_name("level_2-step_0.npz"))
    assert len(kept.finished(2)) == 0


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".new.zarr.lock", "new.zarr.wip", "new.zarr.work", ".new.zarr.retired"])
def test_planted_links_are_refused_and_what_they_lead_to_is_kept(copies: Path, name: str) -> None:
    victim = copies / "victim"
    if name.endswith(".lock"):
        victim.write_text("precious")
    else:
        victim.mkdir()
        (victim / "kept").write_text("precious")
    (copies / name).symlink_to(victim)
    with pytest.raises(StoreError, match=f"{name} is a link but should be made by hkm_dask"):
        build_hierarchy(copies / "pool.zarr", copies / "new.zarr", CONFIG)
    assert (victim if victim.is_file() else victim / "kept").read_text() == "precious"
    assert (copies / name).is_symlink()


def test_a_link_is_not_removed_nor_the_metadata_of_what_it_leads_to(copies: Path) -> None:
    (copies / "link").symlink_to(copies / "pool.zarr")
    with pytest.raises(StoreError, match="link is a link but should be made by hkm_dask"):
        remove(copies / "link")
    assert open_pool(copies / "pool.zarr").n_samples == len(ROWS)


def test_a_lock_with_a_second_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    os.link(tmp_path / "victim", tmp_path / ".a.zarr.lock")
    with pytest.raises(StoreError, match="is a link"), lock(tmp_path / "a.zarr"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_owns_is_refused_where_all_may_write(copies: Path) -> None:
    (copies / "new.zarr.wip").mkdir()
    os.chown(copies / "new.zarr.wip", 65534, 65534)
    copies.chmod(0o1777)
    with pytest.raises(StoreError, match="belongs to another user, 65534"):
        build_hierarchy(copies / "pool.zarr", copies / "new.zarr", CONFIG)
    copies.chmod(0o755)
    build_hierarchy(copies / "pool.zarr", copies / "new.zarr", CONFIG)
