"""The arguments of `hkm_dask.sample`, validated against the tree and its pool."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.config.problems import nearest
from hkm_dask.data.pool import Pool
from hkm_dask.errors import InputError, first_few, is_whole
from hkm_dask.hierarchy.sampling.columns import DrawColumns, column_to_sort
from hkm_dask.hierarchy.sampling.eligible import Mask, clusters_chosen, rows_below, unknown_clusters
from hkm_dask.hierarchy.sampling.id_lists import IdList, read_id_list
from hkm_dask.hierarchy.sampling.steering import (
    WEIGHT_DECIMALS,
    Cluster,
    check_weights,
    parse_clusters,
    read_pairs,
    read_weights,
)
from hkm_dask.hierarchy.tree.arrays import TreeArrays
from hkm_dask.hierarchy.tree.pools import pool_of_tree

ClusterName = str | tuple[int, int]
Weights = Mapping[ClusterName, float] | str | os.PathLike[str]
Quotas = Mapping[Any, float] | str | os.PathLike[str]

_MAX_BYTES = 2**24


@dataclass
class Rules:
    """Constraints of a draw; `problems` has one line for each that is invalid."""

    exclude: list[Cluster] = field(default_factory=list)
    only: list[Cluster] = field(default_factory=list)
    weights: dict[Cluster, float] = field(default_factory=dict)
    ids: list[IdList] = field(default_factory=list)
    by: str | None = None
    max_per: tuple[str, int] | None = None
    quotas: tuple[str, dict[Any, int | Fraction]] | None = None
    pool: Pool | None = None
    columns: DrawColumns | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def leave_out(self) -> bool:
        """Whether some rows may be ineligible."""
        return bool(self.exclude or self.only or self.ids or self.max_per or self.quotas)

    def mask(self, arrays: TreeArrays) -> tuple[Mask | None, dict[str, int]]:
        """Tell which rows are eligible, ignoring caps and quotas, and how many others there are, by reason.

        Without rules, all rows of the tree are, and there is no mask.
        """
        if not self.leave_out:
            return None, {}
        sizes, inside = arrays.read(1, "leaf_sizes"), clusters_chosen(arrays, [], self.only)
        chosen = clusters_chosen(arrays, self.exclude, self.only)
        mask = rows_below(arrays, chosen)
        n_chosen = np.count_nonzero(mask)
        for ids in self.ids:
            mask &= ~ids.rows(self.pool, len(mask))
        left_out = {
            "outside the chosen clusters": int(sizes[~inside].sum()),
            "in excluded clusters": int(sizes[inside & ~chosen].sum()),
            "with excluded ids": int(n_chosen - np.count_nonzero(mask)),
        }
        return mask, left_out

    def level_weights(self, arrays: TreeArrays) -> list[NDArray[np.int64] | None]:
        """Return integer weights of the clusters of every level, level 1 first; None for equal weights."""
        unit, levels = 10**WEIGHT_DECIMALS, list[NDArray[np.int64] | None]()
        for t in range(1, arrays.n_levels + 1):
            own = {cluster.number: weight for cluster, weight in self.weights.items() if cluster.level == t}
            weights = np.full(arrays.n_clusters(t), unit, np.int64) if own else None
            if weights is not None:
                weights[list(own)] = [round(weight * unit) for weight in own.values()]
            levels.append(weights)
        return levels


def read_rules(
    tree: xr.DataTree,
    arrays: TreeArrays,
    size: Any,
    *,
    strategy: str,
    within: str,
    multiplier: int,
    exclude: Iterable[ClusterName],
    only: Iterable[ClusterName],
    exclude_ids: Any,
    weights: Weights | None,
    by: str | None,
    max_per: Mapping[str, int] | None,
    quotas: Mapping[str, Quotas] | None,
) -> Rules:
    """Read files, and check everything that does not require the pool's ids and columns."""
    rules = Rules(by=by)
    for option, names in (("exclude", exclude), ("only", only)):
        clusters = parse_clusters([names] if isinstance(names, str) else names, option, rules.problems)
        rules.problems += unknown_clusters(arrays, clusters, option)
        getattr(rules, option).extend(clusters)
    with _collected(rules.problems):
        _read_weights(rules, {} if weights is None else weights, arrays, strategy)
    if by is None and within == "best":
        rules.problems.append("by=None should be a column of the pool for within='best'; name one")
    elif by is not None and within != "best":
        rules.problems.append(f"within={within!r} should be best with by={by!r}; give both, or neither")
    with _collected(rules.problems):
        rules.max_per = _read_cap(max_per, multiplier)
    with _collected(rules.problems):
        rules.quotas = _read_quotas(quotas, size)
    # One file, several files, or an array of ids.
    several = isinstance(exclude_ids, list | tuple) and all(isinstance(ids, os.PathLike) for ids in exclude_ids)
    lists = list(exclude_ids) if several else [exclude_ids] if exclude_ids is not None else []
    _open_pool(rules, tree, arrays, asks_ids=bool(lists))
    for ids in lists:
        with _collected(rules.problems):
            rules.ids.append(read_id_list(ids, rules.pool, arrays.n_rows(1), "exclude_ids"))
    return rules


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems += error.problems


