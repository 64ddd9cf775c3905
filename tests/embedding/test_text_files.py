"""Each kind of text file is read by lines or row groups, and a wrong line is named."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hkm_dask.embedding import text_files
from hkm_dask.embedding.texts import open_texts
from hkm_dask.errors import InputError
from tests.embedding.text_writers import WORDS, all_ids, write_parquet, write_txt


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb", ["a", "b"]),
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        ("\n".join(WORDS).encode(), WORDS),
    ],
)
def test_ends_of_lines_and_marks_of_order_are_no_text(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    found = open_texts(tmp_path / "a.txt")
    assert found.read(0, len(found)) == expected
    assert found.ids is None


def test_a_file_larger_than_a_block_is_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{number} " + "ä" * (number % 50) for number in range(1000)]
    write_txt(tmp_path / "a.txt", lines)
    whole = open_texts(tmp_path / "a.txt")
    monkeypatch.setattr(text_files.layout, "MIB", 3)  # blocks of 12 bytes
    found = open_texts(tmp_path / "a.txt")
    assert found.read(0, 1000) == whole.read(0, 1000) == lines
    assert found.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"line 3 of .*a.jsonl should be a JSON object \("),
        (b'{"body": "a"}', r"line 3 of .*a.jsonl should have 'text', it has body; name another"),
        (b'["text"]', "line 3 of .*a.jsonl should have 'text', it has list"),
        (b'{"text": 7}', "line 3 of .*a.jsonl: text=7 should be a text"),
        (b'{"text": "\xff"}', "line 3 of .*a.jsonl should be a JSON object"),
    ],
)
def test_wrong_lines_are_named_when_they_are_read(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b"}\n' + line + b"\n")
    found = open_texts(tmp_path / "a.jsonl")
    assert found.read(0, 2) == ["a", "b"]
    with pytest.raises(InputError, match=message):
        found.read(2, 3)


def test_other_encodings_are_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("good\nschön\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"line 2 of .*a.txt should be UTF-8 \(.*\); convert it with iconv"):
        open_texts(tmp_path / "a.txt").read(0, 2)


def test_ids_of_two_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b", "n": "2"}\n{"text": "c", "n": true}\n')
    with pytest.raises(InputError, match=r"ids='n' of .* should be all integers or all texts"):
        all_ids(open_texts(tmp_path / "a.jsonl", ids="n"))
    with pytest.raises(InputError, match="should have 'url', it has text, n"):
        all_ids(open_texts(tmp_path / "a.jsonl", ids="url"))
    pq.write_table(pa.table({"text": ["a"], "score": [0.5]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="should be integers or strings"):
        all_ids(open_texts(tmp_path / "a.parquet", ids="score"))
    with pytest.raises(InputError, match=r"ids='url' should be a column of .* \(text, score\); choose one"):
        open_texts(tmp_path / "a.parquet", ids="url")


def test_only_one_row_group_of_many_is_held(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [f"text {n}" for n in range(700)])
    found = open_texts(tmp_path / "a.parquet")
    assert [text for start in range(0, 700, 10) for text in found.read(start, start + 10)][699] == "text 699"
    assert len(found.files[0]._cached) <= 2  # type: ignore[attr-defined]
