"""The models of a configuration: frozen, from YAML or flags, with every problem reported at once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from hkm_dask.config.values import (
    MAX_CLUSTERS,
    MAX_SEED,
    choice,
    integer,
    level_list,
    nearest,
    path_text,
    share_below_one,
    show,
    size_or_auto,
)
from hkm_dask.config.yaml_text import read_value, read_yaml
from hkm_dask.errors import InputError


class _Model(BaseModel):
    """A frozen model that reports every problem in the house form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            lines = [line for detail in error.errors() for line in _translate(detail, type(self))]
            raise InputError([*lines, *_rising(settings.get("levels"))]) from None


class Level(_Model):
    """How one level clusters what lies below it.

    Attributes
    ----------
    n_clusters : int
        k of the level's first k-means.
    n_splits : int, default=1
        Where above 1, each of the clusters is split into this many by a small k-means of its own.
    n_resamples : int, default=10
        m, the resampling-clustering steps after the first k-means (arXiv:2405.15613 §3.2).
    resample_size : int or "auto", default="auto"
        r, the members taken from each cluster; ``auto`` is half the mean cluster size, at least 2.
    resample_strategy : {"closest", "random"}, default="closest"
        Which members are taken.
    init : {"coreset", "k-means++", "k-means||", "random"}, default="coreset"
        The seeding.
    max_iter : int, default=50
        The cap on Lloyd iterations.
    tol : float, default=1e-4
        Stop when an iteration lowers the inertia by less than this share of it.

    Raises
    ------
    InputError
        With one line per problem.

    Examples
    --------
    >>> Level(n_clusters=100, n_splits=10).n_centroids
    1000
    >>> Level(n_clusters=0, resample_size=0)
    Traceback (most recent call last):
    ...
    hkm_dask.errors.InputError: n_clusters=0 should be a whole number >= 1; raise it
    resample_size=0 should be auto or a whole number >= 1; use auto for half the mean cluster size, or n_resamples: 0 for no resampling
    """  # noqa: E501 (the second line of the message)

    n_clusters: Annotated[int, integer(1, MAX_CLUSTERS)]
    n_splits: Annotated[int, integer(1, MAX_CLUSTERS)] = 1
    n_resamples: Annotated[int, integer(0)] = 10
    resample_size: Annotated[int | Literal["auto"], BeforeValidator(size_or_auto)] = "auto"
    resample_strategy: Annotated[Literal["closest", "random"], choice("closest", "random")] = "closest"
    init: Annotated[
        Literal["coreset", "k-means++", "k-means||", "random"], choice("coreset", "k-means++", "k-means||", "random")
    ] = "coreset"
    max_iter: Annotated[int, integer(1)] = 50
    tol: Annotated[float, BeforeValidator(share_below_one)] = 1e-4

    @property
    def n_centroids(self) -> int:
        """Clusters the level ends with: ``n_clusters * n_splits``."""
        return self.n_clusters * self.n_splits


