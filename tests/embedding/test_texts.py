"""Texts are returned in file order, from any starting point."""

import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.embedding.texts import open_texts
from hkm_dask.errors import InputError
from hkm_dask.events import subscribe
from tests.embedding.text_writers import (
    LINES,
    WORDS,
    WRITERS,
    all_ids,
    each_kind,
    write_txt,
)


@each_kind
@given(lines=LINES, cuts=st.lists(st.integers(0, 300), max_size=4))
def test_every_slice_is_that_of_the_list(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, lines: list[str], cuts: list[int]
) -> None:
    path = tmp_path_factory.mktemp("slices") / f"a{suffix}"
    WRITERS[suffix](path, lines)
    kept = [(number, line) for number, line in enumerate(lines) if line.strip()]
    found = open_texts(path, skip_empty=True)
    assert len(found) == len(kept)
    bounds = sorted({0, len(kept), *(min(cut, len(kept)) for cut in cuts)})
    read = [text for start, stop in itertools.pairwise(bounds) for text in found.read(start, stop)]
    assert read == [line for _, line in kept]
    if len(kept) < len(lines):
        first = 0 if suffix == ".parquet" else 1  # lines are counted from 1
        assert all_ids(found) == [number + first for number, _ in kept]
    else:
        assert found.ids is None


@each_kind
def test_threads_may_read_at_once(tmp_path: Path, suffix: str) -> None:
    lines = [f"text {number}" for number in range(500)]
    WRITERS[suffix](tmp_path / f"a{suffix}", lines)
    found = open_texts(tmp_path / f"a{suffix}")
    gate = threading.Barrier(4, timeout=20)

    def read(part: int) -> list[str]:
        gate.wait()
        return [text for start in range(part * 125, part * 125 + 125, 25) for text in found.read(start, start + 25)]

    with ThreadPoolExecutor(4) as executor:
        assert [text for part in executor.map(read, range(4)) for text in part] == lines


@each_kind
def test_empty_texts_are_refused_with_the_first_place(tmp_path: Path, suffix: str) -> None:
    lines = [*WORDS, "", "more", " \t "]
    WRITERS[suffix](tmp_path / f"a{suffix}", lines)
    where = "row 7" if suffix == ".parquet" else "line 8"
    with pytest.raises(InputError, match=rf"n_empty_texts=2 should be 0, the first is {where} of .*a{suffix}; fix"):
        open_texts(tmp_path / f"a{suffix}")
    told: list[str] = []
    with subscribe(lambda event: told.append(str(event.fields.get("message")))):
        found = open_texts(tmp_path / f"a{suffix}", skip_empty=True)
    assert "2 empty texts were skipped" in told
    assert found.read(0, 8) == [*WORDS, "more"]


