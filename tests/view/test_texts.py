"""Texts of rows: lines of a file, or a column, read and searched like a list."""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.browsing.samples import Samples
from hkm_dask.data.chunks import open_array
from hkm_dask.data.kept_chunks import KeptChunks
from hkm_dask.data.pool_writer import write_column
from hkm_dask.errors import InputError
from hkm_dask.view import texts
from hkm_dask.view.texts import Column, Found, Lines, Texts

WORDS = st.lists(
    st.text(st.sampled_from("aBé ß\r"), max_size=6).filter(lambda t: not t.endswith("\r")), min_size=1, max_size=200
)


def search(source: Texts, query: str, limit: int) -> list[int]:
    """Search to the end, one block or one hit at a time."""
    rows, row = list[int](), 0
    for _ in range(2000):
        found = source.find(query, row, limit=limit, until=0)
        assert len(found.rows) <= limit
        rows, row = rows + found.rows, found.next_row
        if row == source.n_rows:  # type: ignore[attr-defined]
            return rows
    raise AssertionError("the search does not end")


@settings(max_examples=40)
@given(
    words=WORDS,
    query=st.sampled_from(["a", "b", "É", "ab", " "]),
    block=st.sampled_from([8, 40, 2**20]),
    newline=st.booleans(),
)
def test_lines_are_read_and_searched_like_a_list(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], query: str, block: int, newline: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "captions.txt"
    path.write_bytes(("\n".join(words) + "\n" * (newline or not words[-1])).encode())
    before = texts.BLOCK_BYTES
    texts.BLOCK_BYTES = block
    try:
        lines = Lines(path, len(words))
        assert lines.take(np.arange(len(words))[::-1]) == words[::-1]
        expected = [i for i, word in enumerate(words) if query.lower() in word.lower()]
        assert search(lines, query, 3) == expected
    finally:
        texts.BLOCK_BYTES = before


def test_a_column_is_read_and_searched_like_a_list(tmp_path: Path) -> None:
    words = [f"Wolf {i}" if i % 7 == 0 else f"é{i}" for i in range(300)]
    write_column(tmp_path, "ids", [np.array(words, dtype=object)], 300)
    column = Column(open_array(tmp_path / "ids"), KeptChunks(1 << 20))
    assert column.take(np.array([299, 0, 299])) == [words[299], words[0], words[299]]
    assert search(column, "wOLF", 10) == list(range(0, 300, 7))
    assert search(column, "É12", 10) == [i for i, word in enumerate(words) if "é12" in word]
    assert column.find("wolf", 299, limit=5, until=time.monotonic() + 1) == Found([], 300)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_captions_in_records_are_read_and_searched_like_a_list(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "RECORDS_AT_ONCE", 7)
    words, path = [f"Wolf {i}" if i % 9 == 0 else f"é{i}" for i in range(50)], tmp_path / f"captions{suffix}"
    table = pa.table({"text": words})
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    samples = Samples(50, captions=str(path))
    assert samples.captions is not None
    assert samples.captions.take(np.array([49, 0, 49])) == [words[49], words[0], words[49]]
    assert search(samples.captions, "wOLF", 2) == list(range(0, 50, 9))
    with pytest.raises(InputError, match="should have 51 texts, one per row of the pool, not 50"):
        Samples(51, captions=str(path))


def test_captions_of_other_rows_are_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a\nb\nc\n")
    with pytest.raises(InputError, match=r"captions\.txt should have 4 lines, one per row of the pool, not 3"):
        Lines(tmp_path / "captions.txt", 4)
    with pytest.raises(InputError, match="should have 2 lines"):
        Lines(tmp_path / "captions.txt", 2)


def test_a_large_file_is_counted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "COUNTED_AT_ONCE", 1)
    (tmp_path / "captions.txt").write_text("a\nb\nc\n")
    lines = Lines(tmp_path / "captions.txt", 4)
    for _ in range(500):
        if lines.problem:
            break
        time.sleep(0.01)
    assert lines.problem is not None
    assert lines.take(np.array([2, 3])) == ["c", None]


def test_a_number_is_found_by_all_of_its_digits(tmp_path: Path) -> None:
    write_column(tmp_path, "ids", [np.array([7, 77, 7, 170])], 4)
    column = Column(open_array(tmp_path / "ids"), KeptChunks(1 << 20))
    assert (column.values(np.array([3, 0])), column.take(np.array([3, 0]))) == ([170, 7], ["170", "7"])
    assert search(column, "7", 10) == [0, 2]


def test_numbers_in_float32_are_shown_with_the_digits_they_have(tmp_path: Path) -> None:
    write_column(tmp_path, "score", [np.ma.masked_equal(np.float32([0.1, 0.30000001, -1, 7]), -1)], 4)
    column = Column(
        open_array(tmp_path / "score"),
        KeptChunks(1 << 20),
        read=lambda low, high: np.ma.masked_equal(open_array(tmp_path / "score").read(low, high), -1),
    )
    assert column.values(np.arange(4)) == [0.1, 0.3, None, 7.0]
    assert column.take(np.arange(4)) == ["0.1", "0.3", None, "7.0"]


def test_a_column_is_read_where_its_chunks_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkm_dask.data.layout.MAX_ID_CHUNK_ROWS", 64)
    write_column(tmp_path, "ids", [np.arange(300)], 300)
    column = Column(open_array(tmp_path / "ids"), KeptChunks(most_bytes=1))
    assert column.values(np.array([299, 0, 70, 299])) == [299, 0, 70, 299]
