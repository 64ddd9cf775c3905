"""Rules for chunks and blocks hold at any size; markers and metadata report errors."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.data import layout
from hkm_dask.errors import InputError, StoreError

POOL = {"format": "hkm_dask.pool", "format_version": 2, "complete": True}


@given(n_rows=st.integers(1, 10**9), row_bytes=st.integers(2, 10**5))
def test_chunks_are_a_64th_within_one_and_64_mib(n_rows: int, row_bytes: int) -> None:
    rows = layout.chunk_rows(n_rows, row_bytes)
    assert 1 <= rows <= n_rows
    size = rows * row_bytes
    assert size <= 64 * layout.MIB
    if rows < n_rows:
        assert size > layout.MIB - row_bytes
        # As many as feed every core, unless that made chunks too small or too large.
        at_bounds = size > 64 * layout.MIB - row_bytes or size <= layout.MIB
        assert at_bounds or 64 <= -(-n_rows // rows) <= 64 * (1 + row_bytes / layout.MIB) + 1


def test_chunk_mb_replaces_the_rule() -> None:
    assert layout.chunk_rows(1000, 1024, chunk_mb=0.01) == 10
    assert layout.chunk_rows(1000, 2**20, chunk_mb=0.01) == 1


@pytest.mark.parametrize("chunk_mb", [0, -1, 65, float("nan"), float("inf")])
def test_chunk_mb_out_of_range_is_refused(chunk_mb: float) -> None:
    with pytest.raises(InputError, match=r"chunk_mb=.* should be above 0 and at most 64"):
        layout.chunk_rows(1000, 1024, chunk_mb=chunk_mb)


@given(
    n_rows=st.integers(1, 10**5),
    row_bytes=st.integers(1, 5000),
    max_bytes=st.integers(1, 10**6),
    min_blocks=st.integers(1, 50),
    unit_rows=st.integers(1, 1000),
)
def test_blocks_cover_all_rows_by_whole_chunks(
    n_rows: int, row_bytes: int, max_bytes: int, min_blocks: int, unit_rows: int
) -> None:
    bounds = layout.block_bounds(n_rows, row_bytes, max_bytes=max_bytes, min_blocks=min_blocks, unit_rows=unit_rows)
    sizes = np.diff(bounds)
    assert bounds.dtype == np.int64
    assert bounds[0] == 0
    assert bounds[-1] == n_rows
    assert (sizes > 0).all()
    assert (bounds[:-1] % unit_rows == 0).all()
    assert (sizes <= max(unit_rows, max_bytes // row_bytes)).all()
    assert len(sizes) >= min(min_blocks, -(-n_rows // unit_rows))


def test_blocks_of_a_pool_beyond_32_bits() -> None:
    bounds = layout.block_bounds(10**9, 4096, max_bytes=64 * layout.MIB, unit_rows=16384)
    assert bounds[-1] == 10**9
    assert np.diff(bounds).max() == 16384


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3,), r"a: shape=\(3,\) should be \(n_samples, n_features\); reshape it, \(-1, 1\)"),
        ((), "should be"),
        ((2, 3, 4), "reshape it to two dimensions"),
        ((0, 3), "n_samples=0 should be at least 1"),
        ((3, 0), "n_features=0 should be at least 1"),
    ],
)
def test_what_is_no_table_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        layout.check_shape(shape, "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "hkm_dask.tree"}, "a.zarr is a tree, but should be a pool; `hkm ingest` makes pools"),
        ({"format": "other"}, "has format='other', but should be a pool"),
        ({"format": None}, "no format attribute"),
        ({"format_version": 3}, r"format_version=3 should be 2 .* newer hkm_dask"),
        ({"format_version": 1}, r"format_version=1 should be 2 .* make it again"),
        ({"format_version": None}, "format_version=None should be 2"),
        ({"complete": False}, "is not complete; make it again"),
        ({"complete": "yes"}, "is not complete"),
    ],
)
def test_markers_say_what_is_wrong(change: dict, message: str) -> None:
    layout.check_marker(POOL, layout.POOL_FORMAT, "a.zarr")
    with pytest.raises(StoreError, match=message):
        layout.check_marker({**POOL, **change}, layout.POOL_FORMAT, "a.zarr")


@pytest.mark.parametrize("command", ["cluster", "assign"])
def test_of_what_is_being_built_it_is_said_how_to_go_on(command: str) -> None:
    """In an object store it has its name from the beginning; `--restart` was told, which throws away what is there."""
    fmt = {"cluster": layout.TREE_FORMAT, "assign": layout.ASSIGNMENT_FORMAT}[command]
    begun = {"format": fmt, "format_version": layout.FORMAT_VERSION}
    message = f"a.zarr is not complete; resume the `hkm {command}` that started it, or make it again"
    with pytest.raises(StoreError, match=message):
        layout.check_marker(begun, fmt, "a.zarr")
    with pytest.raises(StoreError, match="is not complete; make it again"):
        layout.check_marker({**begun, "complete": False}, fmt, "a.zarr")


PLAIN = {
    "shape": [10, 4],
    "data_type": "float16",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0.0,
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    "zarr_format": 3,
    "node_type": "array",
    "storage_transformers": [],
}


def test_a_plain_array_is_recognized() -> None:
    spec = layout.parse_array_spec(PLAIN)
    assert spec == layout.ArraySpec((10, 4), np.dtype("f2"), 4, checked=True, plain=True)
    assert spec.chunk_range(2) == (8, 10)
    assert spec.chunk_file_bytes == 4 * 4 * 2 + 4


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "crc32c"}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]},
        {"codecs": [{"name": "bytes"}, {"name": "zstd"}, {"name": "crc32c"}]},
        {"codecs": [{"name": "transpose"}, {"name": "bytes"}, {"name": "crc32c"}]},
        {"codecs": []},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 2]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 8]}}},
        {"chunk_grid": {"name": "rectilinear", "configuration": {"chunk_shape": [4, 4]}}},
        {"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}}},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
        {"storage_transformers": [{"name": "x"}]},
        {"data_type": "string"},
        {"data_type": {"name": "numpy.datetime64"}},
        {"data_type": "nonsense"},
        {"shape": "ten"},
        {"shape": []},
        {"zarr_format": 2},
        {"node_type": "group"},
    ],
    ids=lambda change: json.dumps(change),
)
def test_anything_else_is_left_to_zarr(change: dict) -> None:
    spec = layout.parse_array_spec({**PLAIN, **change})
    assert spec is None or not spec.plain


def test_every_missing_key_is_left_to_zarr() -> None:
    for key in PLAIN:
        spec = layout.parse_array_spec({name: value for name, value in PLAIN.items() if name != key})
        assert spec is None or key in ("fill_value", "storage_transformers")


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8), data=st.data())
def test_spans_of_parts_are_the_rows_in_order(sizes: list[int], data: st.DataObject) -> None:
    offsets = np.cumsum([0, *sizes])
    rows = [(part, row) for part, size in enumerate(sizes) for row in range(size)]
    first = data.draw(st.integers(0, len(rows)))
    last = data.draw(st.integers(first, len(rows)))
    spans = list(layout.spans(offsets, first, last))
    assert [(part, row) for part, start, stop in spans for row in range(start, stop)] == rows[first:last]
    assert all(start < stop for _, start, stop in spans)
