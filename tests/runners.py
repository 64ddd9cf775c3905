"""Fixtures of runners: with one thread, or with a given number of parts, to process tiny data in many parts."""

from collections.abc import Callable, Iterator

import pytest

from hkm_dask.compute.runner import Runner


class InParts(Runner):
    """A runner on threads of this process that divides every pass into `n` parts."""

    def __init__(self, n: int) -> None:
        super().__init__(n_threads=2)
        self.n = n

    def n_parts(self, flops: float, n_clusters: int = 0, n_features: int = 0) -> int:
        return self.n


@pytest.fixture
def in_parts() -> Iterator[Callable[[int], Runner]]:
    """Return a function that returns a runner which divides every pass into `n` parts."""
    made: list[Runner] = []

    def make(n: int) -> Runner:
        made.append(InParts(n))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """Return a runner with one thread of this process."""
    with Runner(n_threads=1) as one:
        yield one
