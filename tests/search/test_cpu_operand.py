"""Centering, against NumPy; the tests of the search check the bounds of quantization."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.search.cpu import operand as cpu_operand


def test_centering_writes_rows_ones_and_norms() -> None:
    rng = np.random.default_rng(0)
    rows, mean = rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    out, norms = np.empty((5, 7), np.float32), np.empty(5)
    cpu_operand._center(rows, mean, out, norms)
    np.testing.assert_array_equal(out[:, :6], rows - mean)
    np.testing.assert_array_equal(out[:, 6], 1)
    np.testing.assert_allclose(norms, ((rows - mean).astype(np.float64) ** 2).sum(1), rtol=1e-14)


@given(
    st.lists(st.integers(0, 29), min_size=1),
    st.sets(st.integers(1, 29)),
    st.none() | st.integers(0, 4),
)
def test_kept_operands_are_gathered_if_they_are_all_there(
    numbers: list[int], cuts: set[int], lost: int | None
) -> None:  # fmt: skip
    whole = cpu_operand.Operand(
        np.arange(60, dtype=np.int16).reshape(30, 2), np.arange(30.0), np.arange(30.0) + 50, np.ones((30, 1), "f4")
    )
    spans = list(itertools.pairwise([0, *sorted(cuts), 30]))
    kept = [span for i, span in enumerate(spans) if i != lost]
    found = cpu_operand.gathered([(span, whole[np.arange(*span)]) for span in kept], np.array(numbers))
    if all(any(start <= number < stop for start, stop in kept) for number in numbers):
        assert found is not None
        for name in ("matrix", "norms", "errors", "residual_norms"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[numbers])
    else:
        assert found is None
