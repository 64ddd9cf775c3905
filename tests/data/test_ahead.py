import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hkm_dask.data.ahead import in_order


def test_results_come_in_order_whoever_is_done_first() -> None:
    later = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            later.wait()
        if number == 2:
            later.set()
        return -number

    with ThreadPoolExecutor(2) as threads:
        assert list(in_order(threads, work, range(5), n_ahead=3)) == [0, -1, -2, -3, -4]


def test_no_more_is_begun_than_asked_for() -> None:
    begun = []
    with ThreadPoolExecutor(1) as threads:
        results = in_order(threads, begun.append, range(9), n_ahead=2)
        next(results)
        assert max(begun) <= 2
        results.close()


def test_an_error_comes_in_its_turn() -> None:
    with ThreadPoolExecutor(2) as threads:
        results = in_order(threads, lambda number: 1 // number, [1, 0, 1], n_ahead=3)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)
