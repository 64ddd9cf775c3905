"""Safetensors are read as rows, with all values of all dtypes; false headers are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.data.rows import NpyRows
from hkm_dask.errors import InputError, StoreError
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.ingestion.safetensors import SafetensorsRows, read_tensors
from tests.ingestion.pools import TINY, read_all, tidy, values


def write(path: Path, tensors: dict[str, tuple[str, np.ndarray]], **changes: dict) -> Path:
    """Write the format by its definition; `changes` alter what is said of a tensor."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, array) in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets} | changes.get(name, {})
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(("dtype", "name"), [("f2", "F16"), ("f4", "F32"), ("f8", "F64")])
def test_a_tensor_is_rows(tmp_path: Path, dtype: str, name: str) -> None:
    x = values(dtype=dtype)
    source = write(tmp_path / "a.safetensors", {"bias": ("F32", x[0].astype("f4")), "emb": (name, x)})
    rows = SafetensorsRows(source, read_tensors(source)["emb"])
    assert rows.dtype == x.dtype
    np.testing.assert_array_equal(rows.read(5, 31), x[5:31])
    np.testing.assert_array_equal(rows.take(np.array([0, 7, 56])), x[[0, 7, 56]])
    pool = ingest(source, tmp_path / "p.zarr", chunk_mb=TINY)  # the only table needs no name
    np.testing.assert_array_equal(read_all(pool), x.astype("f2" if dtype == "f2" else "f4"))
    assert pool.sources == (f"{source}[emb]",)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    x = values()
    half = (x.view("u4") >> 16).astype("u2")
    source = write(tmp_path / "a.safetensors", {"emb": ("BF16", half)})
    expected = (x.view("u4") & 0xFFFF0000).view("f4")
    np.testing.assert_array_equal(read_all(ingest(source, tmp_path / "p.zarr", chunk_mb=TINY)), expected)
    rows = SafetensorsRows(source, read_tensors(source)["emb"])
    np.testing.assert_array_equal(rows.take(np.array([3, 40])), expected[[3, 40]])
    np.testing.assert_array_equal(rows.read(0, 9, np.empty((9, 4), "f4")), expected[:9])


def test_what_the_library_wrote(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    library.save_file({"a": values(), "b": -values()}, tmp_path / "a.safetensors", metadata={"made": "by"})
    pool = ingest(tmp_path / "a.safetensors", tmp_path / "p.zarr", column="b")
    np.testing.assert_array_equal(read_all(pool), -values())
    with pytest.raises(InputError, match=r"column=None should be one of the tensors of .* \(a, b\); choose"):
        ingest(tmp_path / "a.safetensors", tmp_path / "q.zarr")
    with pytest.raises(InputError, match=r"ids='id' should be one of the tensors of .* \(a, b\)") as error:
        ingest(tmp_path / "a.safetensors", tmp_path / "q.zarr", column="b", ids="id", keep="label")
    assert "keep='label' should be one of the tensors of" in error.value.problems[1]


def test_tensors_of_one_value_per_row_are_ids_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkm_dask.data.ids.ID_PIECE_ROWS", 10)
    row = np.arange(57)
    columns = {
        "label": ("I64", row % 5), "score": ("F32", (row / 8).astype("f4")),
        "good": ("BOOL", (row % 3).astype("u1")),  # 2 is true, too
    }  # fmt: skip
    tensors = {
        "id": ("U16", (row + 100).astype("<u2")),
        "emb": ("F32", values()),
        "wide": ("I8", np.ones((57, 1), "i1")),
    }
    source = write(tmp_path / "a.safetensors", {**tensors, **columns})
    pool = ingest(source, tmp_path / "p.zarr", column="emb", ids="id", keep=list(columns), chunk_mb=TINY)
    np.testing.assert_array_equal(read_all(pool), values())
    np.testing.assert_array_equal(pool.ids(), row + 100)
    np.testing.assert_array_equal(pool.column("label"), row % 5)
    np.testing.assert_array_equal(pool.column("score"), row / 8)
    np.testing.assert_array_equal(pool.column("good"), row % 3 > 0)
    for options, message in [
        ({"keep": "wide"}, r"\[wide\]: shape=\(57, 1\) should have one dimension; give one value per row"),
        ({"ids": "score"}, r"\[score\]: dtype=F32 should be whole numbers; give the ids as a file"),
    ]:
        with pytest.raises(InputError, match=message):
            ingest(source, tmp_path / "q.zarr", column="emb", **options)  # type: ignore[arg-type]
    write(source, {"emb": ("F32", values()), "n": ("U64", np.full(57, 2**63, "u8")), "b": ("BF16", np.ones(57, "u2"))})
    with pytest.raises(InputError, match=r"\[n\]: value=9223372036854775808 should be below 2\*\*63"):
        ingest(source, tmp_path / "q.zarr", keep="n")
    with pytest.raises(InputError, match=r"\[b\]: dtype=.* should be numbers, text, true or false"):
        ingest(source, tmp_path / "q.zarr", keep="b")


@pytest.mark.faults
@pytest.mark.parametrize(
    "change",
    [
        {"shape": [58, 4]},
        {"shape": [-57, -4]},
        {"shape": 228},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [-4, 908]},
        {"data_offsets": None},
        {"dtype": 7},
    ],
)
def test_what_is_said_of_a_tensor_is_not_believed(tmp_path: Path, change: dict) -> None:
    write(tmp_path / "a.safetensors", {"emb": ("F32", values())}, emb=change)
    with pytest.raises(InputError, match=r"a.safetensors should be a .safetensors file, but cannot be read"):
        ingest(tmp_path / "a.safetensors", tmp_path / "p.zarr")
    tidy(tmp_path, "a.safetensors")


@pytest.mark.faults
def test_damaged_files_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.safetensors", {"emb": ("F32", values())})
    data = source.read_bytes()
    for damaged in (b"", data[:7], data[:60], data[:-1], (2**60).to_bytes(8, "little") + data[8:], data[:8] + b"[1]"):
        source.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a.safetensors should be a .safetensors file, but cannot be read"):
            ingest(source, tmp_path / "p.zarr")
    write(source, {"emb": ("I8", values().view("i1"))})
    with pytest.raises(InputError, match=r"a.safetensors\[emb\]: dtype=I8 should be F16, BF16, F32 or F64; convert"):
        ingest(source, tmp_path / "p.zarr")
    write(source, {"emb": ("F32", values())})
    rows: NpyRows = SafetensorsRows(source, read_tensors(source)["emb"])
    write(source, {"emb": ("F32", values(60))})
    with pytest.raises(StoreError, match=r"was replaced or written to meanwhile"):
        rows.read(0, 3)
