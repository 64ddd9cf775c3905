"""Members of `.npz` files: damaged or false ones are refused in one line, before decompression."""

import contextlib
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.errors import HkmError, InputError, StoreError
from hkm_dask.ingestion import npz
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.ingestion.npz import member_ids, member_rows, read_members
from tests.data.tables import npy_bytes
from tests.ingestion.pools import ids_of, read_all, values


@pytest.mark.parametrize("kind", ["i4", "u8", "U3"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_ids_are_streamed(tmp_path: Path, kind: str, save: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkm_dask.data.ids.ID_PIECE_ROWS", 10)
    save(tmp_path / "a.npz", x=values(), n=np.arange(57).astype(kind))  # type: ignore[operator]
    pieces = list(member_ids(read_members(tmp_path / "a.npz")["n"])())
    assert [len(piece) for piece in pieces] == [10] * 5 + [7]
    assert [str(value) for piece in pieces for value in piece] == [str(row) for row in range(57)]
    pool = ingest(tmp_path / "a.npz", tmp_path / "p.zarr", column="x", ids="n")
    np.testing.assert_array_equal(read_all(pool), values())
    assert list(map(str, ids_of(pool))) == [str(row) for row in range(57)]


def test_pieces_of_wide_ids_have_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("data.ids", "ingestion.npz"):
        monkeypatch.setattr(f"hkm_dask.{module}.ID_PIECE_BYTES", 100)
    np.savez_compressed(tmp_path / "a.npz", n=np.array(["ab" * 5, "c"] * 4), wide=np.array(["x" * 26]))
    members = read_members(tmp_path / "a.npz")
    assert [len(piece) for piece in member_ids(members["n"])()] == [2] * 4
    with pytest.raises(InputError, match=r"a.npz\[wide\]: dtype=<U26 should have at most 100 bytes; give shorter ids"):
        member_ids(members["wide"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((57, 2), int), r"\[n\]: shape=\(57, 2\) should have one dimension"),
        (np.zeros(57), r"\[n\]: dtype=float64 should be integers or strings"),
        (np.arange(56), r"\[n\]: n_ids=56 should be 57, one per row"),
    ],
)
def test_ids_that_are_none_are_refused(tmp_path: Path, ids: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", x=values(), n=ids)
    with pytest.raises(InputError, match=message):
        ingest(tmp_path / "a.npz", tmp_path / "p.zarr", column="x", ids="n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_one_value_per_row_are_columns(tmp_path: Path, save: object) -> None:
    row = np.arange(57)
    kept = {"label": row.astype("u1"), "score": row / 4, "good": row % 2 == 0, "url": np.char.add("u", row.astype(str))}
    save(tmp_path / "a.npz", x=values(), flat=values(), **kept)  # type: ignore[operator]
    pool = ingest(tmp_path / "a.npz", tmp_path / "p.zarr", column="x", keep=list(kept))
    for name, column in kept.items():
        assert pool.column(name).tolist() == column.tolist()
    with pytest.raises(
        InputError, match=r"\[flat\]: shape=\(57, 4\) should have one dimension; give one value per row"
    ):
        ingest(tmp_path / "a.npz", tmp_path / "q.zarr", column="x", keep="flat")


@pytest.mark.faults
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_byte_that_is_altered_ends_in_a_traceback(tmp_path: Path, save: object) -> None:
    save(tmp_path / "a.npz", x=values(9), n=np.arange(9))  # type: ignore[operator]
    data = (tmp_path / "a.npz").read_bytes()
    for at in range(0, len(data), 5):
        (tmp_path / "b.npz").write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        with contextlib.suppress(HkmError):
            members = read_members(tmp_path / "b.npz")
            if members.keys() == {"x", "n"}:
                member_rows(members["x"], "b", tmp_path / "scratch").read(0, 9)
                list(member_ids(members["n"])())
    shutil.rmtree(tmp_path / "scratch", ignore_errors=True)


def deflated(path: Path, n_rows: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy_bytes(np.zeros((n_rows, 4), np.float32)))
    return path


@pytest.mark.faults
def test_what_unpacks_to_too_much_is_refused_before_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deflated(tmp_path / "a.npz", 100_000)
    assert ingest(path, tmp_path / "small.zarr").n_samples == 100_000
    monkeypatch.setattr(npz, "_BOMB_BYTES", 2**20)
    with pytest.raises(InputError, match=r"\[x\]: n_bytes=1600128 should be at most 100 times the \d+ that they are"):
        ingest(path, tmp_path / "p.zarr")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npz", "small.zarr"]


@pytest.mark.faults
def test_a_disk_without_room_is_told_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deflated(tmp_path / "a.npz", 1000)
    monkeypatch.setattr(npz.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 9_000))
    with pytest.raises(
        StoreError, match=r"\[x\] needs 0.00 GB to be unpacked, the disk of .* is full but for 0.00 GB; "
    ):
        ingest(path, tmp_path / "p.zarr")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.faults
def test_members_that_lie_about_their_size_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=values())
    data = (tmp_path / "a.npz").read_bytes()
    at = data.rindex(b"PK\x01\x02")  # its place in the list of members: two sizes at 20, its offset at 42
    for offset, value in ((24, 2**30), (20, 2**30), (42, 2**31)):
        (tmp_path / "b.npz").write_bytes(
            data[: at + offset] + struct.pack("<I", value) + data[at + offset + 4 :],
        )
        with pytest.raises(InputError):
            ingest(tmp_path / "b.npz", tmp_path / "p.zarr")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("x.npy", npy_bytes(values()))
    with pytest.raises(InputError, match=r"a.npz\[x.npy\] is compressed with a method that NumPy does not use"):
        ingest(tmp_path / "a.npz", tmp_path / "p.zarr")


@pytest.mark.faults
def test_arrays_are_counted_before_they_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", a=values(), b=values(), c=values())
    assert len(read_members(tmp_path / "a.npz")) == 3
    monkeypatch.setattr(npz, "MAX_MEMBERS", 2)
    with pytest.raises(InputError, match=r"a.npz: n_arrays=3 should be at most 2; save several files"):
        read_members(tmp_path / "a.npz")