def test_missing_texts_are_empty_ones(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": "b"}\n')
    for name in ("a.parquet", "b.jsonl"):
        with pytest.raises(InputError, match="n_empty_texts=1 should be 0"):
            open_texts(tmp_path / name)
        assert open_texts(tmp_path / name, skip_empty=True).read(0, 2) == ["a", "b"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns_and_ids(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"raw": f"text {n}", "url": f"http://{n}", "number": n + 5, "gap": None if n == 3 else n} for n in range(200)
    ]
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
    found = open_texts(path, column="raw", ids="url")
    assert found.read(10, 12) == ["text 10", "text 11"]
    assert all_ids(found) == [f"http://{n}" for n in range(200)]
    numbers = open_texts(path, column="raw", ids="number")
    assert all_ids(numbers) == list(range(5, 205))
    prints = {open_texts(path, column="raw", ids=ids).fingerprint for ids in (None, "url", "number")}
    assert len({*prints, open_texts(path, column="url").fingerprint}) == 4
    with pytest.raises(InputError, match="gap"):
        all_ids(open_texts(path, column="raw", ids="gap"))


def test_ids_follow_the_texts_that_are_kept(tmp_path: Path) -> None:
    rows = [{"text": "" if n % 3 == 0 else f"t{n}", "n": n} for n in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    expected = [n for n in range(100) if n % 3]
    for name in ("a.jsonl", "a.parquet"):
        found = open_texts(tmp_path / name, ids="n", skip_empty=True)
        assert all_ids(found) == expected
        assert found.read(0, len(found)) == [f"t{n}" for n in expected]


def test_the_only_column_of_texts_needs_no_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2], "body": ["a", "b"]}), tmp_path / "a.parquet")
    assert open_texts(tmp_path / "a.parquet").read(0, 2) == ["a", "b"]
    table = pa.table({"title": ["x", "y"], "body": pa.array(["a", "b"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "b.parquet")
    assert open_texts(tmp_path / "b.parquet", column="body").read(0, 2) == ["a", "b"]
    with pytest.raises(InputError, match=r"column=None should be a column of texts of .*b.parquet \(title, body\)"):
        open_texts(tmp_path / "b.parquet")


@each_kind
def test_a_folder_is_read_in_natural_order_with_ids_that_say_where(tmp_path: Path, suffix: str) -> None:
    for number in (10, 2, 1):
        WRITERS[suffix](tmp_path / f"shard-{number}{suffix}", [f"{number}a", f"{number}b"])
    (tmp_path / "notes.md").write_text("no text")
    found = open_texts(tmp_path)
    assert found.read(0, 6) == ["1a", "1b", "2a", "2b", "10a", "10b"]
    assert found.read(1, 5) == ["1b", "2a", "2b", "10a"]
    first = 0 if suffix == ".parquet" else 1
    assert all_ids(found) == [f"shard-{n}{suffix}:{place + first}" for n in (1, 2, 10) for place in (0, 1)]
    if suffix != ".txt":
        assert all_ids(open_texts(tmp_path, ids="n")) == [0, 1] * 3


@each_kind
def test_the_fingerprint_is_of_the_content_and_of_what_is_taken(tmp_path: Path, suffix: str) -> None:
    def fingerprint(lines: list[str], name: str = "a", **options: bool) -> str:
        path = tmp_path / f"{name}{suffix}"
        WRITERS[suffix](path, lines)
        return open_texts(path, **options).fingerprint  # type: ignore[arg-type]

    first = fingerprint(["a", "b"])
    assert first == fingerprint(["a", "b"])
    assert first == fingerprint(["a", "b"], "moved")
    assert (
        len({first, fingerprint(["a", "c"]), fingerprint(["a", "b", "c"]), fingerprint(["a", "b"], skip_empty=True)})
        == 4
    )


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("a.csv", b"a", {}, r"a.csv should be .txt, .jsonl or .parquet; unpack or convert it"),
        ("a.txt.gz", b"a", {}, "unpack or convert it"),
        ("a.txt", b"a", {"column": "text"}, "column='text' does not apply to .*a .txt file has no columns"),
        ("a.txt", b"a", {"ids": "n"}, "ids='n' does not apply to"),
        ("a.parquet", b"PAR1 not", {}, "should be a parquet file, but cannot be read"),
    ],
)
def test_what_cannot_be_opened_is_refused(
    tmp_path: Path, name: str, data: bytes, options: dict[str, str], message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        open_texts(tmp_path / name, **options)  # type: ignore[arg-type]


def test_folders_of_nothing_or_of_several_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"should hold files of one kind .*, it holds none"):
        open_texts(tmp_path)
    for suffix, write in WRITERS.items():
        write(tmp_path / f"a{suffix}", ["a"])
    with pytest.raises(InputError, match=r"it holds several kinds: .txt, .jsonl, .parquet"):
        open_texts(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        open_texts(tmp_path / "nowhere")


def test_openers_are_told_of_progress(tmp_path: Path) -> None:
    for number in range(3):
        write_txt(tmp_path / f"{number}.txt", ["a"])
    told: list[int] = []
    with subscribe(lambda event: told.append(event.fields["done"])):
        open_texts(tmp_path)
    assert told == [1, 2, 3]
