"""Tables of embeddings, one below the other, with their ids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hkm_dask.data.ids import Pieces, check_id_count
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.errors import InputError


@dataclass(frozen=True)
class EmbeddingTable:
    """One table of embeddings to ingest.

    Attributes
    ----------
    rows : Rows
        The embeddings.
    name : str
        What to call it.
    ids : callable or None
        Returns an iterator over the ids of all rows, in pieces, in order.
    """

    rows: Rows
    name: str
    ids: Pieces | None = None


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one table; cheap to send to a worker, even where there are thousands of tables.

    Attributes
    ----------
    rows : Rows
        The table.
    start, stop : int
        Row numbers in it.
    """

    rows: Rows
    start: int
    stop: int

    def pieces(self, max_bytes: int) -> Iterator[tuple[int, int]]:
        """Cut at whole storage chunks of the table, so that each is read once; one chunk where it is larger.

        Parameters
        ----------
        max_bytes : int
            Bytes of a piece.

        Yields
        ------
        (int, int)
            First row of the table, and the row after the last.
        """
        chunk = self.rows.chunk_rows
        step = max(1, max_bytes // max(1, chunk * self.rows.row_bytes)) * chunk
        cuts = range(self.start // step * step + step, self.stop, step)
        yield from itertools.pairwise([self.start, *cuts, self.stop])


class Sources:
    """Tables one below the other.

    Parameters
    ----------
    tables : sequence of EmbeddingTable
        With the same number of features.

    Attributes
    ----------
    tables : tuple of EmbeddingTable
        The tables.
    n_rows, n_features : int
        Shape of all together.
    dtype : np.dtype
        The widest type among them.
    ids : callable or None
        The ids of all rows, None where no table has any.
    """

    def __init__(self, tables: Sequence[EmbeddingTable]) -> None:
        self.tables = tuple(tables)
        first = self.tables[0]
        problems = [
            f"{table.name}: n_features={table.rows.n_features} should be {first.rows.n_features} as in {first.name}; "
            "ingest it into a pool of its own"
            for table in self.tables
            if table.rows.n_features != first.rows.n_features
        ]
        bare = [table.name for table in self.tables if table.ids is None]
        if bare and len(bare) < len(self.tables):
            problems.append(f"{bare[0]} should have ids as the other sources have; give ids for all rows")
        if problems:
            raise InputError(problems)
        self.n_features = first.rows.n_features
        self.dtype = np.result_type(*{table.rows.dtype for table in self.tables})
        self._offsets = np.cumsum([0, *(table.rows.n_rows for table in self.tables)], dtype=np.int64)
        self.n_rows = int(self._offsets[-1])
        self.ids = None if bare else self._all_ids

    @property
    def in_memory(self) -> bool:
        """Whether some table lies in the memory of this process, where no other process can read it."""
        return any(isinstance(table.rows, ArrayRows) for table in self.tables)

    def segments(self, start: int, stop: int) -> tuple[Segment, ...]:
        """The rows `start` to `stop` of all together, table by table."""
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        last = int(np.searchsorted(self._offsets, stop, side="left"))
        found = []
        for table, offset in zip(self.tables[first:last], self._offsets[first:last].tolist(), strict=True):
            found.append(Segment(table.rows, max(0, start - offset), min(table.rows.n_rows, stop - offset)))
        return tuple(found)

    def locate(self, row: int) -> str:
        """Name a row by its table, e.g. ``"row 3 of b.npy"``."""
        table = int(np.searchsorted(self._offsets, row, side="right")) - 1
        return f"row {row - int(self._offsets[table])} of {self.tables[table].name}"

    def _all_ids(self) -> Iterator[np.ndarray]:
        for table in self.tables:
            if table.ids is not None:
                n_found = 0
                for piece in table.ids():
                    n_found += len(piece)
                    yield piece
                check_id_count(n_found, table.rows.n_rows, table.name)


def choose_table(names: Sequence[str], column: str | None, path: Path, what: str) -> str:
    """Choose which of several tables is meant; the only one needs no name.

    Parameters
    ----------
    names : sequence of str
        The tables there are.
    column : str or None
        The one asked for.
    path : Path
        What holds them, and `what` they are, for messages.
    what : str

    Returns
    -------
    str

    Raises
    ------
    InputError
        When it is not among them, or none was asked for where there are several.
    """
    if column is None and len(names) == 1:
        return names[0]
    if column not in names or column is None:
        held = ", ".join(names) or "none"
        raise InputError(f"column={column!r} should be one of the {what} of {path} ({held}); choose with column=")
    return column
