"""Settings from YAML, with duplicates refused, within limits that no real configuration approaches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hkm_dask.config.problems import show
from hkm_dask.errors import InputError
from hkm_dask.untrusted import read_regular, reason

MAX_BYTES = 2**18
#: Maximum number of values, with aliases expanded, and maximum nesting depth.
MAX_VALUES, MAX_DEPTH = 20_000, 20
#: Maximum length of one value; the longest are paths.
MAX_VALUE_LENGTH = 4096
#: Numbers that YAML 1.1 reads differently from people: 0100 as 64, 1:30 as 90.
_NUMBERS, _AMBIGUOUS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"), re.compile(r"[-+]?0[0-9_]+$|[^:]+:")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses deep nesting while parsing, and duplicate keys, which PyYAML accepts."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See `yaml.composer.Composer.compose_node`; ValueError if a node is nested too deeply."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _too_deep(self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a name should be plain text", key.start_mark)
        if key.value in seen:
            line = key.start_mark.line + 1
            raise InputError(f"{key.value[:60]}=(twice) should be given once; remove the one in line {line}")
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings of a file; checks only that they are a mapping without duplicates.

    Raises InputError, with the line, if the file cannot be read, is not valid YAML, gives a setting twice, or is larger
    or more deeply nested than any configuration.
    """
    shown = show(path)
    try:
        settings = _load(read_regular(path, MAX_BYTES).decode("utf-8"))
    except OSError as error:
        raise InputError(f"config={shown} should be a readable file; {reason(error)}") from None
    except UnicodeDecodeError:
        raise InputError(f"config={shown} should be a text file in UTF-8; it is not") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        cause = getattr(error, "problem", None) or "it does not parse"
        raise InputError(f"config={shown} should be valid YAML; {where}{cause}") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"config={shown} should be a configuration; {reason(error)}") from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise InputError(f"config={shown} should be a YAML mapping of settings; see configs/ for examples")
    return settings


def read_value(text: str) -> Any:
    """Read one value as `read_yaml` would; ValueError with a remedy if it is invalid."""
    try:
        return _load(text)
    except yaml.YAMLError:
        raise ValueError("quote it") from None


def _load(text: str) -> Any:
    """Parse the text, check the size of the node tree, and only then construct it: aliases multiply their content."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        # PyYAML assumes that a tag matches its text, unlike in `!!int x`.
        raise ValueError(f"it has an invalid value ({reason(error)})") from None


def _check(node: yaml.Node) -> None:
    n_values, waiting = 0, [(node, 1)]
    while waiting:
        item, depth = waiting.pop()
        n_values += 1
        if n_values > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values, with aliases expanded")
        if depth > MAX_DEPTH:
            raise _too_deep(item.start_mark)
        if isinstance(item, yaml.ScalarNode):
            if len(item.value) > MAX_VALUE_LENGTH:
                raise ValueError(
                    f"the value in line {item.start_mark.line + 1} has {len(item.value):,} characters, more than "
                    f"{MAX_VALUE_LENGTH:,}"
                )
            if item.tag in _NUMBERS and _AMBIGUOUS.match(item.value):
                base, way = (60, "as one number") if ":" in item.value else (8, "without a zero before it")
                where = f"{item.value} in line {item.start_mark.line + 1}"
                raise ValueError(f"{where} is a number to base {base} in YAML; write it {way}, or in quotes")
        elif isinstance(item, yaml.MappingNode):
            waiting += [(part, depth + 1) for pair in item.value for part in pair]
        elif isinstance(item, yaml.SequenceNode):
            waiting += [(part, depth + 1) for part in item.value]


def _too_deep(mark: yaml.Mark) -> ValueError:
    return ValueError(f"it is nested deeper than {MAX_DEPTH}, in line {mark.line + 1}")
