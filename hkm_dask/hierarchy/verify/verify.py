"""Verification of a store: every chunk, every checksum, and the consistency of its arrays."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.config import Config
from hkm_dask.data import layout
from hkm_dask.data.files import METADATA_FILE, read_json, similar_store
from hkm_dask.data.objects import Location, location
from hkm_dask.data.pool import Pool, open_pool
from hkm_dask.data.row_views import UnitRows
from hkm_dask.data.verify import Verification, check_metadata, leftovers
from hkm_dask.data.verify_chunks import ChunkReader
from hkm_dask.data.verify_pool import check_pool
from hkm_dask.errors import InputError, StoreError, check_whole
from hkm_dask.hierarchy.verify.assignment import check_assignment, check_ids
from hkm_dask.hierarchy.verify.distances import check_distances
from hkm_dask.hierarchy.verify.level import LevelCheck
from hkm_dask.hierarchy.verify.members import check_members

#: Gathers rows by sorted number.
_Take = Callable[[NDArray[np.int64]], NDArray[np.floating]]


def verify(
    path: str | os.PathLike[str],
    *,
    pool: str | os.PathLike[str] | None = None,
    tree: str | os.PathLike[str] | None = None,
    sample: int = 1000,
    seed: int = 0,
) -> Verification:
    """Check a pool, a tree or an assignment from end to end.

    Every chunk is read and its checksum compared, all metadata are cross-checked, and data stored twice must agree: for
    a pool, values with their statistics, fingerprint and ids; for a tree, labels, distances, members, sizes and inertia
    of every level; for an assignment, clusters with those of the tree, and ids. The distances of some rows of each
    level are recomputed in float64, against all centroids or those of their cluster's parts. Checking continues after a
    problem. Memory is bounded: about 64 MiB per thread, 1 GiB for labels and distances, and the per-cluster arrays.

    Parameters
    ----------
    path : path
        A complete pool, tree or assignment.
    pool, tree : path, optional
        Current locations of the pool of a tree, or of the pool and the tree of an assignment; by default those
        recorded.
    sample : int, default 1000
        Rows of each level whose distances are recomputed, 0 for none.
    seed : int, default 0
        Seed by which these rows are drawn.

    Returns
    -------
    Verification
        `sound` tells whether there are no problems, `problems` lists them; printing it gives a report.

    Raises
    ------
    InputError
        If `sample` or `seed` is not an integer from 0 to 2**63 - 1.
    StoreError
        If `path` is missing or is another kind of store, or there is no pool or tree at the given path.

    Examples
    --------
    >>> import tempfile, hkm_dask as hkm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pool = hkm.ingest(np.arange(40.0).reshape(20, 2), f"{folder}/pool.zarr")
    ...     before = hkm.verify(pool.path).sound
    ...     with open(f"{pool.path}/embeddings/c/0/0", "r+b") as chunk:
    ...         _ = chunk.write(b"!")
    ...     after = hkm.verify(pool.path)
    >>> before, after.problems[0].where, after.problems[0].what
    (True, 'embeddings', 'chunk 0 (rows 0:20) was altered on disk: its checksum does not match')
    """
    if problems := check_whole(sample=sample, seed=seed):
        raise InputError(problems)
    begin, root = time.perf_counter(), location(path).absolute()
    attributes = _attributes(root)
    found = Verification(str(root), attributes["format"].removeprefix("hkm_dask."))
    try:
        layout.check_marker(attributes, attributes["format"], root)
    except StoreError as error:
        what, _, remedy = str(error).removeprefix(str(root)).strip(": ").rpartition("; ")
        found.add("", "marker", what, remedy=remedy)
    else:
        places = {name: location(place, name) for name, place in (("pool", pool), ("tree", tree)) if place is not None}
        _check_content(root, attributes, found, places, sample, seed)
    found.notes += leftovers(root)
    found.close(time.perf_counter() - begin)
    return found


def _attributes(root: Location) -> dict[str, Any]:
    """Return the attributes of a store of this package; raises StoreError for anything else."""
    if not root.exists():
        unfinished = layout.wip_path(root)
        other = similar_store(root, *layout.FORMATS)
        remedy = f"{unfinished.name} is unfinished, run its command again" if unfinished.exists() else "check the path"
        raise StoreError(f"{root} is missing; {other}{remedy}")
    metadata = read_json(root / METADATA_FILE)
    attributes = metadata.get("attributes") if metadata else None
    kind = attributes.get("format") if isinstance(attributes, dict) else None
    if not isinstance(attributes, dict) or kind not in layout.FORMATS:
        fact = "there is no zarr.json" if metadata is None else f"its format is {kind!r}"
        raise StoreError(
            f"{root} should be a pool, tree or assignment of hkm, but {fact}; give the path of one, or make it again"
        )
    return attributes


def _check_content(
    root: Location,
    attributes: Mapping[str, Any],
    found: Verification,
    places: Mapping[str, Location],
    sample: int,
    seed: int,
) -> None:
    arrays = check_metadata(root, found)
    # Arrays that are compared with members are read twice.
    again = [array for name, array in arrays.items() if name.endswith(("/labels", "/distances"))]
    more_bytes = sum(array.spec.shape[0] * array.spec.row_bytes for array in again)
    with closing(ChunkReader(arrays, found, more_bytes)) as reader:
        found.checks["chunks"] = ""  # filled in last, but displayed here
        if found.kind == "pool":
            check_pool(attributes, reader, found)
        else:
            levels: Sequence[LevelCheck]
            if found.kind == "tree":
                levels = _check_levels(root, attributes, reader, found)
            else:
                levels = check_assignment(attributes, reader, found, places.get("tree"))
            opened = _pool_of(levels[0], attributes, found, places.get("pool")) if levels and sample else None
            if levels and sample:
                _measure(levels, opened, found, sample, seed, spherical=attributes.get("metric") == "cosine")
            if opened is not None and found.kind == "assignment":
                check_ids(opened, reader, found)
        reader.rest()
        found.checks["chunks"] = reader.summary()


def _check_levels(
    root: Location, attributes: Mapping[str, Any], reader: ChunkReader, found: Verification
) -> list[LevelCheck]:
    """Check every level, and against the level below; returns those whose arrays have the right shapes."""
    try:
        config = Config.from_json(str(attributes.get("config")))
    except InputError as error:
        found.add("", "config", f"config cannot be read: {error.problems[0]}; its levels were not checked")
        return []
    for name in ("seed", "metric"):
        if attributes.get(name) != getattr(config, name):
            found.add("", name, f"{name}={attributes.get(name)} should be {getattr(config, name)}, as in its config")
    wanted = [f"level_{t}" for t in range(1, len(config.levels) + 1)]
    for name in sorted({name.partition("/")[0] for name in reader.arrays} - set(wanted)):
        found.add(name, "level", f"should not be there: its config has {len(wanted)} levels")
    levels, grown = list[LevelCheck](), bool(attributes.get("updates")) or config.fit_sample is not None
    for t, settings in enumerate(config.levels, 1):
        below, n_problems = levels[-1] if levels else None, found.n_problems
        subset = str(attributes.get("subset_fingerprint") or "")
        # With `fit_sample`, all rows were assigned to the nearest of all parts.
        n_parts = 1 if t == 1 and config.fit_sample is not None else settings.n_splits
        level = LevelCheck(t, settings, below, subset, reader, found, grown, n_parts)
        _check_level_marker(root / wanted[t - 1], t, found)
        if not level.check_shapes():
            if t < len(wanted):
                found.notes.append(f"the levels above level {t} were not checked")
            break
        level.check_clusters()
        level.check_rows()
        check_members(level)
        level.check_inertia()
        levels.append(level)
        if found.n_problems == n_problems:
            found.checks[f"level {t}"] = _about(level)
    return levels


def _check_level_marker(folder: Location, t: int, found: Verification) -> None:
    try:
        attributes = (read_json(folder / METADATA_FILE) or {}).get("attributes")
    except StoreError:
        return  # already reported
    stored = attributes if isinstance(attributes, dict) else {}
    if stored.get(layout.COMPLETE) is not True or stored.get("level") != t:
        found.add(folder.name, "marker", f"should be marked as complete, and as level {t}")


def _about(level: LevelCheck) -> str:
    n, below = level.n_rows, "samples" if level.t == 1 else f"clusters of level {level.t - 1}"
    rows = f"{n:,}" if level.n_labeled == n else f"{level.n_labeled:,} of {n:,}"
    return f"{rows} {below} in {level.n_clusters:,} clusters: labels, distances, members, sizes and inertia agree"


# -- recomputed distances ----------------------------------------------------------------------------------------------


def _measure(
    levels: Sequence[LevelCheck], opened: Pool | None, found: Verification, sample: int, seed: int, *, spherical: bool
) -> None:
    """Recompute distances of some rows of every level: of level 1 from the pool, of others from the centroids below."""
    n_problems, measured = found.n_problems, []
    for level in levels:
        if level.t > 1:
            take: _Take = levels[level.t - 2].array("centroids").take
        elif opened is not None:
            take = UnitRows(opened.rows()).take if spherical else opened.rows().take
        else:
            continue
        needed = {level.name("centroids"), *([levels[level.t - 2].name("centroids")] if level.t > 1 else [])}
        if not level.rows_are_whole or needed & level.reader.damaged:
            found.notes.append(f"no rows of level {level.t} were recomputed, because of the damage")
            continue
        try:
            n = check_distances(level, take, sample, seed, spherical=spherical)
        except StoreError as error:
            found.cannot_read("pool", error)
        else:
            measured.append(f"{n:,} of level {level.t}")
    if measured and found.n_problems == n_problems:
        found.checks["measured"] = (
            f"{', '.join(measured)} recomputed in float64: distances and nearest centroids are correct"
        )


def _pool_of(
    level: LevelCheck, attributes: Mapping[str, Any], found: Verification, pool: Location | None
) -> Pool | None:
    """Open the pool of a tree or an assignment; None if it has none, or it cannot be opened, which is reported."""
    stored = str(attributes.get("pool") or "")
    where = pool if pool is not None else location(stored)
    if pool is None and not stored:
        found.notes.append("it was made from an array, not a pool: no samples were recomputed")
        return None
    if pool is None and not where.exists():
        found.notes.append(f"its pool {where} is not there: no samples were recomputed; give its path with --pool")
        return None
    try:
        opened = open_pool(where)
    except StoreError as error:
        if pool is not None:
            raise
        found.cannot_read("pool", error)
        return None
    if opened.n_known_as(str(attributes.get("pool_fingerprint"))) == level.n_rows:
        return opened
    what = f"{where} should be the pool it was made from, its content differs; no samples were recomputed"
    found.add("pool", "pool", what, remedy=f"give the path of its pool with --pool, or make the {found.kind} again")
    return None
