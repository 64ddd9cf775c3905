"""Settings from YAML, each given once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hkm_dask.config.problems import show
from hkm_dask.errors import InputError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key given twice, of which PyYAML silently keeps the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            line = key.start_mark.line + 1
            raise InputError(f"{key.value}=(twice) should be given once; remove the one in line {line}")
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings of a file; nothing is checked but that they are a mapping, each given once.

    Raises InputError where the file cannot be read, is no YAML, or gives a setting twice; with the line.
    """
    shown = show(path)
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise InputError(f"config={shown} should be a readable file; {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"config={shown} should be a text file in UTF-8; it is not") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or "it does not parse"
        raise InputError(f"config={shown} should be valid YAML; {where}{reason}") from None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise InputError(f"config={shown} should be a YAML mapping of settings; see configs/ for examples")
    return settings


def read_value(text: str) -> Any:
    """Read one value, as `read_yaml` would."""
    return yaml.load(text, Loader=_Loader)
