"""The exceptions people meet, each message naming the fact and the remedy; and a test that several of them rest on."""

from __future__ import annotations

import numbers
from collections.abc import Sequence


class HkmError(Exception):
    """Base of every error this package raises on purpose; the command line shows it as one clear line."""


class InputError(HkmError, ValueError):
    """Settings or input that should be otherwise, all problems at once.

    Parameters
    ----------
    problems : str or sequence of str
        One line per problem, each ``<name>=<got> should be <rule>; <remedy>``.

    Attributes
    ----------
    problems : tuple of str
        The lines.

    Examples
    --------
    >>> error = InputError(["seed=-1 should be >= 0; use 0", "metric='l1' should be l2 or cosine; use l2"])
    >>> len(error.problems)
    2
    >>> print(error)
    seed=-1 should be >= 0; use 0
    metric='l1' should be l2 or cosine; use l2
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        lines = [problems] if isinstance(problems, str) else list(problems)
        # Split again, so that the joined text that pickling carries between processes gives back the same problems.
        self.problems: tuple[str, ...] = tuple(line for text in lines for line in text.splitlines() if line)
        super().__init__("\n".join(self.problems))


class StoreError(HkmError):
    """A store on disk is missing, damaged, incomplete, foreign or locked."""


class ComputeError(HkmError, RuntimeError):
    """A worker, its memory or a device failed."""


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number, of Python or NumPy; True and False are none.

    Examples
    --------
    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
