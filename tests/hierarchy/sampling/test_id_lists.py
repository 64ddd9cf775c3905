"""Lists of ids in all supported formats."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.export import write_pool_rows
from hkm_dask.hierarchy.sampling.id_lists import read_id_list

N = 50


def pool_of(ids: np.ndarray) -> Any:
    return SimpleNamespace(has_ids=True, ids=lambda rows: ids[rows])


NUMBERS = pool_of(np.arange(N) * 10)
TEXTS = pool_of(np.array([f"=a{i}" if i % 2 else f"b {i}" for i in range(N)], dtype=object))


def rows_of(ids: Any, pool: Any) -> list[int]:
    return np.flatnonzero(read_id_list(ids, pool, N, "exclude_ids").rows(pool, N)).tolist()


@pytest.mark.parametrize("ids", [[30, 470], np.array([470, 30, 30], "u2"), ["30", "470"], np.array(["30", "470"])])
def test_whole_numbers_are_found_in_any_form(ids: Any) -> None:
    assert rows_of(ids, NUMBERS) == [3, 47]


def test_texts_are_found_in_files_that_people_have(tmp_path: Path) -> None:
    (tmp_path / "windows.txt").write_bytes("\ufeff=a3\r\n\r\nb 4\r\n".encode())
    (tmp_path / "ids.csv").write_bytes(b"id,score\n'=a3,1\nb 4,2\n")
    pq.write_table(
        pa.table({"row": [9, 9], "id": pa.array(["=a3", "b 4"]).dictionary_encode()}), tmp_path / "a.parquet"
    )
    pq.write_table(pa.table({"row": pa.array([3, 4], pa.uint8())}), tmp_path / "b.parquet")
    np.save(tmp_path / "rows.npy", [3, 4])
    for path in tmp_path.iterdir():
        assert rows_of(path, TEXTS) == [3, 4], path.name
    assert rows_of(tmp_path / "a.parquet", None) == [9]  # without ids in the pool rows are all there is


def test_texts_in_an_array_are_ids_though_they_look_like_row_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array(["30", "470"]))
    assert rows_of(tmp_path / "ids.npy", NUMBERS) == [3, 47]
    assert rows_of(tmp_path / "ids.npy", pool_of(np.array([str(i * 10) for i in range(N)], dtype=object))) == [3, 47]
    np.save(tmp_path / "rows.npy", np.array(["3", "47"]))
    assert rows_of(tmp_path / "rows.npy", None) == [3, 47]


def test_a_quote_mark_that_an_id_has_of_its_own_stays(tmp_path: Path) -> None:
    # `hkm sample` writes a column `row`, and one more ' before each of these; a file without it may be another's.
    ids = np.array(["=1", "'=1", "''=2", "'=3", "=4"], dtype=object)
    pool: Any = SimpleNamespace(has_ids=True, columns=(), ids=lambda rows: ids[rows])
    for text, expected in [
        ("id\n=1\n", [0]),
        ("id\n'=1\n", [1]),
        ("row,id\n0,'=1\n", [0]),
        ("row,id\n1,''=1\n", [1]),
        ("id\n''=2\n'=3\n", [2, 3]),
        ("id\n'''=2\n'=4\n", [2, 4]),  # cut from a file of ours: the pool has none that reads so
    ]:
        (tmp_path / "ids.csv").write_text(text)
        found = read_id_list(tmp_path / "ids.csv", pool, len(ids), "exclude_ids").rows(pool, len(ids))
        assert np.flatnonzero(found).tolist() == expected, text


ODD_TEXT = st.text("'=-a", max_size=3) | st.text("'=\t\r\n ,\"7\ufeff\0é", max_size=4) | st.text(max_size=5)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ODD_TEXT, unique=True, min_size=1, max_size=8), st.data())
def test_ids_come_back_from_files_of_ours_as_they_were(tmp_path: Path, texts: list[str], data: st.DataObject) -> None:
    ids = np.array(texts, dtype=object)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1))))
    pool = SimpleNamespace(has_ids=True, columns=(), ids=lambda rows: ids[rows])
    for suffix in (".csv", ".parquet", ".txt"):
        path = tmp_path / f"ids{suffix}"
        path.unlink(missing_ok=True)
        if suffix == ".txt" and not all(re.fullmatch(r"[^\r\n\ufeff][^\r\n]*", text) for text in ids[rows]):
            with pytest.raises(InputError, match="should be without line breaks, not empty, and begin with no byte"):
                write_pool_rows(path, rows, pool)  # type: ignore[arg-type]
            continue
        write_pool_rows(path, rows, pool)  # type: ignore[arg-type]
        listed = read_id_list(path, pool, len(ids), "exclude_ids")  # type: ignore[arg-type]
        assert listed.numbers(pool, len(ids)).tolist() == rows.tolist(), suffix  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "pool", "problem"),
    [
        ("a.txt", b"30\nten\n", NUMBERS, r"exclude_ids=.* should be whole numbers, as the pool has them"),
        ("a.txt", b"30\n1e400\n", None, r"exclude_ids=.* should be whole numbers"),
        ("a.txt", b"7\n50\n-1\n", None, "should be row numbers from 0 to 49, 2 are not, like 50"),
        ("a.txt", b"\xff\xfe", TEXTS, r"but cannot be read \(it is not UTF-8\); save it as UTF-8"),
        ("a.csv", b"url,row\nx,3\n", NUMBERS, None),
        ("a.csv", b"url,rows\nx,3\n", TEXTS, "with a column id or row; it has url, rows"),
        ("a.csv", b"id\nx\n", None, "with a column row; it has id"),
        ("a.csv", b"url,id\nx\n", TEXTS, "but cannot be read"),
        ("a.parquet", b"PAR1", TEXTS, "but cannot be read"),
    ],
)
def test_files_that_are_no_lists_of_ids(
    tmp_path: Path, name: str, content: bytes, pool: Any, problem: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if problem is None:
        assert rows_of(path, pool) == [3]
        return
    with pytest.raises(InputError, match=problem):
        read_id_list(path, pool, N, "exclude_ids")


def test_what_could_be_taken_for_something_else_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", [3, 4])
    with pytest.raises(InputError, match="may hold row numbers or ids, both of which are whole numbers; "):
        read_id_list(tmp_path / "rows.npy", NUMBERS, N, "exclude_ids")
    pq.write_table(pa.table({"id": ["b 2", None]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="its column id lacks 1 values"):
        read_id_list(tmp_path / "a.parquet", TEXTS, N, "exclude_ids")
    for ids in ([[1]], [1.5], object()):
        with pytest.raises(InputError, match="should be a list of ids"):
            read_id_list(ids, TEXTS, N, "exclude_ids")
    for number in (1.5, 2**64 - 10):
        with pytest.raises(InputError, match="should be whole numbers, as the pool has them"):
            read_id_list(np.array([number], object if number == 1.5 else None), NUMBERS, N, "exclude_ids")
    assert rows_of([], TEXTS) == []
