"""The values a setting may have: each kind as a check for pydantic, whose error says the rule and the remedy."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BeforeValidator

# Labels are stored as int32, and random numbers are keyed by a 64-bit seed.
MAX_CLUSTERS = 2**31 - 1
MAX_SEED = 2**63 - 1

_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?")


def _number(value: object) -> object:
    """Turn text like ``1e-4``, which PyYAML leaves a string, into the number it is."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    return value


def _whole(value: object, *, minimum: int, maximum: int) -> int:
    number = _number(value)
    rule = f"a whole number >= {minimum}"
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    try:
        # A bool is an int to Python; here `yes` for a count is a slip.
        whole = None if isinstance(number, bool) else operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        whole = None
    if whole is None:
        raise ValueError(f"{rule}; write it without quotes or decimals")
    if whole < minimum:
        raise ValueError(f"{rule}; raise it")
    if whole > maximum:
        raise ValueError(f"at most {maximum}; lower it")
    return whole


def integer(minimum: int, maximum: int = 2**31 - 1) -> BeforeValidator:
    """A whole number from `minimum` to `maximum`."""
    return BeforeValidator(lambda value: _whole(value, minimum=minimum, maximum=maximum))


def size_or_auto(value: object) -> int | str:
    """A whole number from 1 on, or auto."""
    if value == "auto":
        return "auto"
    try:
        return _whole(value, minimum=1, maximum=2**31 - 1)
    except ValueError:
        raise ValueError(
            "auto or a whole number >= 1; use auto for half the mean cluster size, or n_resamples: 0 for no resampling"
        ) from None


def share_below_one(value: object) -> float:
    """A number from 0 to below 1."""
    number = _number(value)
    try:
        share = math.nan if isinstance(number, bool | str | None) else float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share < 1:
        raise ValueError("a number >= 0 and < 1; use 1.0e-4, or 0 to run all of max_iter")
    return share


def choice(*known: str) -> BeforeValidator:
    """One of some words."""

    def validate(value: object) -> object:
        if value not in known:
            raise ValueError(
                f"one of {', '.join(known)}; {nearest(str(value), known) or f'the usual one is {known[0]}'}"
            )
        return value

    return BeforeValidator(validate)


def path_text(value: object) -> str | None:
    """A path as text, or None."""
    if value is None:
        return None
    if isinstance(value, str | Path) and str(value) not in ("", "."):
        return str(value)
    raise ValueError("the path of an .npy file of pool rows; leave it out to use every row")


def level_list(value: object) -> tuple[object, ...]:
    """A list with something in it, as a tuple."""
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        raise ValueError("a list of one or more levels, level 1 first; add `- n_clusters: 2000` under levels")
    return tuple(value)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Name what a slip was probably meant to be, as a remedy."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else None


def show(value: object) -> str:
    """A value as messages show it: not all of it, where it is long."""
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"