class Config(_Model):
    """One run's configuration.

    Attributes
    ----------
    seed : int, default=0
        Keys every random number of the run.
    metric : {"l2", "cosine"}, default="l2"
        The distance.
    dtype : {"float32", "float64", "float16", "bfloat16", "tf32"}, default="float32"
        Precision in which a GPU scores centroids; labels are exact in all of them, and measured in float64 wherever
        scores leave them open. "float32" takes 16 bits where these are measured to be faster, the others are what they
        say. On CPUs it changes nothing.
    subset : str or None, default=None
        An ``.npy`` file of the pool rows to cluster; None clusters all of them.
    levels : tuple of Level
        Level 1, which clusters the samples, first.

    Raises
    ------
    InputError
        With one line per problem; names of levels count from 1, as in ``levels.1.n_clusters``.

    Examples
    --------
    >>> config = Config(levels=[Level(n_clusters=2000), Level(n_clusters=400)])
    >>> config.levels[1].n_clusters
    400
    >>> Config(metric="cosin", levels=[{"n_clusters": 10, "max_iters": 5}])
    Traceback (most recent call last):
    ...
    hkm_dask.errors.InputError: metric='cosin' should be one of l2, cosine; did you mean cosine?
    levels.1.max_iters=5 should be a known setting; did you mean max_iter?
    """

    seed: Annotated[int, integer(0, MAX_SEED)] = 0
    metric: Annotated[Literal["l2", "cosine"], choice("l2", "cosine")] = "l2"
    dtype: Annotated[
        Literal["float32", "float64", "float16", "bfloat16", "tf32"],
        choice("float32", "float64", "float16", "bfloat16", "tf32"),
    ] = "float32"
    subset: Annotated[str | None, BeforeValidator(path_text)] = None
    levels: Annotated[tuple[Level, ...], BeforeValidator(level_list)]

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a configuration file.

        Parameters
        ----------
        path : str or Path
            The YAML file.
        overrides : sequence of str, optional
            Settings that replace the file's, like ``"levels.1.n_clusters=5000"`` or ``"seed=3"``.

        Returns
        -------
        Config

        Raises
        ------
        InputError
            With every problem of the file and of the overrides, one line each.
        """
        return cls._from_settings(read_yaml(Path(path)), overrides)

    @classmethod
    def from_flags(
        cls,
        n_clusters: Sequence[int],
        *,
        overrides: Sequence[str] = (),
        seed: int | None = None,
        metric: str | None = None,
        dtype: str | None = None,
        subset: str | Path | None = None,
        **per_level: object,
    ) -> Self:
        """Build a configuration from one number of clusters per level, and a few settings.

        Parameters
        ----------
        n_clusters : sequence of int
            k of every level, level 1 first.
        overrides : sequence of str, optional
            Settings that come last, like ``"levels.1.max_iter=20"``.
        seed, metric, dtype, subset : optional
            As in `Config`; None keeps the default.
        **per_level : scalar or sequence
            Any setting of `Level`, for all levels or as a list with one value per level; None keeps the default.

        Returns
        -------
        Config

        Raises
        ------
        InputError
            With every problem, one line each.

        Examples
        --------
        >>> config = Config.from_flags((2000, 400), n_resamples=(0, 10), resample_size=3)
        >>> [(level.n_resamples, level.resample_size) for level in config.levels]
        [(0, 3), (10, 3)]
        """
        levels: list[dict[str, Any]] = [{"n_clusters": k} for k in n_clusters]
        problems = []
        for name, value in per_level.items():
            if value is None:
                continue
            values = [value] * len(levels) if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
            if len(values) != len(levels):
                problems.append(
                    f"{name}={show(value)} should be one value or {len(levels)}, one per level of n_clusters; "
                    f"it has {len(values)}"
                )
                continue
            for level, one in zip(levels, values, strict=True):
                level[name] = one
        settings: dict[str, Any] = {"seed": seed, "metric": metric, "dtype": dtype, "subset": subset, "levels": levels}
        given = {name: value for name, value in settings.items() if value is not None}
        return cls._from_settings(given, overrides, problems)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Parameters
        ----------
        text : str
            A JSON object.

        Returns
        -------
        Config

        Raises
        ------
        InputError
            Where the text is no JSON object, or a setting is wrong.
        """
        try:
            settings = json.loads(text)
        except ValueError:
            settings = None
        if not isinstance(settings, dict):
            raise InputError(f"config={show(text)} should be a JSON object; take it from Config.to_json")
        return cls._from_settings(settings)

    @classmethod
    def _from_settings(
        cls, settings: dict[str, Any], overrides: Sequence[str] = (), problems: Sequence[str] = ()
    ) -> Self:
        lines = list(problems)
        for override in overrides:
            lines.extend(_override(settings, override))
        try:
            config = cls(**settings)
        except InputError as error:
            # A wrong override was not applied, so its own line comes first and the file's problems after it.
            raise InputError([*lines, *error.problems]) from None
        if lines:
            raise InputError([*lines, *_rising(config.levels)])
        return config

    def to_json(self) -> str:
        """Give the canonical JSON form: keys sorted, no spaces.

        Returns
        -------
        str

        Examples
        --------
        >>> config = Config(levels=[Level(n_clusters=10)])
        >>> Config.from_json(config.to_json()) == config
        True
        """
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    def to_yaml(self) -> str:
        """Give the form that `from_yaml` reads, every setting spelled out.

        Returns
        -------
        str

        Examples
        --------
        >>> print(Config(levels=[Level(n_clusters=10)]).to_yaml().splitlines()[0])
        seed: 0
        """
        settings = self.model_dump()
        settings["levels"] = list(settings["levels"])
        return str(yaml.safe_dump(settings, sort_keys=False))

    def check(self, n_samples: int) -> None:
        """Refuse what cannot be clustered: more clusters than there is input, at any level.

        Parameters
        ----------
        n_samples : int
            Rows that level 1 would cluster, after `subset`.

        Raises
        ------
        InputError
            With every problem, one line each.

        Examples
        --------
        >>> Config(levels=[Level(n_clusters=10)]).check(5)
        Traceback (most recent call last):
        ...
        hkm_dask.errors.InputError: n_samples=5 should be >= levels.1.n_clusters=10; lower n_clusters or add samples
        """
        problems = []
        if self.levels[0].n_centroids > n_samples:
            problems.append(
                f"n_samples={n_samples} should be >= {_clusters_of(1, self.levels[0])}; lower n_clusters or add samples"
            )
        problems.extend(_rising(self.levels))
        if problems:
            raise InputError(problems)

    def difference(self, stored: Config) -> list[str]:
        """Tell what this configuration asks for that a stored one has otherwise.

        Parameters
        ----------
        stored : Config
            The configuration the tree was begun with.

        Returns
        -------
        list of str
            One line per setting; empty where both are the same.

        Examples
        --------
        >>> asked = Config(levels=[Level(n_clusters=3000)])
        >>> asked.difference(Config(levels=[Level(n_clusters=2000)]))
        ['levels.1.n_clusters: 2000 in the tree, 3000 asked for']
        """
        mine, theirs = _flat(self), _flat(stored)
        names = list(dict.fromkeys([*theirs, *mine]))
        if len(self.levels) != len(stored.levels):
            shared = min(len(self.levels), len(stored.levels))
            names = [name for name in names if not name.startswith("levels.") or int(name.split(".")[1]) <= shared]
            names.append("levels")
            mine["levels"], theirs["levels"] = len(self.levels), len(stored.levels)
        return [
            f"{name}: {theirs[name]} in the tree, {mine[name]} asked for"
            for name in names
            if mine[name] != theirs[name]
        ]


