"""Bytes that a build reads from and writes to files, by phase, as pure functions of shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hkm_dask.compute.memory import MEMBER_BYTES, REGROUPED_ROW_BYTES
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import Rows
from hkm_dask.hierarchy.sorting.external_sort import n_at_once, rows_at_once
from hkm_dask.hierarchy.source import label_chunk_rows
from hkm_dask.planning.cost import seeding_passes
from hkm_dask.search.geometry import has_directions

#: Number of places at which rows are sampled, and total rows of the two samples: for the mean and for directions.
_SAMPLE_PLACES, _SAMPLED_ROWS = 16, (1024, 8192)

#: Bytes of the sort key of members; each needs one pass.
_KEY_BYTES = 4


@dataclass(frozen=True)
class FileBytes:
    """Bytes read and written.

    >>> FileBytes(1, 2) + FileBytes(10)
    FileBytes(read=11, written=2)
    """

    read: int = 0
    written: int = 0

    def __add__(self, other: FileBytes) -> FileBytes:
        return FileBytes(self.read + other.read, self.written + other.written)


@dataclass(frozen=True)
class Resident:
    """Shares of rows that stay in memory between passes."""

    fit: float = 1.0  # of the rows of a level in its first k-means
    labels: float = 1.0  # of the same rows, during assignment
    members: float = 1.0  # of the resampled rows
    after_members: float = 1.0  # of the rows of a level, after resampled rows have displaced some
    members_in_files: bool = False  # whether resampled rows are copied to files


def level_files(
    number: int, shape: dict[str, Any], rows: Rows, n_total: int, stays: Resident, n_iter: tuple[int, int],
    runner: Runner,
) -> dict[str, FileBytes]:  # fmt: skip
    """Return the bytes of a level by phase; rows of upper levels are centroids, which stay in memory.

    `shape` is that of the event ``run_started``, `rows` are the input of level 1, and `n_total` is the number of rows
    that the level labels. Rows that stay in memory (`stays`) are read once, the rest in every pass. `n_iter` are the
    iterations of the first k-means and of each later one; the memory of the `runner` decides what goes through files.
    """
    n, k, d, m = (shape[name] for name in "nkdm")
    centroids, ends = 4 * k * d, 4 * k * d * shape["n_splits"]
    stored = rows.n_rows * rows.row_bytes if number == 1 else 4 * n * d
    steps = (m + 1) * centroids  # written at the end of a k-means, and read back for the checksum
    files = {
        "start": FileBytes(_sampled(rows, k) if number == 1 else stored),
        "Lloyd": FileBytes(steps, steps),
        "assign": FileBytes(0, 8 * n_total),
        "write": FileBytes(0, ends + 24 * k * shape["n_splits"]) + sorted_members(n_total, runner),
    }
    more = []
    if number == 1:
        more += [passes_of_fit(stored, stays.fit, seeding_passes(n, k, shape["init"]), n_iter[0])]
        # The first center is a row, and its whole chunk is read; so is that of each center drawn at random.
        n_drawn = k if shape["init"] == "random" else 1
        more += [{"seeding": FileBytes(min(stored, n_drawn * _chunk_bytes(rows)))}]
        again = [round((1.0 - share) * stored) for share in (stays.labels, stays.after_members)]
        more += [{"assign": FileBytes(again[0] + m * again[1]), "gather": FileBytes(m * again[0])}]
    if m:
        n_parts = min(runner.n_parts(2.0 * n * k * d), -(-rows.n_rows // label_chunk_rows(rows)))
        picked = picked_members(n, k, shape["r"], n_parts, runner)
        n_members = min(n, k * shape["r"])
        members = n_members * (rows.row_bytes if number == 1 else 4 * d)
        if stays.members_in_files:
            fit = passes_of_fit(members, stays.members, seeding_passes(n_members, k, shape["init"]), n_iter[1])
            picked = added(picked, fit, {"gather": FileBytes(0, members)})
        more += [picked] * m
    if shape["n_splits"] > 1:
        more += [
            split_members(n_total, round((1.0 - stays.labels) * stored) if number == 1 else 0, stored, ends, runner)
        ]
    return added(files, *more)


def added(*of_phases: Mapping[str, FileBytes]) -> dict[str, FileBytes]:
    """Add up bytes by phase.

    >>> added({"seeding": FileBytes(1)}, {"seeding": FileBytes(2), "Lloyd": FileBytes(3)})
    {'seeding': FileBytes(read=3, written=0), 'Lloyd': FileBytes(read=3, written=0)}
    """
    total: dict[str, FileBytes] = {}
    for files in of_phases:
        for phase, one in files.items():
            total[phase] = total.get(phase, FileBytes()) + one
    return total


def passes_of_fit(n_bytes: int, resident: float, n_seeding: int, n_iter: int) -> dict[str, FileBytes]:
    """Return the bytes that a k-means reads of its rows: all in the first pass, then those that do not stay in memory.

    >>> passes_of_fit(1000, 0.75, 3, 10)
    {'seeding': FileBytes(read=1500, written=0), 'Lloyd': FileBytes(read=2500, written=0)}
    """
    again = round((1.0 - resident) * n_bytes)
    first = n_bytes - again
    return {
        "seeding": FileBytes(n_seeding * again + first * (n_seeding > 0)),
        "Lloyd": FileBytes(n_iter * again + first * (n_seeding == 0)),
    }


def split_members(n: int, again: int, stored: int, ends: int, runner: Runner) -> dict[str, FileBytes]:
    """Return the bytes to split clusters: `n` rows, of which `again` bytes must be read, are made contiguous.

    Labels and distances are read; results, 8 bytes per row each, are written, verified, and read again to restore the
    order. Intermediate data of tasks may stay in memory: the record of a row, its position, and its result.
    """
    handed_on, place = (MEMBER_BYTES, 8) if runner.keeps_in_files(REGROUPED_ROW_BYTES * n) else (0, 0)
    split = FileBytes((16 + 2 * handed_on + place) * n, (8 + handed_on + place) * n)
    put_back = FileBytes((8 + handed_on + 2 * place) * n, (8 + place) * n)
    return {"split": split + FileBytes(again + stored + ends, stored + ends), "write": put_back + FileBytes(ends)}


def sorted_members(n: int, runner: Runner) -> FileBytes:
    """Return the bytes to sort members: labels and distances, 8 bytes per row, are read to count and to sort.

    With more than one share they are also read to partition them.
    """
    if n <= n_at_once(n, runner):
        return FileBytes(2 * 8 * n, 8 * n)
    scratch = MEMBER_BYTES * n if runner.keeps_in_files(MEMBER_BYTES * n) else 0
    return FileBytes((2 + _KEY_BYTES) * 8 * n + scratch, 8 * n + scratch)


def picked_members(n: int, k: int, r: int, n_parts: int, runner: Runner) -> dict[str, FileBytes]:
    """Return the bytes of picking members to resample: each of `n_parts` picks up to `r` rows per cluster.

    The final rows are chosen among these, so picks are read again; with more than one share, also to partition and to
    sort them, and once more to drop some.
    """
    n_picked, n_chosen = min(n, k * r * n_parts), min(n, k * r)
    if not runner.keeps_in_files(MEMBER_BYTES * n_picked):
        return {}
    times_read, times_written = (1, 1) if n_picked <= rows_at_once(runner) else (3, 2)
    numbers, members = 8 * n_chosen, MEMBER_BYTES * n_picked
    return {
        "assign": FileBytes(times_read * members, times_written * members + numbers), "gather": FileBytes(numbers)
    }  # fmt: skip


def _chunk_bytes(rows: Rows) -> int:
    return min(rows.chunk_rows, rows.n_rows) * rows.row_bytes


def _sampled(rows: Rows, n_clusters: int) -> int:
    """Return the bytes of the chunks that row samples touch; a chunk is read whole at every place in it.

    Searches with many features and clusters use principal directions, which need a second sample.
    """
    samples = _SAMPLED_ROWS if has_directions(rows.n_features, n_clusters) else _SAMPLED_ROWS[:1]
    chunk = min(rows.chunk_rows, rows.n_rows)
    beyond = sum(samples) / _SAMPLE_PLACES / chunk if chunk < rows.n_rows else 0.0  # extra chunks per place
    return round(_SAMPLE_PLACES * (len(samples) + beyond) * _chunk_bytes(rows))
