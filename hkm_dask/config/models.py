"""The configuration models: frozen, built from YAML or flags, and reporting every problem at once."""

from __future__ import annotations

import itertools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hkm_dask.config.problems import problems_of, show, unknown
from hkm_dask.config.yaml_text import read_value, read_yaml
from hkm_dask.errors import InputError
from hkm_dask.untrusted import parse_json

_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?")
#: Maximum number of levels of a hierarchy; the paper has at most four.
MAX_LEVELS = 64
#: Samples per cluster of each level that balance best, for pools up to this size, and those of the paper beyond.
_ADVISED_PER_CLUSTER = (5, 10, 30)
_ADVISED_UP_TO = 10**6
_PAPER_PER_CLUSTER = (75, 1500, 15_000, 75_000)


def _as_number(value: Any) -> Any:
    """Convert text like ``1e-4``, which PyYAML leaves a string, and integral values of other types to plain numbers."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        with suppress(ValueError):  # e.g. for 1__0
            value = float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return value if isinstance(value, bool) else operator.index(value)  # `yes` for a count is a mistake
    except TypeError:
        return value


def _whole(minimum: int, maximum: int = 2**31 - 1) -> Any:
    return Field(strict=True, ge=minimum, le=maximum, description=f"a whole number >= {minimum}")


# Labels are stored as int32, and random numbers have a 64-bit seed as key.
_Positive = Annotated[int, BeforeValidator(_as_number), _whole(1)]
_Count = Annotated[int, BeforeValidator(_as_number), _whole(0)]
_Seed = Annotated[int, BeforeValidator(_as_number), _whole(0, 2**63 - 1)]
_Path = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value), Field(min_length=1)
]

# The rules of the other settings, each with the remedy if it is broken.
_RESAMPLE_SIZE = (
    "auto or a whole number >= 1; use auto for half the mean cluster size, or n_resamples: 0 for no resampling"
)
_SHARE = "a number >= 0 and < 1; use 1.0e-4, or 0 to always run max_iter iterations"
_SUBSET = "the path of a file of pool rows or ids (.npy, .parquet, .csv or .txt); leave it out to use every row"
_FIT_SAMPLE = "a whole number >= 1; leave it out to fit on all rows"
_LEVELS = (
    "a list of one or more levels, level 1 first; add a list of levels, level 1 first, each with `n_clusters: 2000`"
)


class _Model(BaseModel):
    """A frozen model that reports all problems in one `InputError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            fields = type(self).model_fields
            problems = problems_of(error, fields, list(Level.model_fields) if "levels" in fields else [])
            raise InputError([*problems, *_rising(settings.get("levels"))]) from None

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Show only values that differ from the default, as scikit-learn does."""
        fields = type(self).model_fields
        return [(name, value) for name, value in super().__repr_args__() if value != fields[str(name)].default]


class Level(_Model):
    """How one level clusters the level below it.

    Attributes
    ----------
    n_clusters : int
        Number of clusters (k) of the level's first k-means.
    n_splits : int, default=1
        If above 1, each cluster is split into this many parts by a small k-means. A label is then the nearest of these
        parts; a part of another cluster may be nearer.
    n_resamples : int, default=10
        Number of resampling-clustering steps (m) after the first k-means (arXiv:2405.15613 §3.2).
    resample_size : int or "auto", default="auto"
        Number of members taken from each cluster (r); ``auto`` is half the mean cluster size, at least 2.
    resample_strategy : {"closest", "random"}, default="closest"
        Which members of a cluster are taken.
    init : {"coreset", "k-means++", "k-means||", "random"}, default="coreset"
        The seeding method.
    max_iter : int, default=50
        Maximum number of Lloyd iterations.
    tol : float, default=1e-4
        Stop when an iteration lowers the inertia by less than this fraction of it.

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

    n_clusters: _Positive
    n_splits: _Positive = 1
    n_resamples: _Count = 10
    resample_size: Annotated[_Positive | Literal["auto"], Field(description=_RESAMPLE_SIZE)] = "auto"
    resample_strategy: Literal["closest", "random"] = "closest"
    init: Literal["coreset", "k-means++", "k-means||", "random"] = "coreset"
    max_iter: _Positive = 50
    tol: Annotated[float, BeforeValidator(_as_number), Field(strict=True, ge=0, lt=1, description=_SHARE)] = 1e-4

    @property
    def n_centroids(self) -> int:
        """Number of clusters after splitting: ``n_clusters * n_splits``."""
        return self.n_clusters * self.n_splits


class Config(_Model):
    """The configuration of a run.

    Attributes
    ----------
    seed : int, default=0
        Key of all random numbers of the run.
    metric : {"l2", "cosine"}, default="l2"
        The distance metric.
    dtype : {"float32", "float64", "float16", "bfloat16", "tf32"}, default="float32"
        Precision in which a GPU scores centroids; "float32" uses 16 bits if that is measured to be faster. Labels are
        exact with all of them, as float64 distances decide where scores are not conclusive. CPUs ignore this setting.
    subset : str or None, default=None
        File of the pool rows to cluster, as written by `sample` and `dedup`; None clusters all rows.
    fit_sample : int or None, default=None
        Fit on this many rows, drawn uniformly at random by `seed`, and then assign all rows to their nearest cluster of
        level 1; None fits on all rows.
    levels : tuple of Level
        The levels, starting with level 1, which clusters the samples.

    Raises
    ------
    InputError
        With one line per problem; level numbers start at 1, as in ``levels.1.n_clusters``.

    Examples
    --------
    >>> config = Config(levels=[Level(n_clusters=2000), Level(n_clusters=400)])
    >>> config
    Config(levels=(Level(n_clusters=2000), Level(n_clusters=400)))
    >>> Config(metric="cosin", levels=[{"n_clusters": 10, "max_iters": 5}])
    Traceback (most recent call last):
    ...
    hkm_dask.errors.InputError: metric='cosin' should be one of l2, cosine; did you mean cosine?
    levels.1.max_iters=5 should be a known setting; did you mean max_iter?
    """

    seed: _Seed = 0
    metric: Literal["l2", "cosine"] = "l2"
    dtype: Literal["float32", "float64", "float16", "bfloat16", "tf32"] = "float32"
    subset: Annotated[_Path | None, Field(description=_SUBSET)] = None
    fit_sample: Annotated[_Positive | None, Field(description=_FIT_SAMPLE)] = None
    levels: Annotated[tuple[Level, ...], Field(min_length=1, description=_LEVELS)]

    def __init__(self, **settings: Any) -> None:
        levels = settings.get("levels")
        # Before each level is validated.
        if isinstance(levels, list | tuple) and len(levels) > MAX_LEVELS:
            raise InputError(f"levels={len(levels)} levels should be at most {MAX_LEVELS}; leave some out")
        super().__init__(**settings)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a configuration file.

        Parameters
        ----------
        path : str or Path
        overrides : sequence of str, optional
            Settings that replace the file's, like ``"levels.1.n_clusters=5000"`` or ``"seed=3"``, each once.

        Raises
        ------
        InputError
            With every problem of the file and of the overrides.
        """
        return cls._from_settings(read_yaml(Path(path)), overrides)

    @classmethod
    def from_flags(
        cls,
        n_clusters: Sequence[int] | int,
        *,
        overrides: Sequence[str] = (),
        seed: int | None = None,
        metric: str | None = None,
        dtype: str | None = None,
        subset: str | Path | None = None,
        fit_sample: int | None = None,
        **per_level: object,
    ) -> Self:
        """Build a configuration from the number of clusters of each level and a few settings.

        Parameters
        ----------
        n_clusters : sequence of int, or int
            k of each level, level 1 first; a single number for one level.
        overrides : sequence of str, optional
            Settings that take precedence, like ``"levels.1.max_iter=20"``.
        seed, metric, dtype, subset, fit_sample : optional
            As in `Config`; None keeps the default.
        **per_level : scalar or sequence
            Any setting of `Level`: one value for all levels, or a sequence of one per level; None keeps the default.

        Examples
        --------
        >>> config = Config.from_flags((2000, 400), n_resamples=(0, 10), resample_size=3)
        >>> [(level.n_resamples, level.resample_size) for level in config.levels]
        [(0, 3), (10, 3)]
        """
        of_levels = n_clusters if isinstance(n_clusters, Iterable) else [n_clusters]
        levels: list[dict[str, Any]] = [{"n_clusters": k} for k in of_levels]
        problems = []
        for name, value in per_level.items():
            if value is None:
                continue
            values = [value] * len(levels) if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
            if len(values) != len(levels):
                rule = f"one value or {len(levels)}, one per level of n_clusters"
                problems.append(f"{name}={show(value)} should be {rule}; it has {len(values)}")
                continue
            for level, of_level in zip(levels, values, strict=True):
                level[name] = of_level
        settings = {"seed": seed, "metric": metric, "dtype": dtype, "subset": subset, "fit_sample": fit_sample}
        given = {name: value for name, value in settings.items() if value is not None}
        return cls._from_settings(given | {"levels": levels}, overrides, problems)

    @classmethod
    def advised(cls, n_samples: int, **settings: Any) -> Self:
        """Choose the numbers of clusters by the number of samples, as described in docs/method.md#how-many-clusters.

        Up to a million samples, levels 1, 2 and 3 have 5, 10 and 30 samples per cluster, and one resampling of two
        members each. Beyond, the best balance is not affordable: level 1 has 75 samples per cluster, the levels above
        20, 10 and 5 clusters per cluster and ten resamplings, as in arXiv:2405.15613.

        Parameters
        ----------
        n_samples : int
            Number of samples to cluster.
        **settings
            Arguments of `from_flags`, which take precedence over the advice.

        Examples
        --------
        >>> config = Config.advised(60_000, seed=3)
        >>> [level.n_clusters for level in config.levels], config.levels[0].n_resamples, config.seed
        ([12000, 6000, 2000], 1, 3)
        >>> [level.n_clusters for level in Config.advised(10**8).levels]
        [1333333, 66666, 6666, 1333]
        """
        small = n_samples <= _ADVISED_UP_TO
        sizes = [n_samples // n for n in (_ADVISED_PER_CLUSTER if small else _PAPER_PER_CLUSTER)]
        n_clusters = [k for k in sizes if k > 1] or [1]
        advice = {"n_resamples": 1, "resample_size": 2} if small else {"n_resamples": [0, 10, 10, 10]}
        given = {name: value for name, value in settings.items() if value is not None}
        return cls.from_flags(n_clusters, **{**advice, **given})

    @staticmethod
    def reason_of_advice(n_samples: int) -> str:
        """Explain in one sentence the choice of `advised` for this many samples.

        >>> Config.reason_of_advice(60_000)
        'Why: 5, 10 and 30 rows per cluster, from level 1 up, balanced labeled nouns best'
        """
        if n_samples <= _ADVISED_UP_TO:
            *first, last = map(str, _ADVISED_PER_CLUSTER)
            per_cluster = f"{', '.join(first)} and {last}"
            return f"Why: {per_cluster} rows per cluster, from level 1 up, balanced labeled nouns best"
        small, paper = _ADVISED_PER_CLUSTER[0], _PAPER_PER_CLUSTER[0]
        return (
            f"Why: {small} rows per cluster balance best but cost too much beyond {_ADVISED_UP_TO:,} rows; these are "
            f"the paper's {paper}."
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the output of `to_json`; InputError if it is not a JSON object, or a setting is invalid."""
        settings = None
        with suppress(ValueError):
            settings = parse_json(text)
        if not isinstance(settings, dict):
            raise InputError(f"config={show(text)} should be a JSON object; take it from Config.to_json")
        return cls._from_settings(settings)

    @classmethod
    def _from_settings(
        cls, settings: dict[str, Any], overrides: Sequence[str] = (), problems: Sequence[str] = ()
    ) -> Self:
        wrong = filter(None, [_override(settings, override) for override in overrides])
        lines = [*problems, *wrong, *_given_twice(overrides)]
        try:
            config = cls(**settings)
        except InputError as error:
            raise InputError([*lines, *error.problems]) from None
        if lines:
            raise InputError([*lines, *_rising(config.levels)])
        return config

    def to_json(self) -> str:
        """Return the canonical JSON form: keys sorted, no spaces.

        Examples
        --------
        >>> config = Config(levels=[Level(n_clusters=10)])
        >>> Config.from_json(config.to_json()) == config
        True
        """
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    def to_yaml(self) -> str:
        """Return the YAML form that `from_yaml` reads, with every setting.

        Examples
        --------
        >>> print(Config(levels=[Level(n_clusters=10)]).to_yaml().splitlines()[0])
        seed: 0
        """
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    def check(self, n_samples: int) -> None:
        """Refuse more clusters than inputs, at any level; `n_samples` counts the samples that level 1 is fit on.

        Examples
        --------
        >>> Config(levels=[Level(n_clusters=10)]).check(5)
        Traceback (most recent call last):
        ...
        hkm_dask.errors.InputError: n_samples=5 should be >= levels.1.n_clusters=10; lower n_clusters or add samples
        """
        problems = _rising(self.levels)
        if self.levels[0].n_centroids > n_samples:
            fact = f"should be >= {_clusters_of(1, self.levels[0])}"
            problem = f"n_samples={n_samples} {fact}; lower n_clusters or add samples"
            if self.fit_sample == n_samples:
                problem = f"fit_sample={n_samples} {fact}; raise fit_sample, or lower n_clusters"
            problems.insert(0, problem)
        if problems:
            raise InputError(problems)

    def difference(self, stored: Config) -> list[str]:
        """List the settings that differ in a stored configuration, one line each.

        Examples
        --------
        >>> asked = Config(levels=[Level(n_clusters=3000)])
        >>> asked.difference(Config(levels=[Level(n_clusters=2000)]))
        ['levels.1.n_clusters: 2000 in the tree, 3000 asked for']
        """
        asked = self._by_name()
        return [
            f"{name}: {_shown(value)} in the tree, {_shown(asked[name])} asked for"
            for name, value in stored._by_name().items()
            if asked.get(name, value) != value
        ]

    def _by_name(self) -> dict[str, Any]:
        """Return every setting by its name in ``--set``, and the number of levels."""
        settings = self.model_dump(exclude={"levels"})
        for number, level in enumerate(self.levels, start=1):
            settings |= {f"levels.{number}.{name}": value for name, value in level.model_dump().items()}
        return settings | {"levels": len(self.levels)}


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _clusters_of(number: int, level: Level) -> str:
    if level.n_splits == 1:
        return f"levels.{number}.n_clusters={level.n_clusters}"
    return f"levels.{number}.n_clusters * n_splits={level.n_centroids}"


def _rising(levels: object) -> list[str]:
    """Report levels with more clusters than the level below has, among the levels that are valid themselves."""
    valid: list[tuple[int, Level]] = []
    for number, level in enumerate(levels if isinstance(levels, list | tuple) else (), start=1):
        with suppress(InputError, TypeError):
            valid.append((number, level if isinstance(level, Level) else Level(**level)))
    return [
        f"{_clusters_of(above, upper)} should be <= {_clusters_of(below, lower)}; lower it"
        for (below, lower), (above, upper) in itertools.pairwise(valid)
        if upper.n_centroids > lower.n_centroids
    ]


def _given_twice(overrides: Sequence[str]) -> Iterator[str]:
    """Find overrides of a setting that an earlier one has given already."""
    given = dict[tuple[str | int, ...], str]()
    for override in overrides:
        parts = override.partition("=")[0].strip().split(".")
        name = tuple(int(part) if part.isdecimal() else part for part in parts)
        if name in given:
            yield f"set={show(override)} should be given once, but follows {show(given[name])}; keep one of them"
        given[name] = override


def _override(settings: dict[str, Any], override: str) -> str | None:
    """Apply one ``name=value`` to the settings; return the problem if it does not fit."""
    name, separator, text = override.partition("=")
    first, *rest = parts = name.strip().split(".")
    if not separator or not all(parts):
        return f"set={show(override)} should be NAME=VALUE; write it like levels.1.n_clusters=5000"
    try:
        value = read_value(text)
    except ValueError as error:
        return f"{name}={show(text)} should be a value YAML can read; {error}"
    if first != "levels":
        if rest or first not in Config.model_fields:
            return unknown(name, value, list(Config.model_fields), list(Level.model_fields))
        settings[first] = value
        return None
    levels = settings.get("levels")
    if not isinstance(levels, list):
        return None  # the model reports this
    if len(rest) != 2:
        return f"{name}={show(value)} should be levels.LEVEL.SETTING; write it like levels.1.n_clusters=5000"
    number = int(rest[0]) if rest[0].isdecimal() else 0
    if not 1 <= number <= len(levels):
        return f"{name}={show(value)} should be of a level from 1 to {len(levels)}; level 1 clusters the samples"
    if rest[1] not in Level.model_fields:
        return unknown(name, value, list(Level.model_fields))
    if isinstance(levels[number - 1], dict):
        levels[number - 1][rest[1]] = value
    return None
