"""A CSV file as a table of ids and further columns, whose types are those of all its values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hkm_dask.data.layout import MIB
from hkm_dask.ingestion.table_files import TableFile
from hkm_dask.untrusted import open_regular

if TYPE_CHECKING:
    import pyarrow as pa

#: What files with a header are called, and what is between their values.
DELIMITERS = {".csv": ",", ".tsv": "\t"}
#: Bytes that are parsed together, which no line may exceed.
_BLOCK_BYTES = 4 * MIB
_TRUE, _FALSE = ["true", "True", "TRUE"], ["false", "False", "FALSE"]
#: How numbers are written. One that begins with zeros, like 007, is a name.
_WHOLE = r"^(0|-?[1-9][0-9]{0,18})$"
_DECIMAL = r"^-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$|^([nN]a[nN]|-?inf)$"


class CsvTable(TableFile):
    """A CSV or TSV file with a header, in UTF-8; all of it is one group.

    A column is whole numbers, numbers, or true and false where all its values are, and text otherwise. An empty cell is
    a missing value.
    """

    def _describe(self) -> tuple[pa.Schema, np.ndarray]:
        import pyarrow as pa

        with self._opened() as reader:
            names = reader.schema.names
        possible = [list(_KINDS) for _ in names]
        some, n_rows = [False] * len(names), 0
        with self._opened(dict.fromkeys(names, pa.string())) as reader:
            for batch in reader:
                n_rows += len(batch)
                for number, column in enumerate(batch.columns):
                    values = column.drop_null()
                    some[number] |= len(values) > 0
                    possible[number] = [kind for kind in possible[number] if _KINDS[kind](values)]
        types = [getattr(pa, kinds[0] if there else "null")() for kinds, there in zip(possible, some, strict=True)]
        return pa.schema(list(zip(names, types, strict=True))), np.array([0, n_rows])

    def batches(self, column: str, first: int, last: int, max_rows: int) -> Iterator[pa.Array]:
        """See `TableFile.batches`."""
        with open_regular(self.path), self._opened({column: self.schema.field(column).type}, [column]) as reader:
            for batch in reader:
                yield batch.column(0)

    def _opened(self, types: dict[str, Any] | None = None, columns: list[str] | None = None) -> Any:
        """A reader of the file, with columns as these types."""
        from pyarrow import csv

        return csv.open_csv(
            str(self.path),
            csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            csv.ParseOptions(delimiter=DELIMITERS[self.path.suffix], newlines_in_values=True),
            csv.ConvertOptions(
                column_types=types, include_columns=columns, null_values=[""], strings_can_be_null=True,
                true_values=_TRUE, false_values=_FALSE,
            ),
        )  # fmt: skip


def _are_whole(values: Any) -> bool:
    import pyarrow as pa

    try:
        values.cast(pa.int64())
    except pa.ArrowInvalid:  # text, or beyond 64 bits
        return False
    return _match(values, _WHOLE)


def _match(values: Any, pattern: str) -> bool:
    import pyarrow.compute as pc

    return pc.all(pc.match_substring_regex(values, pattern), min_count=0).as_py() is True


#: Tests of values, by the type that they may have, the narrowest first.
_KINDS = {
    "int64": _are_whole,
    "float64": lambda values: _match(values, _DECIMAL),
    "bool_": lambda values: all(value in (*_TRUE, *_FALSE) for value in values.unique().to_pylist()),
    "string": lambda values: True,
}
