"""Shared arrays: by reference within a process, by file between processes."""

import pickle
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.compute import shared_arrays
from hkm_dask.compute.shared_arrays import RecentCache, SharedArray, SharedArrayStore
from hkm_dask.data.objects import ObjectPath
from hkm_dask.errors import InputError, StoreError
from tests.forked import run_forked
from tests.object_store import ObjectStore

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_inside_a_process_an_array_is_passed_by_reference() -> None:
    handle = SharedArrayStore().put("centroids", VALUES)
    assert handle.get() is VALUES
    assert handle.path is None
    handle.delete()
    assert handle.get() is VALUES


def test_by_file_a_handle_is_small_and_holds_the_same_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
    values[3] = np.nan
    handle = SharedArrayStore(str(tmp_path)).put("centroids-1", values)
    assert len(pickle.dumps(handle)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(handle)).get(), values)
    assert [path.name for path in tmp_path.iterdir()] == ["centroids-1.npy"]


def test_another_process_reads_it(tmp_path: Path) -> None:
    handle = SharedArrayStore(str(tmp_path / "")).put("with a space", VALUES)
    load = "from hkm_dask.compute.shared_arrays import SharedArray"
    code = f"{load}; print(SharedArray(path={handle.path!r}).get().tolist())"
    root = Path(shared_arrays.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == str(VALUES.tolist())


@pytest.mark.parametrize("values", [VALUES, np.arange(7), np.zeros((5, 0))], ids=["rows", "numbers", "no columns"])
def test_a_range_of_rows_is_read_without_the_others(values: np.ndarray, tmp_path: Path) -> None:
    for array_store in (SharedArrayStore(), SharedArrayStore(str(tmp_path))):
        handle = array_store.put("values", values)
        for start, stop in [(0, len(values)), (1, 3), (2, 2), (len(values), len(values))]:
            np.testing.assert_array_equal(handle.read(start, stop), values[start:stop])
            assert handle.read(start, stop).dtype == values.dtype


def test_a_file_is_read_once_per_process_while_it_is_in_use(tmp_path: Path) -> None:
    handle = SharedArrayStore(str(tmp_path)).put("once", VALUES)
    first = handle.get()
    Path(str(handle.path)).unlink()
    assert handle.get() is first
    assert SharedArray(path=handle.path).get() is first


def test_arrays_stay_in_memory_as_far_as_their_bytes_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array_store = SharedArrayStore(str(tmp_path))
    handles = [array_store.put(f"array-{i}", np.full(4, i)) for i in range(20)]
    monkeypatch.setattr(shared_arrays.RecentCache, "limit", 5 * 32)
    kept = [handle.get() for handle in handles]
    assert shared_arrays._loaded.used <= 5 * 32
    assert handles[0].get() is not kept[0]
    assert handles[-1].get() is kept[-1]
    assert [int(handle.get()[0]) for handle in handles] == list(range(20))


def test_what_is_too_much_goes_before_more_is_made() -> None:
    cache, held = RecentCache(n_least=2, most_bytes=10), list[int]()

    def make() -> np.ndarray:
        held.append(cache.used)
        return np.zeros(10)

    for key in range(4):
        cache.get(key, (), make)
    assert held == [0, 80, 80, 80]


def test_bytes_are_counted_right_whatever_comes_and_goes() -> None:
    rng, cache = np.random.default_rng(0), RecentCache(n_least=3, most_bytes=4000)
    sources = [tuple(SharedArray(array=np.zeros(1)) for _ in range(8)) for _ in range(2)]

    def twice(key: int) -> np.ndarray:
        cache.get(key, (sources[0][key],), lambda: np.zeros(key))  # as a thing may be made of another, or of itself
        return np.zeros(key)

    for step in range(2000):
        key, action = int(rng.integers(8)), int(rng.integers(8))
        if action == 0:
            cache.drop(key)
        elif step % 500 == 499:
            cache.clear()
        else:
            make = partial(twice, key) if action == 7 else partial(np.zeros, 90)
            made = cache.get(key, (sources[action % 2][key],), make)
            assert isinstance(made, np.ndarray)
        assert cache.used == sum(n_bytes for *_, n_bytes in cache._entries.values())
    assert cache.used <= 4000


def put_large(url: str) -> None:
    """Put an array of 48 MB in an object store, by a process beside that of the server."""
    array = np.arange(6_000_000, dtype="f8").reshape(-1, 3)
    tracemalloc.start()
    SharedArrayStore(url).put("large", array)
    peak = tracemalloc.get_traced_memory()[1]
    assert peak < array.nbytes / 8, f"{peak:,} bytes"  # without obstore's own, a dozen pieces of 5 MiB at most


def test_a_large_array_goes_to_an_object_store_piece_by_piece(bucket: ObjectPath, object_store: ObjectStore) -> None:
    assert run_forked(put_large, bucket.url, **object_store.environment()) == 0
    array, array_store = np.arange(6_000_000, dtype="f8").reshape(-1, 3), SharedArrayStore(bucket.url)
    shared = SharedArray(f"{bucket.url}/large.npy")
    np.testing.assert_array_equal(shared.get(), array)
    np.testing.assert_array_equal(array_store.put("view", array[:9:2]).get(), array[:9:2])
    np.testing.assert_array_equal(shared.read(7, 9), array[7:9])
    assert array_store.put("none", array[:0]).get().shape == (0, 3)
    records = np.zeros(3, [("row", "<i8"), ("label", "<i4")])
    assert array_store.put("records", records).get().dtype == records.dtype


def test_a_repeated_task_writes_the_same_file_again(tmp_path: Path) -> None:
    array_store = SharedArrayStore(str(tmp_path))
    first, second = array_store.put("again", VALUES), array_store.put("again", VALUES.copy())
    assert first == second
    np.testing.assert_array_equal(second.get(), VALUES)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_deleted_file_is_gone_and_may_be_deleted_again(tmp_path: Path) -> None:
    handle = SharedArrayStore(str(tmp_path)).put("gone", VALUES)
    handle.get()
    handle.delete()
    handle.delete()
    assert not list(tmp_path.iterdir())
    with pytest.raises(StoreError, match=r"gone\.npy should be readable by every worker; put the output on a shared"):
        handle.get()


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="holds pickled objects, which are never loaded"):
        SharedArray(path=str(path)).get()
