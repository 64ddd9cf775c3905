import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from hkm_dask.config import Config, Level
from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.errors import StoreError
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.view.info import describe, render

NAN = float("nan")


def put(group: Path, name: str, values: Any, dims: tuple[str, ...]) -> None:
    array = np.asarray(values)
    store.create_array(group, name, shape=array.shape, dtype=array.dtype, chunks=array.shape, dims=dims)
    open_array(group / name).write(0, array)


def make_tree(path: Path, *, levels: int = 2, complete: bool = True) -> Path:
    """Lay down by hand what `describe` reads of a tree: 6 of 7 rows in 4 clusters, one empty; these in 2."""
    config = Config(seed=3, levels=(Level(n_clusters=4, n_resamples=1), Level(n_clusters=2, n_resamples=0)))
    attributes = {
        "format": layout.TREE_FORMAT,
        "format_version": layout.FORMAT_VERSION,
        "config": config.to_json(),
        "seed": 3,
        "metric": "l2",
        "pool": "/data/pool.zarr",
        "pool_fingerprint": "abc",
        "software": "hkm-dask 0.1.0",
    }
    store.create_group(path, attributes)
    first, second = path / "level_1", path / "level_2"
    if levels >= 1:
        store.create_group(first)
        put(first, "labels", np.array([0, 0, 0, 1, 3, 3, -1], dtype="i4"), ("sample",))
        put(first, "sizes", np.array([3, 1, 0, 2], dtype="i8"), ("cluster_1",))
        put(first, "inertia", np.array([[9.0, 5.0, 4.0], [3.5, NAN, NAN]]), ("step", "iteration"))
        store.mark_complete(first, {"seconds": 1.5, "step_seconds": [0.75, 0.25]})
    if levels >= 2:
        store.create_group(second)
        put(second, "labels", np.array([0, 0, -1, 1], dtype="i4"), ("cluster_1",))
        put(second, "sizes", np.array([2, 1], dtype="i8"), ("cluster_2",))
        put(second, "inertia", np.array([[2.0, 1.25]]), ("step", "iteration"))
        store.mark_complete(second, {"seconds": 0.5})
    if complete:
        store.mark_complete(path, {"seconds": 2.25})
    return path


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_a_pool_is_described(tmp_path: Path) -> None:
    ingest(np.arange(12, dtype="f4").reshape(4, 3), tmp_path / "pool.zarr")
    facts = describe(tmp_path / "pool.zarr")
    assert facts["kind"] == "pool"
    assert facts["complete"] is True
    assert (facts["n_samples"], facts["n_features"], facts["dtype"]) == (4, 3, "float32")
    assert facts["bytes"] == 48
    assert (facts["n_chunks"], facts["chunk_rows"], facts["max_abs"], facts["has_ids"]) == (1, 4, 11.0, False)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts

    text = render(facts)
    assert text.splitlines()[0].endswith("pool.zarr: a pool, complete")
    assert ["samples", "4"] in words(text)
    assert ["size", "48", "bytes"] in words(text)


def test_values_of_a_pool_stand_in_one_column(tmp_path: Path) -> None:
    ingest(np.ones((4, 3), dtype="f4"), tmp_path / "pool.zarr")
    lines = render(describe(tmp_path / "pool.zarr")).splitlines()[1:]
    starts = {len(line) - len(line[2:].partition("  ")[2].lstrip()) for line in lines}
    assert len(starts) == 1


