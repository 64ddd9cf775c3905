"""Names of clusters, such as ``2:19``, and the file of weights that `hkm browse` saves and a draw uses."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hkm_dask.data.files import folder_problem, make_folder, write_file
from hkm_dask.errors import InputError
from hkm_dask.untrusted import read_regular, reading

#: Largest weight, and number of significant decimals.
MAX_WEIGHT, WEIGHT_DECIMALS = 1000, 6
_MAX_BYTES = 256 * 2**20
#: Most invalid lines listed in a message.
_NAMED = 10

_NAME = re.compile(r"([1-9][0-9]{0,2}):(0|[1-9][0-9]{0,17})")


class Cluster(NamedTuple):
    """A cluster, written as ``LEVEL:NUMBER``.

    >>> str(Cluster(2, 19)), Cluster.parse("2:19") == (2, 19)
    ('2:19', True)
    """

    level: int
    number: int

    def __str__(self) -> str:
        return f"{self.level}:{self.number}"

    @classmethod
    def parse(cls, name: str | tuple[int, int]) -> Cluster:
        """Parse ``"2:19"`` or ``(2, 19)``; raises ValueError for anything else."""
        match = _NAME.fullmatch(str(Cluster(*name)) if isinstance(name, tuple) and len(name) == 2 else str(name))
        if match is None:
            raise ValueError
        return cls(int(match[1]), int(match[2]))


def parse_clusters(names: Iterable[str | tuple[int, int]], option: str, problems: list[str]) -> list[Cluster]:
    """Parse names of clusters; adds a line to `problems` for each that is invalid."""
    clusters = []
    for name in names:
        try:
            clusters.append(Cluster.parse(name))
        except ValueError:
            problems.append(f"{option}={name!r} should be LEVEL:NUMBER; write it like 2:19, cluster 19 of level 2")
    return clusters


def read_pairs(
    path: str | os.PathLike[str], option: str, header: list[str], example: str, max_bytes: int
) -> list[tuple[int, list[str]]]:
    """Read a CSV file with this header of two names, as lines with their numbers; raises InputError without it."""
    with reading(f"{option}={str(path)!r} should be a CSV file of {option}, but cannot be read", "check the path"):
        text = read_regular(path, max_bytes).decode("utf-8-sig")
        lines = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows = [(lines.line_num, row) for row in lines if row]
    if not rows or [cell.strip() for cell in rows[0][1]] != header:
        what = f"{','.join(header)}; then one line per {header[0]}, like {example}"
        raise InputError(f"{Path(path).name}: its first line should be {what}")
    return rows[1:]


def read_weights(path: str | os.PathLike[str]) -> dict[Cluster, float]:
    """Read a file of weights, in its order, as written by `write_weights` and `hkm browse`.

    It is CSV with the header ``cluster,weight`` and a line such as ``2:19,0.5`` for every cluster whose weight is not
    1; a `Cluster` is the tuple ``(level, number)``. Raises InputError if the file cannot be read, or with all invalid
    lines.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_weights(f"{folder}/weights.csv", {"2:19": 0, (1, 7): 0.5})
    ...     read_weights(f"{folder}/weights.csv")
    {Cluster(level=1, number=7): 0.5, Cluster(level=2, number=19): 0.0}
    """
    name, rows = Path(path).name, read_pairs(path, "weights", ["cluster", "weight"], "2:19,0.5", _MAX_BYTES)
    weights: dict[Cluster, float] = {}
    problems = [problem for line, row in rows for problem in _read_line(f"{name}, line {line}", row, weights)]
    if len(problems) > _NAMED:
        problems = [*problems[:_NAMED], f"{name}: {len(problems) - _NAMED} more lines have such problems"]
    if problems:
        raise InputError(problems)
    return weights


def _read_line(where: str, row: list[str], weights: dict[Cluster, float]) -> Iterator[str]:
    if len(row) != 2:
        yield f"{where}: {','.join(row)[:60]!r} should be a cluster and a weight; write it like 2:19,0.5"
        return
    problems: list[str] = []
    clusters = parse_clusters([row[0].strip()], f"{where}: cluster", problems)
    try:
        weight = float(row[1])
    except ValueError:
        weight = math.nan
    problems += check_weight(weight, f"{where}: weight={row[1][:60]!r}")
    for cluster in clusters:
        if cluster in weights:
            problems.append(f"{where}: cluster={str(cluster)!r} should be named once; remove one of its lines")
        weights[cluster] = weight
    yield from problems


def check_weight(weight: float, what: str) -> list[str]:
    """Return a one-line list with the problem of a weight, or an empty list."""
    if weight == 0 or 10.0**-WEIGHT_DECIMALS <= weight <= MAX_WEIGHT:
        return []
    return [f"{what} should be 0, which leaves the cluster out, or from 0.000001 to {MAX_WEIGHT}; 1 is no change"]


def check_weights(weights: Mapping[str | tuple[int, int], float]) -> dict[Cluster, float]:
    """Return weights by `Cluster`, sorted by level and number; raises InputError with all that are invalid."""
    if not hasattr(weights, "items"):
        raise InputError(f"weights={weights!r:.80} should be a mapping of clusters; write it like {{'2:19': 0.5}}")
    problems: list[str] = []
    checked: dict[Cluster, float] = {}
    for name, weight in weights.items():
        try:
            plain = float(weight)
        except (TypeError, ValueError):
            plain = math.nan
        problems += check_weight(plain, f"weight={weight!r} of {name}")
        for cluster in parse_clusters([name], "weights", problems):
            if cluster in checked:
                problems.append(f"weights of {cluster} should be given once; leave one of them out")
            checked[cluster] = plain
    if problems:
        raise InputError(problems)
    return dict(sorted(checked.items()))


def write_weights(
    path: str | os.PathLike[str], weights: Mapping[str | tuple[int, int], float], *, overwrite: bool = False
) -> Path:
    """Write a file of weights; it appears only when it is complete.

    Clusters are ``"2:19"`` or ``(2, 19)``; 0 excludes one, 0.5 halves its share among its siblings, and clusters not
    listed have weight 1; see `hkm_dask.sample`. Raises InputError if the file exists, unless `overwrite`, or with all
    invalid names and weights.
    """
    target, checked = Path(path).absolute(), check_weights(weights)
    if os.path.lexists(target) and not overwrite:
        raise InputError(f"{target} should not exist yet; give another path, or overwrite=True")
    if problem := folder_problem(target.parent):
        raise InputError(f"{target} should {problem}")
    # All significant decimals, without an exponent.
    decimals = {cluster: f"{weight:.{WEIGHT_DECIMALS}f}".rstrip("0").rstrip(".") for cluster, weight in checked.items()}
    lines = [f"{cluster},{weight}\n" for cluster, weight in decimals.items()]
    make_folder(target.parent)
    write_file(target, "".join(["cluster,weight\n", *lines]).encode())
    return target
