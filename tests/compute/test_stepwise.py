"""Generators of passes, executed by a runner, or step by step by the caller."""

from collections.abc import Iterator

import numpy as np
import pytest

from hkm_dask.compute.partition import Part, split_parts
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.stepwise import MapReduce, Steps, stepwise
from hkm_dask.data.rows import ArrayRows

ARRAY = np.arange(20.0).reshape(10, 2)


def largest(part: Part) -> float:
    return float(part.rows.read(part.start, part.stop).max())


def smallest(part: Part) -> float:
    return float(part.rows.read(part.start, part.stop).min())


@stepwise
def spread(array: np.ndarray, *, runner: Runner | None) -> Steps[float]:
    """Difference between the largest and the smallest value, in two passes."""
    parts = split_parts(ArrayRows(array), 3, block_bytes=64, budget=0)
    highest = yield MapReduce(largest, parts, max, lambda value: value + 1, "largest")
    lowest = yield MapReduce(smallest, parts, min, lambda value: value - 1, "smallest")
    return float(highest - lowest)


def test_each_pass_receives_the_result_of_the_one_before() -> None:
    with Runner(2) as runner:
        assert spread(ARRAY, runner=runner) == 21.0
    assert spread.__doc__ is not None


def test_passes_can_be_made_by_someone_else() -> None:
    steps = spread.steps(ARRAY, runner=None)
    assert next(steps).stage == "largest"
    assert steps.send(7.0).stage == "smallest"
    with pytest.raises(StopIteration) as stopped:
        steps.send(3.0)
    assert stopped.value.value == 4.0


def test_a_function_without_passes_returns_its_outcome() -> None:
    @stepwise
    def nothing(*, runner: Runner | None) -> Steps[str]:
        return "done"
        yield

    assert nothing(runner=None) == "done"


def test_a_pass_that_fails_closes_the_generator() -> None:
    parts = split_parts(ArrayRows(ARRAY), 1, block_bytes=64, budget=0)
    closed = []

    @stepwise
    def failing(*, runner: Runner) -> Iterator[MapReduce]:
        try:
            yield MapReduce(lambda part: 1 / 0, parts, max, int, "fail")
        finally:
            closed.append(True)

    with Runner(1) as runner, pytest.raises(ZeroDivisionError):
        failing(runner=runner)
    assert closed == [True]