def test_a_tree_is_described(tmp_path: Path) -> None:
    facts = describe(make_tree(tmp_path / "tree.zarr"))
    assert (facts["kind"], facts["complete"], facts["seed"], facts["seconds"]) == ("tree", True, 3, 2.25)
    assert facts["config"]["levels"][0]["n_clusters"] == 4
    first, second = facts["levels"]
    assert first == {
        "level": 1,
        "complete": True,
        "n_inputs": 7,
        "n_members": 6,
        "n_clusters": 4,
        "n_non_empty": 3,
        "size_mean": 2.0,
        "size_min": 1,
        "size_max": 3,
        "n_steps": 2,
        "n_iter": [3, 1],
        "inertia": 3.5,
        "history": [[9.0, 5.0, 4.0], [3.5]],
        "seconds": 1.5,
        "step_seconds": [0.75, 0.25],
    }
    assert (second["n_inputs"], second["n_members"], second["inertia"]) == (4, 3, 1.25)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_tree_is_told_in_columns(tmp_path: Path) -> None:
    text = render(describe(make_tree(tmp_path / "tree.zarr")))
    assert text.splitlines()[0].endswith("tree.zarr: a tree, complete")
    rows = words(text)
    assert ["samples", "6", "of", "the", "pool's", "7"] in rows
    assert ["1", "4", "3", "2.0", "1", "3", "2", "4", "3.5", "1.5"] in rows
    assert ["2", "2", "2", "1.5", "1", "2", "1", "2", "1.25", "0.5"] in rows
    assert "  level 1  3: 4 in 0.8 s, 1: 3.5 in 0.2 s" in text.splitlines()
    assert "  level 2  2: 1.25" in text.splitlines()  # made before times were kept
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["level", "clusters"])
    assert len({len(line) for line in lines[head : head + 3]}) == 1


def test_a_tree_is_told_in_80_columns(tmp_path: Path) -> None:
    """Of a large tree whose levels differ in one setting."""
    facts = describe(make_tree(tmp_path / "tree.zarr"))
    settings = dict.fromkeys(facts["config"]["levels"][0])
    levels = [Level(n_clusters=k, max_iter=max_iter).model_dump() for k, max_iter in ((10**4, 50), (100, 20))]
    assert set(settings) == set(levels[0])
    facts["config"]["levels"] = levels
    facts["levels"][0] |= {
        "n_inputs": 10**6, "n_members": 10**6, "n_clusters": 10**4, "n_non_empty": 10**4, "size_mean": 100.0,
        "size_max": 9876, "n_steps": 11, "n_iter": [50] * 11, "seconds": 9876.5, "history": [[1.23456e8] * 50] * 11,
        "step_seconds": [9.9] * 11,
    }  # fmt: skip
    facts["levels"][1]["n_non_empty"] = facts["levels"][1]["n_clusters"]
    lines = render(facts).splitlines()[1:]
    assert max(map(len, lines)) < 80
    text = "\n".join(lines)
    assert "non-empty" not in text
    assert all(line.count("50:") == line.count("1.23456e+08 in 9.9 s") for line in lines)
    assert ["level", "n_clusters", "max_iter"] in words(text)
    assert ["2", "100", "20"] in words(text)
    assert "  all levels  init coreset, n_resamples 10, n_splits 1, " in text


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_an_unfinished_tree_tells_how_far_it_is_and_how_to_go_on(tmp_path: Path, levels: int) -> None:
    make_tree(tmp_path / "tree.zarr.wip", levels=levels, complete=False)
    facts = describe(tmp_path / "tree.zarr")
    assert facts["complete"] is False
    assert facts["store"].endswith("tree.zarr.wip")
    assert [level["complete"] for level in facts["levels"]] == [True] * levels
    text = render(facts)
    assert "a tree, not complete" in text
    assert f"{levels} of 2 finished" in text
    assert "run the same `hkm cluster` again" in text


def test_a_level_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    wip = make_tree(tmp_path / "tree.zarr.wip", levels=1, complete=False)
    store.create_group(wip / "level_2")
    facts = describe(wip)
    assert facts["levels"][1] == {"level": 2, "complete": False}
    assert "1 of 2 finished" in render(facts)


def test_a_finished_tree_that_was_not_renamed_yet_is_not_complete(tmp_path: Path) -> None:
    assert describe(make_tree(tmp_path / "tree.zarr.wip"))["complete"] is False


