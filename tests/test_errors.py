import errno
import pickle

import numpy as np
import pytest

from hkm_dask.errors import ComputeError, HkmError, InputError, StoreError, disk_full, is_whole, printable


def test_every_error_is_one_of_ours_and_of_the_builtin_kind_people_catch() -> None:
    assert issubclass(InputError, HkmError)
    assert issubclass(InputError, ValueError)
    assert issubclass(StoreError, HkmError)
    assert issubclass(ComputeError, HkmError)
    assert issubclass(ComputeError, RuntimeError)


def test_one_problem_is_one_line() -> None:
    error = InputError("seed=-1 should be >= 0; use 0")
    assert error.problems == ("seed=-1 should be >= 0; use 0",)
    assert str(error) == "seed=-1 should be >= 0; use 0"


def test_several_problems_are_as_many_lines() -> None:
    error = InputError(["a=1 should be 2; use 2", "b=1 should be 3; use 3"])
    assert len(error.problems) == 2
    assert str(error).splitlines() == list(error.problems)


@pytest.mark.parametrize("problems", ["a=1 should be 2; use 2", ["a=1 should be 2; use 2", "b=1 should be 3; use 3"]])
def test_problems_survive_the_way_back_from_a_worker(problems: str | list[str]) -> None:
    error = InputError(problems)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is InputError
    assert again.problems == error.problems
    assert str(again) == str(error)


def test_whole_numbers_are_those_of_python_and_numpy() -> None:
    assert all(is_whole(value) for value in (0, -3, 2**70, np.int8(1), np.uint64(2**64 - 1)))
    assert not any(is_whole(value) for value in (True, np.True_, 1.0, np.float32(1), "1", None, np.array([1])))


@pytest.mark.parametrize("kind", [HkmError, InputError, StoreError, ComputeError])
def test_no_message_has_what_a_terminal_obeys(kind: type[HkmError]) -> None:
    error = kind("a\x1b[2J\x07 should be\x9b \u202eb; mend it\nsecond\ttab")
    assert str(error) == "a\\x1b[2J\\x07 should be\\x9b \\u202eb; mend it\nsecond\\ttab"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_can_be_printed_stays() -> None:
    assert printable("Zoë, 七 and 'quotes'") == "Zoë, 七 and 'quotes'"
    assert printable("a\ud800\0\r\u2028b") == "a\\ud800\\x00\\r\\u2028b"


def test_a_full_disk_is_told_whatever_it_led_to() -> None:
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        error = RuntimeError("a library failed")
        error.__cause__ = OSError(code, "full")
        assert disk_full(error)
    assert disk_full(OSError("4096 requested and 512 written"))
    assert not disk_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk_full(ValueError("4096 requested and 512 written"))
