"""The vector instructions give the same results as a loop over the lanes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.compute.jit import kernel
from hkm_dask.search.simd import LANES, least_of_lanes, lowest_bit, mask_not_above, widen

values = hnp.arrays(np.float32, LANES + 7, elements=st.floats(-9, 9, width=32) | st.just(np.inf))


@kernel("u8(f4[::1], i8, f4)")
def mask_from(values, start, limit):  # type: ignore[no-untyped-def]
    return mask_not_above(values, start, limit)


@kernel("f4(f4[::1], i8)")
def least_from(values, start):  # type: ignore[no-untyped-def]
    return least_of_lanes(values, start)


@kernel("i8(u8)")
def lowest(mask):  # type: ignore[no-untyped-def]
    return lowest_bit(mask)


@given(values, st.integers(0, 7), st.floats(-9, 9, width=32))
def test_the_mask_has_a_bit_for_every_value_not_above(array: np.ndarray, start: int, limit: float) -> None:
    expected = sum(1 << i for i, value in enumerate(array[start : start + LANES]) if value <= np.float32(limit))
    assert mask_from(array, start, np.float32(limit)) == expected


@given(values, st.integers(0, 7))
def test_the_least_is_the_least(array: np.ndarray, start: int) -> None:
    assert least_from(array, start) == array[start : start + LANES].min()


@given(st.integers(1, 2**64 - 1))
def test_the_lowest_bit(mask: int) -> None:
    assert lowest(np.uint64(mask)) == (mask & -mask).bit_length() - 1


def test_nothing_is_not_above_nan() -> None:
    array = np.full(LANES, np.nan, np.float32)
    assert mask_from(array, 0, np.float32(np.inf)) == 0


def test_every_float16_is_widened_exactly() -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(-1, 128)
    for cut in (slice(None), slice(0, 3)):
        some = np.ascontiguousarray(values[cut, : 128 if cut.stop is None else 7])
        out = np.empty(some.shape, np.float32)
        widen(some, out)
        with np.errstate(invalid="ignore"):  # of signaling NaN, on ARM
            np.testing.assert_array_equal(out, some.astype(np.float32))