def _read_weights(rules: Rules, weights: Weights, arrays: TreeArrays, strategy: str) -> None:
    read = read_weights(weights) if isinstance(weights, str | os.PathLike) else check_weights(weights)
    rules.exclude += [cluster for cluster, weight in read.items() if weight == 0]
    rules.weights = {cluster: weight for cluster, weight in read.items() if weight not in (0, 1)}
    problems = unknown_clusters(arrays, read, "weights")
    below = [str(cluster) for cluster in rules.weights if cluster.level < arrays.n_levels]
    if strategy == "flat" and below:
        problems.append(
            f"weights of {first_few(below)} should be 0 or 1 with strategy='flat', which divides the size among "
            "the top-level clusters only; use hierarchical"
        )
    if problems:
        raise InputError(problems)


def _of_one_column(given: Any, option: str, example: str) -> tuple[str, Any] | None:
    """Return the column of a rule and its value; None if there is no rule."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise InputError(f"{option}={given!r:.80} should be a mapping of a column; write it like {example}")
    if len(given) > 1:
        raise InputError(f"{option} should be for one column, not for {', '.join(given)}; leave the others out")
    return next(iter(given.items()), None)


def _read_cap(max_per: Mapping[str, int] | None, multiplier: int) -> tuple[str, int] | None:
    said = _of_one_column(max_per, "max_per", "{'domain': 100}")
    if said is None:
        return None
    column, most = said
    if not is_whole(most) or most < 1:
        raise InputError(f"max_per={most!r} of {column} should be a whole number >= 1; raise it")
    if is_whole(multiplier) and multiplier > 1:
        raise InputError(f"multiplier={multiplier} should be 1 with max_per; leave out one of them")
    return column, int(most)


def _read_quotas(quotas: Mapping[str, Quotas] | None, size: Any) -> tuple[str, dict[Any, int | Fraction]] | None:
    said = _of_one_column(quotas, "quotas", "{'source': {'web': 0.5}}")
    if said is None:
        return None
    column, given = said
    read = _read_quota_file(given) if isinstance(given, str | os.PathLike) else given
    problems, parsed = list[str](), dict[Any, int | Fraction]()
    for value, amount in read.items():
        exact = _rows_or_share(amount)
        if exact is None:
            rule = "a number of rows like 500, or a share from 0 to 1 like 0.5"
            problems.append(f"quotas={amount!r} of {value!r} should be {rule}; write it so")
        else:
            parsed[value] = exact
    if is_whole(size) and not problems:
        total = sum(amount if isinstance(amount, int) else amount * size for amount in parsed.values())
        if total > size:
            fact = f"quotas of {column} add up to {float(total):g} rows"
            problems.append(f"{fact} but should add up to at most size={size}; lower some of them")
    if problems:
        raise InputError(problems)
    return column, parsed


def _rows_or_share(amount: Any) -> int | Fraction | None:
    """Parse an integer as rows and anything else as a share, like scikit-learn's `train_test_split`; None if invalid.

    >>> _rows_or_share("500"), _rows_or_share(0.1), _rows_or_share("1.0"), _rows_or_share(1.5)
    (500, Fraction(1, 10), Fraction(1, 1), None)
    """
    text = str(amount).strip()
    if text.isdecimal():
        return int(text)
    try:
        share = Fraction(str(float(text)))  # exactly the decimal as written
    except (ValueError, OverflowError):
        return None
    return share if 0 <= share <= 1 else None


def _read_quota_file(path: str | os.PathLike[str]) -> dict[str, str]:
    name = Path(path).name
    rows = [row for _, row in read_pairs(path, "quotas", ["value", "quota"], "web,0.5", _MAX_BYTES)]
    problems = [f"{name}: {','.join(row)[:60]!r} should be a value and its quota" for row in rows if len(row) != 2]
    names = [row[0] for row in rows]
    problems += [f"{name}: value={value!r} should be named once" for value in {*names} if names.count(value) > 1]
    if problems:
        raise InputError([f"{problem}; write it like web,0.5" for problem in problems[:10]])
    return dict(rows)


def _open_pool(rules: Rules, tree: xr.DataTree, arrays: TreeArrays, *, asks_ids: bool) -> None:
    """Open the pool if ids or columns are needed, and find the columns."""
    asked = {"by": rules.by, "max_per": rules.max_per and rules.max_per[0], "quotas": rules.quotas and rules.quotas[0]}
    columns = {option: column for option, column in asked.items() if column}
    if not columns and not asks_ids:
        return
    rules.columns = DrawColumns(None, arrays)
    if not asks_ids and all(column in rules.columns.levels for column in columns.values()):
        return
    rules.pool = pool_of_tree(tree.attrs)
    rules.columns = DrawColumns(rules.pool, arrays)
    known = rules.pool.columns if rules.pool is not None else ()
    for option, column in columns.items():
        name = column_to_sort(column, known)[0] if option == "by" else column
        levels = () if option == "by" else rules.columns.levels
        if name not in (*known, *levels):
            choice = "choose one of them" if known else "ingest them with the embeddings"
            choice += f", or give a level of the tree: {', '.join(levels)}" if levels else ""
            remedy = nearest(name, (*known, *levels)) or choice
            names = ", ".join(known) or "none"
            rules.problems.append(f"{option}={name!r} should be a column of the pool, which has {names}; {remedy}")
