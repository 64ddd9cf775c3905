"""Messages about invalid settings, one line each: ``<name>=<got> should be <rule>; <remedy>``."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hkm_dask.errors import InputError

#: Remedies for numbers by pydantic's error type, if the description of a field has none.
_REMEDIES = {"int_type": "write it without quotes or decimals", "greater_than_equal": "raise it"}


def problems_of(error: ValidationError, fields: Mapping[str, FieldInfo], inner: Sequence[str] = ()) -> Iterator[str]:
    """Describe pydantic's errors of a model with `fields`, one line each.

    The description of a field is its rule, optionally followed by a semicolon and a remedy. `inner` are settings of
    nested models, which may have been given to the model itself by mistake.
    """
    reported: set[str | int] = set()
    for detail in error.errors():
        field, *rest = detail["loc"]
        # For a union there is one error per member type, whose location ends with that type.
        name = f"{field}.{rest[0] + 1}" if rest and isinstance(rest[0], int) else str(field)
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, InputError):  # already described by a nested model; only its name is missing
            reported |= {name, field}
            yield from (f"{name}.{problem}" for problem in cause.problems)
        elif detail["type"] == "extra_forbidden":
            yield unknown(name, detail["input"], list(fields), inner)
        elif name not in reported:
            reported |= {name, field}
            value = "missing" if detail["type"] == "missing" else show(detail["input"])
            yield f"{name}={value} should be {_rule(detail, fields[str(field)])}"


def _rule(detail: ErrorDetails, field: FieldInfo) -> str:
    kind, (rule, _, remedy) = detail["type"], (field.description or "").partition("; ")
    if kind == "missing":
        return f"given; {remedy or 'add `n_clusters: 2000` to the level'}"
    if kind == "model_type":
        return "a level's settings; write `n_clusters: 2000`"
    if not rule:
        known = get_args(field.annotation)
        close = nearest(str(detail["input"]), known)
        return f"one of {', '.join(known)}; {close or f'the usual one is {known[0]}'}"
    if kind == "less_than_equal" and not remedy:
        return f"at most {detail['ctx']['le']}; lower it"
    return f"{rule}; {remedy or _REMEDIES[kind]}"


def unknown(name: str, value: object, known: Sequence[str], inner: Sequence[str] = ()) -> str:
    """Return the message for an unknown setting."""
    key = name.rsplit(".", maxsplit=1)[-1]
    remedy = nearest(key, known)
    if remedy is None and key in inner:
        remedy = f"it belongs to a level: levels.1.{key}"
    remedy = remedy or f"known are {', '.join(known)}"
    return f"{name}={show(value)} should be a known setting; {remedy}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Suggest the known name that is closest to a misspelled one, if any."""
    same = [one for one in known if one.casefold() == name.casefold()]
    near = same or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else None


def show(value: Any) -> str:
    """Format a value for messages, shortened if it is long."""
    try:
        text = repr(str(value) if isinstance(value, Path) else value)
    except ValueError:  # Python does not print integers this long
        text = f"a number of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"