def _flat(config: Config) -> dict[str, Any]:
    """Name every setting the way `--set` does."""
    settings: dict[str, Any] = {name: value for name, value in config.model_dump().items() if name != "levels"}
    for number, level in enumerate(config.levels, start=1):
        settings |= {f"levels.{number}.{name}": value for name, value in level.model_dump().items()}
    return settings


def _clusters_of(number: int, level: Level) -> str:
    if level.n_splits == 1:
        return f"levels.{number}.n_clusters={level.n_clusters}"
    return f"levels.{number}.n_clusters * n_splits={level.n_centroids}"


def _rising(levels: object) -> list[str]:
    """Find levels with more clusters than the level below gives them, among those that are valid themselves."""
    found: list[tuple[int, Level]] = []
    for number, raw in enumerate(levels if isinstance(levels, list | tuple) else (), start=1):
        try:
            found.append((number, raw if isinstance(raw, Level) else Level(**raw)))
        except (InputError, TypeError):
            continue
    return [
        f"{_clusters_of(above, upper)} should be <= {_clusters_of(below, lower)}; k falls from level to level"
        for (below, lower), (above, upper) in itertools.pairwise(found)
        if upper.n_centroids > lower.n_centroids
    ]


def _translate(detail: ErrorDetails, model: type[BaseModel]) -> list[str]:
    """Turn one of pydantic's errors into lines of the house form."""
    location = [part + 1 if isinstance(part, int) else str(part) for part in detail["loc"]]
    name = ".".join(str(part) for part in location)
    inner = detail.get("ctx", {}).get("error")
    if isinstance(inner, InputError):
        # A level has already put its own problems into words; they only lack its name.
        return [f"{name}.{problem}" for problem in inner.problems]
    if isinstance(inner, ValueError):
        return [f"{name}={show(detail['input'])} should be {inner}"]
    if detail["type"] == "missing":
        return [f"{name}=missing should be given; {_EXAMPLES.get(name, 'add it')}"]
    if detail["type"] == "extra_forbidden":
        return [_unknown(name, detail["input"], list(model.model_fields))]
    if detail["type"] in ("model_type", "model_attributes_type"):
        return [f"{name}={show(detail['input'])} should be a level's settings; write `n_clusters: 2000`"]
    return [f"{name}={show(detail['input'])} should be otherwise; {detail['msg']}"]


_EXAMPLES = {
    "levels": "add a list of levels, level 1 first, each with `n_clusters: 2000`",
    "n_clusters": "add `n_clusters: 2000` to the level",
}


def _unknown(name: str, value: object, known: Sequence[str]) -> str:
    key = name.rsplit(".", maxsplit=1)[-1]
    remedy = nearest(key, known)
    if remedy is None and key in Level.model_fields and "levels" in known:
        remedy = f"it belongs to a level: levels.1.{key}"
    remedy = remedy or f"known are {', '.join(known)}"
    return f"{name}={show(value)} should be a known setting; {remedy}"


def _override(settings: dict[str, Any], override: str) -> list[str]:
    """Apply one ``name=value`` to the settings; give the problem where it cannot be."""
    name, separator, text = override.partition("=")
    parts = name.strip().split(".")
    if not separator or not all(parts):
        return [f"set={override!r} should be NAME=VALUE; write it like levels.1.n_clusters=5000"]
    try:
        value = read_value(text)
    except yaml.YAMLError:
        return [f"{name}={text!r} should be a value YAML can read; quote it"]
    if parts[0] != "levels":
        if len(parts) > 1 or parts[0] not in Config.model_fields:
            return [_unknown(name, value, list(Config.model_fields))]
        settings[parts[0]] = value
        return []
    return _override_level(settings, parts[1:], name, value)


def _override_level(settings: dict[str, Any], parts: Sequence[str], name: str, value: object) -> list[str]:
    levels = settings.get("levels")
    if not isinstance(levels, list):
        return []  # said already, by the model, in its own words
    if len(parts) != 2:
        return [f"{name}={show(value)} should be levels.LEVEL.SETTING; write it like levels.1.n_clusters=5000"]
    number = int(parts[0]) if parts[0].isdecimal() else 0
    if not 1 <= number <= len(levels):
        return [f"{name}={show(value)} should be of a level from 1 to {len(levels)}; level 1 clusters the samples"]
    if parts[1] not in Level.model_fields:
        return [_unknown(name, value, list(Level.model_fields))]
    if isinstance(levels[number - 1], dict):
        levels[number - 1][parts[1]] = value
    return []
