"""Random numbers of rows: compared with a reference in plain integers, independent of order, statistically random."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hkm_dask.compute import keyed_random
from hkm_dask.compute.keyed_random import random_bits, random_uniform, stream_key

MASK = 2**64 - 1
any_key = st.integers(0, MASK)


def splitmix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def bits_of_one_row(key: int, row: int) -> int:
    golden = 0x9E3779B97F4A7C15
    z = (row * golden + key) & MASK
    z = (splitmix(z) + splitmix(key ^ golden)) & MASK
    return splitmix(z)


@given(any_key, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_bits_equal_a_reference_in_plain_integers(key: int, rows: list[int]) -> None:
    assert random_bits(key, np.array(rows)).tolist() == [bits_of_one_row(key, row) for row in rows]


@given(any_key, st.permutations(range(12)), st.integers(0, 12))
def test_a_draw_belongs_to_its_row(key: int, order: list[int], cut: int) -> None:
    rows = np.array(order)
    whole = random_uniform(key, rows)
    np.testing.assert_array_equal(np.append(random_uniform(key, rows[:cut]), random_uniform(key, rows[cut:])), whole)
    np.testing.assert_array_equal(random_uniform(key, np.arange(12))[rows], whole)
    np.testing.assert_array_equal(random_uniform(key, rows.reshape(3, 4)), whole.reshape(3, 4))


@given(st.lists(st.integers(0, 2**32) | st.text(max_size=8), max_size=6))
def test_a_key_is_64_bits_and_a_function_of_its_parts(parts: list[int | str]) -> None:
    assert 0 <= stream_key(*parts) <= MASK
    assert stream_key(*parts) == stream_key(*parts)


@pytest.mark.parametrize("kind", ["i1", "u1", "i4", "i8", "u8"])
def test_numbers_of_numpy_are_seeds_like_others(kind: str) -> None:
    assert stream_key(np.dtype(kind).type(100), "draw") == stream_key(100, "draw")


def test_parts_their_order_and_their_kind_make_the_key() -> None:
    different = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), ("0",), ("",), ("a", 0), (0, "a"), (-1,), (2**63,)]
    made = {stream_key(*parts) for parts in different}
    assert len(made) == len(different)
    assert len({stream_key(seed, level, "draw") for seed in range(50) for level in range(50)}) == 2500


@pytest.mark.parametrize("stride", [1, 2, 1 << 20, 10**9 + 7])
def test_draws_are_uniform_over_rows(stride: int) -> None:
    draws = random_uniform(stream_key(3, "test"), stride * np.arange(100_000))
    counts = np.bincount((draws * 1000).astype(int), minlength=1000)
    assert stats.chisquare(counts).pvalue > 1e-4
    pairs = np.bincount((draws[:-1] * 30).astype(int) * 30 + (draws[1:] * 30).astype(int), minlength=900)
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_draws_are_uniform_over_keys() -> None:
    draws = np.array([random_uniform(stream_key(0, i), np.array([7]))[0] for i in range(20_000)])
    assert stats.kstest(draws, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("bits", [0, 1, MASK - 1, MASK])
def test_the_ends_are_never_drawn(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed_random, "random_bits", lambda key, rows: np.full(len(rows), bits, np.uint64))
    draw = random_uniform(0, np.arange(1))[0]
    assert 0.0 < draw < 1.0
    assert abs(draw - bits / 2**64) < 2.0**-51
