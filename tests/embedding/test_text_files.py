"""Text files of every kind are read by lines or row groups, and invalid lines are named."""

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


@pytest.mark.faults
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_line_without_an_end_is_refused(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(text_files.layout, "MIB", 10)
    (tmp_path / f"a{suffix}").write_bytes(b'{"text": "a"}\n' + b"x" * 200 + b"\n")
    with pytest.raises(
        InputError, match=rf"a{suffix}: the line from byte 14 on should have at most 100 bytes; put each"
    ):
        open_texts(tmp_path / f"a{suffix}")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"n": ' + "[" * 100_000, "line 1 of .* should be a JSON object .it is nested too deeply.; fix it"),
        ('{"n": 1, "text": "a\\ud800"}', r"line 1 of .*: 'a.ud800' should be valid Unicode; fix it"),
        (
            '{"text": "a", "n": 9223372036854775808}',
            r"id=9223372036854775808 should be within 64 bits; give the ids as texts",
        ),
        ('{"text": "a", "n": -' + "9" * 4000 + "}", r"id=-99999999999999999999999 should be within 64 bits"),
        ('{"text": "a", "n": "\\ud800"}', r"'.ud800' should be valid Unicode"),
    ],
)
def test_lines_that_take_too_much_or_hold_no_text_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    texts = open_texts(tmp_path / "a.jsonl", ids="n", skip_empty=True)
    with pytest.raises(InputError, match=message) as caught:
        (texts.read(0, 1), all_ids(texts))
    assert len(str(caught.value)) < 1000


@pytest.mark.faults
def test_ids_in_parquet_that_are_no_ids_are_refused(tmp_path: Path) -> None:
    columns = {"list": [[1], [2]], "date": pa.array([0, 1], pa.date32()), "flag": [True, False], "part": [0.5, 1.5]}
    pq.write_table(pa.table({"text": ["a", "b"], **columns}), tmp_path / "a.parquet")
    for name in columns:
        with pytest.raises(InputError, match=r"neither integers nor strings|should be integers or strings"):
            all_ids(open_texts(tmp_path / "a.parquet", ids=name))


@pytest.mark.faults
def test_a_row_group_is_measured_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", WORDS)
    monkeypatch.setattr(text_files, "MAX_GROUP_BYTES", 50)
    with pytest.raises(InputError, match=r"n_bytes=\d+ of row group 0 should be at most 50; write smaller row groups"):
        open_texts(tmp_path / "a.parquet")
