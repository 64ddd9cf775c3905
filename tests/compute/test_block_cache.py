"""Blocks have the same rows with any memory limit, and are cached within the budget."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute.block_cache import REMEMBERED_BYTES, BlockCache, host_cache, iter_blocks
from hkm_dask.compute.partition import Part, split_parts
from hkm_dask.data.rows import ArrayRows, Rows


class Watched(Rows):
    """Rows that count how often each block was read; not in memory, as far as blocks can tell."""

    def __init__(self, array: np.ndarray, chunk_rows: int = 1) -> None:
        self.array, self.label, self.chunk_rows = array, "watched", chunk_rows
        self.n_rows, self.n_features = array.shape
        self.dtype = array.dtype
        self.key = ("watched", id(self))
        self.reads: Counter[tuple[int, int]] = Counter()
        self.started: dict[int, threading.Event] = {}

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        self.reads[start, stop] += 1
        self.started.setdefault(start, threading.Event()).set()
        if out is None:
            return self.array[start:stop].copy()
        assert out.shape == (stop - start, self.n_features)
        out[...] = self.array[start:stop]
        return out

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


def watched(n: int = 40, d: int = 4) -> Watched:
    return Watched(np.random.default_rng(1).normal(size=(n, d)).astype(np.float32))


@given(st.integers(1, 300), st.integers(1, 6), st.integers(1, 30), st.integers(1, 12), st.integers(0, 300))
def test_blocks_hold_their_rows_whatever_memory_they_are_read_into(
    n_rows: int, n_parts: int, block_rows: int, chunk_rows: int, kept_rows: int
) -> None:
    array = np.arange(2 * n_rows, dtype=np.float32).reshape(n_rows, 2)
    rows = Watched(array, chunk_rows)
    budget = 8 * kept_rows + REMEMBERED_BYTES * n_rows
    for part in split_parts(rows, n_parts, block_bytes=8 * block_rows, budget=budget):
        for _ in range(3):  # some blocks are kept from the first pass on, the others are read again
            for start, block in iter_blocks(part):
                np.testing.assert_array_equal(block, array[start : start + len(block)])
    host_cache.drop(rows.key)


# -- what is remembered -----------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 60), st.sampled_from(["put", "get", "drop"])),
    max_size=40,
)


@given(steps, st.integers(0, 100))
def test_the_cache_equals_a_slow_model(steps: list[tuple[str, int, int, str]], budget: int) -> None:
    cache, model = BlockCache(), {}  # the model: group -> {key: bytes}, in order of use
    for group, key, n_bytes, what in steps:
        if what == "drop":
            cache.drop(group)
            model.pop(group, None)
            continue
        entries = model.pop(group, None)
        if what == "get":
            expected = None if entries is None else entries.get(key)
            assert cache.get(group, key) == expected
        else:
            entries = entries or {}
            entries.pop(key, None)
            fits = sum(entries.values()) + n_bytes <= budget
            while (
                fits and sum(sum(other.values()) for other in model.values()) + sum(entries.values()) + n_bytes > budget
            ):
                model.pop(next(iter(model)))
            if fits:
                entries[key] = n_bytes
            assert cache.put(group, key, n_bytes, n_bytes, budget) == fits
        if entries is not None:
            model[group] = entries
        total = sum(sum(other.values()) for other in model.values())
        assert cache._used == total <= budget
    for group, entries in model.items():
        for key in range(5):
            assert cache.get(group, key) == entries.get(key)


def test_what_cannot_fit_drives_nothing_out() -> None:
    cache = BlockCache()
    cache.put("frame", "head", 64, 0, 100)
    cache.put("other rows", 0, "x", 30, 100)
    cache.put("rows", 0, "x", 70, 100)
    assert not cache.put("rows", 1, "y", 40, 100)
    assert not cache.put("rows", 2, "y", 1, 0)
    assert (cache.get("frame", "head"), cache.get("other rows", 0), cache.get("rows", 0)) == (64, "x", "x")


def test_the_group_used_longest_ago_goes_first() -> None:
    cache = BlockCache()
    for group in "abc":
        cache.put(group, 0, group, 30, 100)
    cache.get("a", 0)
    assert cache.put("d", 0, "d", 30, 100)
    assert [cache.get(group, 0) for group in "abcd"] == ["a", None, "c", "d"]


def test_what_is_not_replaced_is_forgotten() -> None:
    cache = BlockCache()
    cache.put("rows", 0, "old", 10, 100)
    assert not cache.put("rows", 0, "new", 200, 100)
    assert cache.get("rows", 0) is None
    cache.clear()
    assert cache._used == 0


def test_rows_that_hold_memory_count_until_they_are_dropped() -> None:
    cache = BlockCache()
    cache.hold("rows", 50)
    assert (cache.held, cache.used) == (50, 0)
    cache.drop("rows")
    assert cache.held == 0
    cache.hold("rows", 50)
    cache.clear()
    assert cache.held == 0


def test_other_groups_give_way_before_the_one_in_use() -> None:
    cache = BlockCache()
    for group in ("old", "in use", "new"):
        for key in range(2):
            cache.put(group, key, group, 10, 100)
    cache.shrink("in use", 30)
    assert [cache.get(group, 0) for group in ("old", "in use", "new")] == [None, "in use", None]
    cache.shrink("in use", 10)
    assert cache.used == 10


def test_what_stays_makes_room_where_a_later_pass_has_less() -> None:
    rows = watched(40, 100)  # blocks of 10 rows take 4000 bytes
    bounds = (0, 10, 20, 30, 40)
    less = 9000 + REMEMBERED_BYTES * 40
    list(iter_blocks(Part(rows, bounds, 1 << 20)))
    assert host_cache.used >= 16_000 > less
    list(iter_blocks(Part(rows, bounds, less)))
    assert host_cache.used <= less
    host_cache.drop(rows.key)


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 100, 300, 1 << 20])
def test_blocks_are_the_rows_whatever_the_budget(budget: int) -> None:
    rows = watched()
    part = Part(rows, (3, 10, 11, 25, 40), budget)
    for _ in range(3):
        blocks = [(first, block.copy()) for first, block in iter_blocks(part)]  # a block is valid until the next one
        assert [first for first, _ in blocks] == [3, 10, 11, 25]
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), rows.array[3:])
    host_cache.drop(rows.key)


def test_blocks_that_fit_stay_and_the_others_are_streamed() -> None:
    rows = watched(40, 4)  # blocks of 10 rows take 160 bytes
    part = Part(rows, (0, 10, 20, 30, 40), 350 + REMEMBERED_BYTES * 40)  # and room for what is remembered
    for _ in range(5):
        list(iter_blocks(part))
    assert rows.reads == {(0, 10): 1, (10, 20): 1, (20, 30): 5, (30, 40): 5}
    host_cache.drop(rows.key)


def test_room_is_kept_for_what_is_remembered_of_the_rows_of_this_process_alone() -> None:
    rows = watched(40, 4)
    part = Part(rows, (20, 30, 40), 350 + REMEMBERED_BYTES * 20, n_own=20)  # others have the first half
    for _ in range(5):
        list(iter_blocks(part))
    assert rows.reads == {(20, 30): 1, (30, 40): 1}
    host_cache.drop(rows.key)


def test_the_next_block_is_read_while_this_one_is_worked_on() -> None:
    rows = watched()
    for first, _ in iter_blocks(Part(rows, (0, 10, 20, 30, 40), 0)):
        if first + 10 < 40:
            assert rows.started.setdefault(first + 10, threading.Event()).wait(10)
        assert first + 20 not in rows.started  # one ahead and no more: memory
    assert set(rows.reads.values()) == {1}


def test_a_block_lost_between_passes_is_read_again() -> None:
    rows = watched()
    part = Part(rows, (0, 10, 20, 30, 40), 1 << 20)
    list(iter_blocks(part))
    blocks = []
    for first, block in iter_blocks(part):
        host_cache.drop(rows.key)  # another thread needed the room
        blocks.append(block)
        assert first == 10 * (len(blocks) - 1)
    np.testing.assert_array_equal(np.concatenate(blocks), rows.array)
    host_cache.drop(rows.key)


def test_rows_in_memory_are_neither_copied_nor_kept() -> None:
    rows = ArrayRows(np.zeros((20, 4), np.float32))
    for _, block in iter_blocks(Part(rows, (0, 10, 20), 1 << 20)):
        assert np.shares_memory(block, rows.array)
    assert host_cache.get(rows.key, (0, 10)) is None


def test_an_error_while_reading_ahead_reaches_the_reader(tmp_path: Path) -> None:
    class Broken(Watched):
        def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
            if start == 20:
                raise OSError("the disk is gone")
            return super().read(start, stop, out)

    rows = Broken(np.zeros((40, 2), np.float32))
    seen: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(first for first, _ in iter_blocks(Part(rows, (0, 10, 20, 30, 40), 0)))
    assert seen == [0, 10]


def test_a_pass_that_cuts_elsewhere_reads_only_what_is_not_there() -> None:
    rows = watched(40, 4)
    list(iter_blocks(Part(rows, (0, 12, 24), 1 << 20)))
    assert rows.reads == {(0, 12): 1, (12, 24): 1}
    for _ in range(2):
        blocks = list(iter_blocks(Part(rows, (6, 20, 30, 40), 1 << 20)))
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), rows.array[6:])
        assert [first for first, _ in blocks] == [6, 12, 24, 30]
    assert rows.reads == {(0, 12): 1, (12, 24): 1, (24, 30): 1, (30, 40): 1}
    assert host_cache.used == rows.array.nbytes  # nothing is kept twice
    host_cache.drop(rows.key)


def test_a_large_block_that_was_lost_meanwhile_is_read_in_the_blocks_of_this_pass() -> None:
    rows = watched(40, 4)
    list(iter_blocks(Part(rows, (0, 10, 40), 1 << 20)))
    blocks = []
    for _, block in iter_blocks(Part(rows, (0, 10, 20, 30, 40), 1 << 20)):
        host_cache.drop(rows.key)  # another thread needed the room
        blocks.append(block)
    np.testing.assert_array_equal(np.concatenate(blocks), rows.array)
    assert rows.reads == {(0, 10): 1, (10, 40): 1, (10, 20): 1, (20, 30): 1, (30, 40): 1}
    host_cache.drop(rows.key)


@given(
    st.sets(st.integers(1, 39)),
    st.sets(st.integers(1, 39)),
    st.integers(0, 39),
    st.integers(1, 40),
    st.integers(0, 900),
)
def test_blocks_of_any_passes_are_the_rows(before: set[int], then: set[int], start: int, n: int, budget: int) -> None:
    rows, stop = watched(40, 4), min(40, start + n)
    list(iter_blocks(Part(rows, (0, *sorted(before), 40), budget)))
    part = Part(rows, (start, *sorted(b for b in then if start < b < stop), stop), budget)
    for _ in range(2):
        done = start
        for first, block in iter_blocks(part):
            assert first == done
            np.testing.assert_array_equal(block, rows.array[first : first + len(block)])
            done += len(block)
        assert done == stop
    host_cache.drop(rows.key)
