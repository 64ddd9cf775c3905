"""Computations as generators that request passes over rows, so that the caller decides how to run these.

A k-means, its seeding and Lloyd's iteration are such generators. To run a single one, a `Runner` makes its passes; to
run thousands of small ones, the next passes of all of them are made at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from hkm_dask.compute.partition import Part

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class MapReduce:
    """A requested map-reduce over the parts of some rows; see `Runner.map_reduce`."""

    task: Callable[[Part], Any]
    parts: Sequence[Part]
    combine: Callable[[Any, Any], Any]
    finish: Callable[[Any], Any]
    stage: str


Steps = Generator[MapReduce, Any, T]


class stepwise(Generic[P, T]):
    """Decorator that makes a function of a generator of passes: a call runs them with its argument `runner`.

    The generator has a keyword argument ``runner``, yields passes, is sent the result of each, and returns the outcome.

    >>> import numpy as np
    >>> from hkm_dask.compute.partition import split_parts
    >>> from hkm_dask.compute.runner import Runner
    >>> from hkm_dask.data.rows import ArrayRows
    >>> @stepwise
    ... def count_twice(array, *, runner):
    ...     parts = split_parts(ArrayRows(array), 2, block_bytes=64, budget=0)
    ...     n = yield MapReduce(lambda part: part.stop - part.start, parts, int.__add__, lambda n: 2 * n, "count")
    ...     return f"twice makes {n}"
    >>> with Runner(n_threads=1) as runner:
    ...     count_twice(np.zeros((7, 2)), runner=runner)
    'twice makes 14'
    >>> next(count_twice.steps(np.zeros((7, 2)), runner=None)).stage
    'count'
    """

    def __init__(self, steps: Callable[P, Steps[T]]) -> None:
        self.steps = steps
        functools.update_wrapper(self, steps)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run all passes, one after another."""
        runner: Any = kwargs["runner"]
        result = None
        with closing(self.steps(*args, **kwargs)) as steps:
            while True:
                try:
                    step = steps.send(result)
                except StopIteration as stop:
                    outcome: T = stop.value
                    return outcome
                result = runner.map_reduce(
                    step.task, step.parts, combine=step.combine, finish=step.finish, stage=step.stage
                )


class Outcome:
    """Base class of dataclasses of arrays that are passed between tasks: it reports their size to Dask.

    Dask combines results where the largest of them are, and accounts for workers' memory, by size in bytes.

    >>> import numpy as np
    >>> @dataclass(frozen=True)
    ... class Sums(Outcome):
    ...     sums: np.ndarray
    >>> sys.getsizeof(Sums(np.zeros(1000))) > 8000
    True
    """

    def __sizeof__(self) -> int:
        return object.__sizeof__(self) + sum(map(_bytes_of, vars(self).values()))


def _bytes_of(value: Any) -> int:
    if isinstance(value, tuple):
        return sys.getsizeof(value) + sum(map(_bytes_of, value))
    return int(value.nbytes) if hasattr(value, "nbytes") else sys.getsizeof(value)
