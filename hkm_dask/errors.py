"""The exceptions of the package, whose messages name the fact and the remedy, and helpers for their messages."""

from __future__ import annotations

import errno
import numbers
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# NumPy's message, without an errno, when a file accepts less than was written.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
#: Number of items that a message names.
N_NAMED = 5


class HkmError(Exception):
    """Base of all errors that this package raises on purpose; the command line shows it as one clear line."""

    def __init__(self, message: str = "") -> None:
        # Names and attributes come from files; a terminal obeys control characters.
        super().__init__("\n".join(map(printable, message.split("\n"))))


class InputError(HkmError, ValueError):
    """Invalid settings or input, with all problems at once.

    Parameters
    ----------
    problems : str or sequence of str
        One line per problem, each ``<name>=<got> should be <rule>; <remedy>``.

    Attributes
    ----------
    problems : tuple of str
        One line per problem.

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
        # Split again: pickling carries the joined text between processes, which must give the same problems.
        self.problems: tuple[str, ...] = tuple(printable(line) for text in lines for line in text.split("\n") if line)
        super().__init__("\n".join(self.problems))


class NoRowsError(InputError):
    """Valid input without rows, as one of several shards may be."""


def check_all(*checks: Callable[[], object]) -> None:
    """Run checks, and raise all their problems as one `InputError`.

    >>> check_all(lambda: int("3"))
    >>> def refuse(problem):
    ...     raise InputError(problem)
    >>> check_all(lambda: refuse("k=0 should be >= 1; use 1"), lambda: refuse("m=-1 should be >= 0; use 0"))
    Traceback (most recent call last):
    hkm_dask.errors.InputError: k=0 should be >= 1; use 1
    m=-1 should be >= 0; use 0
    """
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


class StoreError(HkmError):
    """A store on disk is missing, damaged, incomplete, foreign or locked."""


class ComputeError(HkmError, RuntimeError):
    """A worker, its memory or a device failed."""


def printable(text: str) -> str:
    r"""Escape what no message should contain: control characters, which a terminal obeys, and lone surrogates.

    >>> printable("Zoë\x1b[2J"), printable("two\nlines")
    ('Zoë\\x1b[2J', 'two\\nlines')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def first_few(things: Sequence[object] | NDArray[Any], n: int | None = None) -> str:
    """Name the first few things in a message, with a sign if there are more.

    `things` may be only the first ones of `n`.

    >>> first_few([3, 4]), first_few(range(9))
    ('3, 4', '0, 1, 2, 3, 4, …')
    """
    named = ", ".join(map(str, things[:N_NAMED]))
    return f"{named}, …" if (len(things) if n is None else n) > N_NAMED else named


def disk_full(error: BaseException) -> bool:
    """Tell whether an error, or its cause, means that a disk, a quota or a limit on file sizes is exhausted.

    >>> disk_full(OSError(errno.EDQUOT, "Disk quota exceeded")), disk_full(OSError("12 requested and 8 written"))
    (True, True)
    >>> disk_full(PermissionError(errno.EACCES, "Permission denied"))
    False
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(e.errno in _DISK_FULL or bool(_SHORT_WRITE.match(str(e))) for e in seen if isinstance(e, OSError))


def is_whole(value: object) -> bool:
    """Tell whether a value is an integer, of Python or NumPy; booleans are not.

    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_whole(least: int = 0, **values: Any) -> list[str]:
    """Return the problems of named numbers, which should be integers of 64 bits, as keys of random numbers are.

    >>> check_whole(seed=2**64, sample=3)
    ['seed=18446744073709551616 should be a whole number from 0 to 2**63 - 1; leave it out']
    """
    rule = f"should be a whole number from {least} to 2**63 - 1; leave it out"
    return [
        f"{name}={value!r} {rule}" for name, value in values.items() if not (is_whole(value) and least <= value < 2**63)
    ]
