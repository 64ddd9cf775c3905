"""Bytes that a build reads from files and writes to them, by phase, as pure functions of shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hkm_dask.compute.memory import MEMBER_BYTES
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import Rows
from hkm_dask.hierarchy.external_sort import n_at_once, rows_at_once
from hkm_dask.hierarchy.source import label_chunk_rows

#: Places at which rows are sampled to find the middle of all and their directions, and rows of both samples together.
_SAMPLE_PLACES, _SAMPLED_ROWS = 16, 1024 + 8192

#: Bytes of the key by which members are sorted, each of which is looked at in a pass of its own.
_KEY_BYTES = 4


@dataclass(frozen=True)
class FileBytes:
    """Bytes read and written.

    Examples
    --------
    >>> FileBytes(1, 2) + FileBytes(10)
    FileBytes(read=11, written=2)
    """

    read: int = 0
    written: int = 0

    def __add__(self, other: FileBytes) -> FileBytes:
        return FileBytes(self.read + other.read, self.written + other.written)


def level_files(
    number: int, shape: dict[str, Any], rows: Rows, n_total: int, resident: float, passes: int, runner: Runner
) -> dict[str, FileBytes]:
    """Bytes of a level, by phase.

    Parameters
    ----------
    number : int
        From 1. Rows of an upper level are the centroids of the one below, and stay in memory.
    shape : dict
        As the event ``run_started`` has it.
    rows : Rows
        What level 1 clusters.
    n_total : int
        Rows that the level has labels for.
    resident : float
        Share of the rows that is read once; the rest is read in every one of the `passes`.
    runner : Runner
        Whose memory decides how members are sorted.
    """
    k, d, m = shape["k"], shape["d"], shape["m"]
    centroids, ends = 4 * k * d, 4 * k * d * shape["n_splits"]
    stored = rows.n_rows * rows.row_bytes if number == 1 else 4 * shape["n"] * d
    steps = (m + 1) * centroids  # kept when a k-means ends, and read again for its checksum
    files = {
        "start": FileBytes(_sampled(rows) if number == 1 else stored),
        "Lloyd": FileBytes(steps, steps),
        "assign": FileBytes(0, 8 * n_total),
        "write": FileBytes(0, ends + 24 * k * shape["n_splits"]) + sorted_members(n_total, runner),
    }
    if number == 1:
        again = round((1.0 - resident) * stored)
        # The first center is a row, and takes its chunk.
        files["seeding"] = FileBytes(stored + _chunk_bytes(rows) + again * max(0, passes - m - 2))
        files["assign"] += FileBytes(again * (m + 1))
        files["gather"] = FileBytes(again * m)
    if m:
        n_parts = min(runner.n_parts(2.0 * shape["n"] * k * d), -(-rows.n_rows // label_chunk_rows(rows)))
        picked = picked_members(shape["n"], k, shape["r"], n_parts, runner)
        for phase, one in picked.items():
            files[phase] = files.get(phase, FileBytes()) + FileBytes(m * one.read, m * one.written)
        members = min(shape["n"], k * shape["r"]) * (rows.row_bytes if number == 1 else 4 * d)
        if not runner.fits_in_memory(members):
            files["gather"] += FileBytes(0, m * members)
            files["seeding"] = files.get("seeding", FileBytes()) + FileBytes(m * members)
    if shape["n_splits"] > 1:
        # 100 bytes of a row are read and 44 written, most of them in memory where they are few.
        files["split"] = FileBytes(stored + ends + 100 * n_total, stored + ends + 44 * n_total)
    return files


def sorted_members(n: int, runner: Runner) -> FileBytes:
    """Labels and distances, 8 bytes of a row, are read to count and to sort; in more shares than one to cut as well."""
    if n <= n_at_once(n, runner):
        return FileBytes(2 * 8 * n, 8 * n)
    scratch = MEMBER_BYTES * n if runner.keeps_in_files(MEMBER_BYTES * n) else 0
    return FileBytes((2 + _KEY_BYTES) * 8 * n + scratch, 8 * n + scratch)


def picked_members(n: int, k: int, r: int, n_parts: int, runner: Runner) -> dict[str, FileBytes]:
    """Of a resampling: each of `n_parts` picks up to `r` rows of a cluster, among which are chosen so many row numbers.

    What was picked is read for that; in more shares than one to cut and to sort, and once more to leave out some.
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


def _sampled(rows: Rows) -> int:
    """Bytes of the chunks that samples of rows touch, each of which is read whole at every place in it."""
    chunk = min(rows.chunk_rows, rows.n_rows)
    beyond = _SAMPLED_ROWS / _SAMPLE_PLACES / chunk if chunk < rows.n_rows else 0.0  # chunks that a place reaches into
    return round(_SAMPLE_PLACES * (2 + beyond) * _chunk_bytes(rows))
