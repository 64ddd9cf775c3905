"""Translate messages of the library for the command line: options instead of arguments of Python functions."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

#: A remedy that not every command has.
_OVERWRITE = re.compile(r",? or (?:use |give )?overwrite=True|;? ?(?:use|give) overwrite=True")
# Not inside a longer name, a path, quotes or code, nor in place of a setting of --config or --set.
_BEFORE = r"(?<![\w.\-/'\"`])(?<!did you mean )"


def in_options(message: str, command: click.Command) -> str:
    """Replace names of arguments by the options of a command.

    >>> import click
    >>> command = click.Command("sample", params=[
    ...     click.Option(["--exclude-ids"]), click.Option(["--by"]), click.Option(["--local-cuda"], is_flag=True)])
    >>> in_options("exclude_ids='a' should be b; raise exclude_ids", command)
    "--exclude-ids='a' should be b; raise --exclude-ids"
    >>> in_options("local_cuda=True with by=None should not be; see x/by=1, or overwrite=True", command)
    '--local-cuda without --by should not be; see x/by=1'
    >>> in_options("give a column with by (--by), or levels each with `exclude_ids: a`", command)
    'give a column with --by, or levels each with `exclude_ids: a`'
    """
    if not any(parameter.name == "overwrite" for parameter in command.params):
        message = _OVERWRITE.sub("", message)
    for name, option in _options(command.params):
        message = re.sub(rf"{_BEFORE}{name} \({option}\)", option, message)  # both are named
        message = re.sub(rf"with {name}=None\b", f"without {option}", message)
        message = re.sub(rf"{_BEFORE}{name}=None\b", option, message)
        message = re.sub(rf"{_BEFORE}{name}=True\b", option, message)
        message = re.sub(rf"{_BEFORE}{name}=(\([^()]*\))", _as_list, message)
        message = re.sub(rf"{_BEFORE}{name}=(?=\S)", f"{option}=", message)
        if "_" in name:  # cannot be an English word
            message = re.sub(rf"{_BEFORE}{name}\b(?![=./])", option, message)
    return message


def _as_list(found: re.Match[str]) -> str:
    """Write a tuple as on the command line."""
    return found[0].replace(found[1], re.sub("[ '()]", "", found[1]).rstrip(","))


def _options(parameters: Iterable[click.Parameter]) -> list[tuple[str, str]]:
    return [
        (name, max(parameter.opts, key=len))
        for parameter in parameters
        if isinstance(parameter, click.Option) and parameter.expose_value
        # The name in Python, usually that of the option.
        for name in {str(parameter.name), max(parameter.opts, key=len).strip("-").replace("-", "_")}
    ]
