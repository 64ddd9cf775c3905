"""Runners to ask for: of one thread, or that cut as they are told, so that tiny data is folded in many parts."""

from collections.abc import Callable, Iterator

import pytest

from hkm_dask.compute.runner import Runner


class InParts(Runner):
    """Threads of this process, with every pass cut into `n` parts."""

    def __init__(self, n: int) -> None:
        super().__init__(n_threads=2)
        self.n = n

    def n_parts(self, flops: float, n_clusters: int = 0, n_features: int = 0) -> int:
        return self.n


@pytest.fixture
def in_parts() -> Iterator[Callable[[int], Runner]]:
    """Return a function that gives a runner which cuts every pass into `n` parts."""
    made: list[Runner] = []

    def make(n: int) -> Runner:
        made.append(InParts(n))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """One thread of this process."""
    with Runner(n_threads=1) as one:
        yield one
