"""Staging without a device: settings from the environment, and recognition of out-of-memory errors."""

import numpy as np
import pytest

from hkm_dask.compute.staging import device_dtype, ran_out, staging_blocks
from hkm_dask.errors import ComputeError
from tests.emulated.memory import RMM_MESSAGE


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(RMM_MESSAGE), True),
        (MemoryError("std::bad_alloc: out_of_memory: CUDA error (failed to allocate 8 bytes) at: x.hpp:55"), True),
        (MemoryError(), False),  # of the host
        (MemoryError("std::bad_alloc"), False),
        (np._core._exceptions._ArrayMemoryError((1 << 50,), np.dtype(float)), False),
        (ValueError("std::bad_alloc: out_of_memory"), False),
    ],
    ids=repr,
)
def test_device_memory_is_told_from_host_memory(error: Exception, answer: bool) -> None:
    assert ran_out(error) is answer


def test_the_number_of_staging_blocks_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HKM_STAGING_BLOCKS", raising=False)
    assert staging_blocks() == 4
    monkeypatch.setenv("HKM_STAGING_BLOCKS", "7")
    assert staging_blocks() == 7


@pytest.mark.parametrize("text", ["1", "-2", "many", ""])
def test_fewer_than_two_staging_blocks_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HKM_STAGING_BLOCKS", text)
    with pytest.raises(ComputeError, match=f"HKM_STAGING_BLOCKS='{text}' should be an integer >= 2; unset it for 4"):
        staging_blocks()


@pytest.mark.parametrize(("stored", "expected"), [("f2", "f2"), ("f4", "f4"), ("f8", "f4"), (">f4", "<f4")])
def test_rows_are_float16_or_float32_on_the_device(stored: str, expected: str) -> None:
    assert device_dtype(np.dtype(stored)) == np.dtype(expected)