def test_a_finished_store_is_preferred_to_what_is_beside_it(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree.zarr")
    make_tree(tmp_path / "tree.zarr.wip", levels=0, complete=False)
    assert describe(tmp_path / "tree.zarr")["complete"] is True


def test_an_unfinished_pool_is_told(tmp_path: Path) -> None:
    store.create_group(tmp_path / "p.zarr.wip", {"format": layout.POOL_FORMAT, "format_version": layout.FORMAT_VERSION})
    text = render(describe(tmp_path / "p.zarr"))
    assert "a pool, not complete" in text
    assert "hkm ingest" in text


def test_what_is_missing_is_named_and_its_neighbor_guessed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"pool\.zarr is missing; check the path$"):
        describe(tmp_path / "nowhere" / "pool.zarr")
    ingest(np.ones((4, 3), dtype="f4"), tmp_path / "pool.zarr")
    with pytest.raises(StoreError, match=r"is missing; did you mean pool\.zarr\? If not, check the path$"):
        describe(tmp_path / "pol.zarr")


def test_what_is_foreign_is_refused(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "foreign.zarr"))
    with pytest.raises(StoreError, match="should be a pool, tree or assignment of hkm, but its format is another; "):
        describe(tmp_path / "foreign.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="but it is not a Zarr group; "):
        describe(tmp_path / "folder")
    (tmp_path / "file.npy").write_bytes(b"x")
    with pytest.raises(StoreError, match="but it is not a Zarr group; "):
        describe(tmp_path / "file.npy")


@pytest.mark.parametrize("version", [0, 99])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    store.create_group(tmp_path / "t.zarr", {"format": layout.TREE_FORMAT, "format_version": version, "complete": True})
    with pytest.raises(StoreError, match=f"format_version={version} should be"):
        describe(tmp_path / "t.zarr")


def test_a_damaged_store_is_an_error_not_a_guess(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree.zarr")
    shutil.rmtree(tree / "level_1" / "sizes" / "c")
    with pytest.raises(StoreError, match="sizes"):
        describe(tree)


def test_nothing_of_a_store_is_obeyed_by_a_terminal(tmp_path: Path) -> None:
    ingest(np.ones((4, 3), dtype="f4"), tmp_path / "pool\x1b[2J.zarr")
    text = render(describe(tmp_path / "pool\x1b[2J.zarr"))
    assert "pool\\x1b[2J.zarr: a pool, complete" in text
    tree = make_tree(tmp_path / "tree.zarr", complete=False)
    store.create_group(tree, {"pool": "a\x07b\nc", "software": "\x9b\u202e"})
    assert all(line.isprintable() for line in render(describe(tree)).split("\n"))
    assert all(line.isprintable() for line in json.dumps(describe(tree), indent=2).split("\n"))  # as `hkm info --json`


@pytest.mark.faults
@pytest.mark.parametrize(
    "attributes",
    [
        {"seconds": "long"},
        {"seconds": {"a": 1}},
        {"config": "{"},
        {"config": "[" * 100_000},
        {"config": [1]},
        {"config": '{"levels": 5}'},
        {"config": '{"levels": [[1]]}'},
        {"config": '{"levels": [{"a": 1}, {"b": 1}]}'},
        {"config": '{"seed": NaN}'},
        {"config": '{"seed": Infinity}'},
    ],
)
def test_odd_attributes_are_damage(tmp_path: Path, attributes: dict[str, Any]) -> None:
    tree = make_tree(tmp_path / "tree.zarr", complete=False)
    store.create_group(tree, attributes)
    with pytest.raises(StoreError, match=r"tree.zarr is damaged \(.*\); make it again from its pool") as caught:
        describe(tree)
    assert len(str(caught.value).splitlines()) == 1


def test_attributes_that_are_none_are_damage(tmp_path: Path) -> None:
    for text in (
        '{"attributes": [1]}',
        '{"attributes": {"format": ["hkm_dask.pool"]}}',
        '{"attributes": {"format": {}}}',
    ):
        (tmp_path / "zarr.json").write_text(text)
        with pytest.raises(StoreError):
            describe(tmp_path)
