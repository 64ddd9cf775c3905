"""Columns of CSV files, against Python's csv reader."""

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkm_dask.errors import InputError
from hkm_dask.ingestion import table_files
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.ingestion.table_files import CsvTable
from hkm_dask.ingestion.tables import kept_column
from tests.ingestion.pools import ids_of, values

CELLS = (
    st.integers(-(2**70), 2**70).map(str)
    | st.floats().map(str)
    | st.sampled_from(
        ["", "007", "-0", "+1", "1e3", ".5", "5.", "true", "False", "NaN", "inf", " 1", "1 ", "0x10", "1_0"]
    )
    | st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)
)


def kind_of(cells: list[str]) -> str:
    there = [cell for cell in cells if cell]
    if not there:
        return ""
    if all(cell in ("true", "True", "TRUE", "false", "False", "FALSE") for cell in there):
        return "b"
    if all(re.fullmatch(r"0|-?[1-9][0-9]*", cell) and -(2**63) <= int(cell) < 2**63 for cell in there):
        return "i"
    if any(re.fullmatch(r"-?[1-9][0-9]*", cell) and int(float(cell)) != int(cell) for cell in there):
        return "O"  # as a float it would be another
    leading_zeros, plain = re.compile(r"-?0[0-9]"), re.compile(r"-?([0-9.]+([eE][-+]?[0-9]+)?|inf)|nan|NaN|Nan|naN")
    return "f8" if all(plain.fullmatch(cell) and not leading_zeros.match(cell) for cell in there) else "O"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=30), st.sampled_from([".csv", ".tsv"]))
def test_a_column_has_the_type_of_all_its_values(tmp_path: Path, cells: list[str], suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=table_files.DELIMITERS[suffix])
        writer.writerows([("n", "cell"), *enumerate(cells)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_files, "_BLOCK_BYTES", 300)  # several blocks
        column = kept_column(CsvTable(path), "cell")
        found: list[Any] = [value for piece in column.pieces() for value in piece.tolist()]
    assert column.kind == kind_of(cells)
    read = {"b": lambda cell: cell.lower() == "true", "i": int, "f8": float, "O": str, "": str}[column.kind]
    for cell, value in zip(cells, found, strict=True):
        if not cell:
            assert value is None
        elif column.kind == "f" and math.isnan(float(cell)):
            assert value is None or math.isnan(value)
        else:
            assert value == read(cell)


def test_whole_numbers_that_no_float_holds_stay_as_they_are_written(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(3))
    hashes, floats = [2**64 - 1, 2**64 - 3, 7], [10**20, 0.5, 2**60]
    lines = [f"{i},{long},{short}\n" for i, (long, short) in enumerate(zip(hashes, floats, strict=True))]
    (tmp_path / "t.csv").write_text("".join(["id,hash,n\n", *lines]))
    options = {"ids_file": tmp_path / "t.csv", "ids": "id", "keep": ["hash", "n"]}
    pool = ingest(tmp_path / "a.npy", tmp_path / "p.zarr", **options)
    assert pool.column("hash").tolist() == list(map(str, hashes))
    assert pool.column("n").tolist() == floats


def test_a_table_beside_embeddings(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values())
    rows = [(f"{i:03}", f'"{i}", she said', i / 2 if i % 5 else "") for i in range(57)]
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet writes it
        csv.writer(file).writerows([("id", "text", "score"), *rows])
    pool = ingest(
        tmp_path / "a.npy", tmp_path / "p.zarr", ids_file=tmp_path / "t.csv", ids="id", keep=["text", "score"]
    )
    assert ids_of(pool) == [name for name, *_ in rows]
    assert pool.column("text").tolist() == [text for _, text, _ in rows]
    assert pool.column("score").tolist() == [score if i % 5 else None for i, (*_, score) in enumerate(rows)]


@pytest.mark.parametrize(
    ("content", "ids", "message"),
    [
        (b"", "id", r"should be a CSV file, but cannot be read \(.*\); copy it again"),
        (b"id,n\n1\n", "id", "should be a CSV file, but cannot be read"),
        (b"id\n\xff\xfe\n", "id", "should be a CSV file, but cannot be read"),
        (b"id,id\n" + b"1,2\n" * 57, "id", "should be a column of"),
        (b"id,n\n" + b"1,2\n" * 57, "ids", r"should be a column of .*t\.csv \(id, n\)"),
        (b"id,n\n" + b"1,2\n" * 57, None, r"should be one of the columns of .* \(id, n\); choose one"),
        (b"id,n\n" + b",2\n" * 57, "id", "ids='id' of .*: type=null should be integers or strings"),
        (b"id,n\n" + b"1.5,2\n" * 57, "id", "type=double should be integers or strings"),
        (b"id,n\n" + b"a,2\n" * 56, "id", "57"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, content: bytes, ids: str | None, message: str) -> None:
    np.save(tmp_path / "a.npy", values())
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        ingest(tmp_path / "a.npy", tmp_path / "p.zarr", ids_file=tmp_path / "t.csv", ids=ids)
    assert not (tmp_path / "p.zarr").exists()
