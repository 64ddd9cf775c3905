"""The Zarr layouts, with their names and versions, and the rules for chunks and blocks, as pure functions."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hkm_dask.data.objects import Location, location
from hkm_dask.errors import InputError, NoRowsError, StoreError

POOL_FORMAT = "hkm_dask.pool"
TREE_FORMAT = "hkm_dask.tree"
ASSIGNMENT_FORMAT = "hkm_dask.assignment"
FORMATS = (POOL_FORMAT, TREE_FORMAT, ASSIGNMENT_FORMAT)
FORMAT_VERSION = 2

# Arrays of a pool. The arrays of a tree are named by their level, in `hierarchy.tree`.
EMBEDDINGS = "embeddings"
IDS = "ids"
MEAN = "mean"
# Names that a pool or a subset uses itself: none of them can be an additional column.
OWN_COLUMNS = frozenset({EMBEDDINGS, IDS, MEAN, "row", "id", "distance"})

# Valid names of additional columns, which become folders; a column with missing values has a mask beside it.
COLUMN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MISSING_SUFFIX = ".missing"

SAMPLE = "sample"
FEATURE = "feature"

COMPLETE = "complete"
# Attribute of an array that identifies the content of its chunks, see `array_fingerprint`.
FINGERPRINT = "fingerprint"
# Attribute of a group that identifies all its metadata, see `metadata_digest`.
DIGEST = "digest"

MIB = 2**20
MIN_CHUNK_BYTES = MIB
MAX_CHUNK_BYTES = 64 * MIB
CHUNKS_PER_POOL = 64
# Each id is a Python object while it is read, so a chunk of ids is bounded by rows, not by bytes on disk.
MAX_ID_CHUNK_ROWS = 2**18

CRC_BYTES = 4

_MAKERS = {
    POOL_FORMAT: "`hkm ingest` makes pools",
    TREE_FORMAT: "`hkm cluster` makes trees",
    ASSIGNMENT_FORMAT: "`hkm assign` makes assignments",
}
_REMEDIES = {
    POOL_FORMAT: "make it again from its sources with `hkm ingest` or `hkm embed`",
    TREE_FORMAT: "make it again from its pool with `hkm cluster --restart`",
    ASSIGNMENT_FORMAT: "make it again with `hkm assign --restart`",
}
#: The command that resumes an unfinished store.
_RESUMED = {TREE_FORMAT: "`hkm cluster`", ASSIGNMENT_FORMAT: "`hkm assign`"}


@dataclass(frozen=True)
class ArraySpec:
    """Storage layout of one array, as far as it is needed to read the chunks directly.

    >>> spec = ArraySpec((10, 3), np.dtype("f4"), chunk_rows=4, checked=True, plain=True)
    >>> spec.n_chunks, spec.row_bytes, spec.chunk_file_bytes, spec.chunk_range(2)
    (3, 12, 52, (8, 10))
    """

    shape: tuple[int, ...]
    dtype: np.dtype  # element type, in native byte order; ``object`` for variable-length strings
    chunk_rows: int  # rows per storage chunk; on disk the last chunk is padded to this length
    #: Whether every chunk ends with a CRC-32C. In such an array a missing chunk is a loss, not a fill value.
    checked: bool
    plain: bool  # whether a chunk file holds only full-width rows and the CRC-32C, readable without Zarr

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row in memory."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def n_chunks(self) -> int:
        """Number of chunks along the first axis."""
        return -(-self.shape[0] // self.chunk_rows)

    @property
    def chunk_file_bytes(self) -> int:
        """Length in bytes of every chunk file of a plain array, including padding and checksum."""
        return self.chunk_rows * self.row_bytes + CRC_BYTES

    def chunks(self, start: int, stop: int) -> range:
        """Return the numbers of the chunks that hold the rows `start` to `stop`."""
        return range(start // self.chunk_rows, -(-stop // self.chunk_rows) if start < stop else 0)

    def chunk_range(self, index: int) -> tuple[int, int]:
        """Return the first row of chunk `index`, and the row after its last."""
        start = index * self.chunk_rows
        return start, min(start + self.chunk_rows, self.shape[0])


def array_fingerprint(spec: ArraySpec, checksums: np.ndarray) -> str:
    """Identify the content of an array by a hexadecimal SHA-256 of its shape, dtype, chunk rows and chunk checksums.

    >>> array_fingerprint(ArraySpec((3, 2), np.dtype("f4"), 3, checked=True, plain=True), np.array([7]))[:8]
    '8e465a48'
    """
    head = f"{','.join(map(str, spec.shape))},{spec.dtype.name},{spec.chunk_rows}:"
    return hashlib.sha256(head.encode() + checksums.astype("<u4").tobytes()).hexdigest()


def metadata_digest(attributes: Mapping[str, Any], consolidated: Mapping[str, Any]) -> str:
    """Identify the metadata of a group by a hexadecimal SHA-256 of its attributes and those of all its members.

    >>> metadata_digest({"complete": True, "digest": "is left out"}, {})[:8]
    'c3e45d3c'
    """
    own = {name: value for name, value in attributes.items() if name != DIGEST}
    return hashlib.sha256(json.dumps([own, consolidated], sort_keys=True).encode()).hexdigest()


def absent_value(dtype: np.dtype) -> Any:
    """Return the fill value, which an unchecked reader gets for a missing chunk: it cannot be mistaken for data.

    >>> absent_value(np.dtype("f4")), absent_value(np.dtype("i4")), absent_value(np.dtype(object))
    (-inf, -2147483648, 'a chunk is missing')
    """
    if dtype.kind == "f":
        return -np.inf
    if dtype.kind in "iu":
        return np.iinfo(dtype).min or np.iinfo(dtype).max
    if dtype.kind == "b":
        return True  # in a mask: missing
    return "a chunk is missing"


def parse_array_spec(metadata: Mapping[str, Any]) -> ArraySpec | None:
    """Parse the layout of an array from its ``zarr.json``; None if only Zarr can read the array."""
    try:
        if metadata["zarr_format"] != 3 or metadata["node_type"] != "array":
            return None
        shape = tuple(int(size) for size in metadata["shape"])
        chunks = tuple(int(size) for size in metadata["chunk_grid"]["configuration"]["chunk_shape"])
        codecs = [codec["name"] for codec in metadata["codecs"]]
        key = metadata["chunk_key_encoding"]
        regular = (
            metadata["chunk_grid"]["name"] == "regular"
            and key["name"] == "default"
            and key.get("configuration", {}).get("separator", "/") == "/"
            and not metadata.get("storage_transformers")
        )
        full_width = len(shape) >= 1 and all(c >= s for c, s in zip(chunks[1:], shape[1:], strict=True))
        if not (regular and full_width and chunks[0] > 0):
            return None
        is_text = metadata["data_type"] == "string"
        dtype = np.dtype(object) if is_text else np.dtype(metadata["data_type"])
        endian = metadata["codecs"][0].get("configuration", {}).get("endian", "little")
        plain = codecs == ["bytes", "crc32c"] and endian == "little" and not is_text and chunks[1:] == shape[1:]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError):
        return None
    return ArraySpec(shape, dtype, chunks[0], checked=codecs[-1] == "crc32c", plain=plain)


def chunk_rows(n_rows: int, row_bytes: int, *, chunk_mb: float | None = None) -> int:
    """Choose the rows per storage chunk: a 64th of the pool within 1 to 64 MiB, or `chunk_mb` MiB, at most 64.

    Thus even a small pool keeps every core busy, and no reader needs more than 64 MiB to verify a checksum.

    >>> chunk_rows(1_000_000, 1536)
    15625
    >>> chunk_rows(10**9, 2048), chunk_rows(100, 2048)
    (32768, 100)
    """
    if chunk_mb is None:
        size = min(max(n_rows * row_bytes // CHUNKS_PER_POOL, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)
    elif 0 < chunk_mb * MIB <= MAX_CHUNK_BYTES:
        size = int(chunk_mb * MIB)
    else:
        raise InputError(f"chunk_mb={chunk_mb} should be above 0 and at most {MAX_CHUNK_BYTES // MIB}; leave it out")
    return min(max(1, size // row_bytes), max(1, n_rows))


def block_bounds(n_rows: int, row_bytes: int, *, max_bytes: int, min_blocks: int = 1, unit_rows: int = 1) -> np.ndarray:
    """Cut rows into blocks of about equal size, each a whole number of storage chunks.

    ::

        chunks  |0   |4   |8   |12  |16 |
        blocks  |0   |4        |12      |     max_bytes = 8 rows, unit_rows = 4

    Returns the first row of every block, followed by `n_rows`, as int64 (n_blocks + 1,). A block has at most
    `max_bytes` or is one chunk of `unit_rows` rows; there are at least `min_blocks` if there are as many chunks.

    >>> block_bounds(18, 1, max_bytes=8, unit_rows=4)
    array([ 0,  4, 12, 18])
    >>> block_bounds(18, 1, max_bytes=100, min_blocks=2, unit_rows=4)
    array([ 0,  8, 18])
    """
    units = -(-n_rows // unit_rows)
    units_per_block = max(1, max_bytes // max(1, row_bytes * unit_rows))
    n_blocks = min(units, max(-(-units // units_per_block), min_blocks, 1))
    # Integer arithmetic only: float64 is not exact beyond 2**53.
    cuts = np.arange(n_blocks, dtype=np.int64) * units // max(1, n_blocks) * unit_rows
    return np.append(cuts, np.int64(n_rows))


def spans(offsets: np.ndarray, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Locate rows in a table of stacked parts; yields (part, start, stop), with rows relative to the part.

    `offsets` (int64) holds the first row of every part, followed by the total number of rows.

    >>> list(spans(np.array([0, 3, 3, 8]), 1, 5))
    [(0, 1, 3), (2, 0, 2)]
    """
    while first < last:
        part = int(np.searchsorted(offsets, first, side="right")) - 1
        offset, stop = int(offsets[part]), min(last, int(offsets[part + 1]))
        yield part, first - offset, stop - offset
        first = stop


def float_dtype(dtype: np.dtype) -> np.dtype | None:
    """Return the dtype in which rows are read: floats are kept, integers become a float that holds them.

    >>> [str(float_dtype(np.dtype(code))) for code in ("f2", ">f4", "f8", "u1", "i8", "c8", "U3")]
    ['float16', 'float32', 'float64', 'float32', 'float64', 'None', 'None']
    """
    if dtype.kind == "f" and dtype.itemsize in (2, 4, 8):
        return np.dtype(f"f{dtype.itemsize}")
    if dtype.kind in "iub":
        return np.dtype("f4" if dtype.itemsize <= 2 else "f8")
    return None


def check_shape(shape: tuple[int, ...], label: str) -> tuple[int, int]:
    """Return the shape of a table of rows; InputError if it is not 2-D, or has no rows or no columns.

    >>> check_shape((5,), "a.npy")
    Traceback (most recent call last):
    hkm_dask.errors.InputError: a.npy: shape=(5,) should be (n_samples, n_features); reshape it, (-1, 1) for one feature
    """
    if len(shape) != 2:
        remedy = "reshape it, (-1, 1) for one feature" if len(shape) == 1 else "reshape it to two dimensions"
        raise InputError(f"{label}: shape={shape} should be (n_samples, n_features); {remedy}")
    if 0 in shape:
        fact, kind = ("n_samples=0", NoRowsError) if shape[0] == 0 else ("n_features=0", InputError)
        raise kind(f"{label}: {fact} should be at least 1; give embeddings that are not empty")
    return shape


def remedy(fmt: str = "") -> str:
    """Return how to restore a damaged store of format `fmt`."""
    return _REMEDIES.get(fmt, "make it again from its source")


def check_marker(attributes: Mapping[str, Any], fmt: str, path: object) -> None:
    """Refuse, with a StoreError, a store of another format or version, or one that is not marked complete.

    >>> check_marker({"format": "hkm_dask.pool", "format_version": 2}, POOL_FORMAT, "a.zarr")
    Traceback (most recent call last):
    hkm_dask.errors.StoreError: a.zarr is not complete; make it again from its sources with `hkm ingest` or `hkm embed`
    """
    kind, made = attributes.get("format"), attributes.get("format_version")
    if kind != fmt:
        fact = (
            f"is {_named(kind)}" if kind in FORMATS else f"has format={kind!r}" if kind else "has no format attribute"
        )
        maker = _MAKERS.get(fmt, "give another path")
        raise StoreError(f"{path} {fact}, but should be {_named(fmt)}; {maker}")
    if made != FORMAT_VERSION:
        newer = isinstance(made, int) and made > FORMAT_VERSION
        way = "read it with a newer hkm_dask" if newer else remedy(fmt)
        raise StoreError(f"{path}: format_version={made!r} should be {FORMAT_VERSION} for this hkm_dask; {way}")
    if attributes.get(COMPLETE) is not True:
        begun = fmt in _RESUMED and COMPLETE not in attributes
        # In an object store, an unfinished store already has its final name.
        resume = f"resume the {_RESUMED[fmt]} that started it, or " if begun else ""
        raise StoreError(f"{path} is not complete; {resume}{remedy(fmt)}")


def _named(fmt: str) -> str:
    """Return a format in words.

    >>> _named(POOL_FORMAT), _named(ASSIGNMENT_FORMAT)
    ('a pool', 'an assignment')
    """
    kind = fmt.removeprefix("hkm_dask.")
    return f"an {kind}" if kind[0] == "a" else f"a {kind}"


def wip_path(path: str | os.PathLike[str]) -> Location:
    """Return the path where a store is built before it is renamed to `path`.

    >>> wip_path("/data/pool.zarr").name
    'pool.zarr.wip'
    """
    target = location(path).absolute()
    return target.with_name(f"{target.name}.wip")


def work_path(path: str | os.PathLike[str]) -> Location:
    """Return the folder for the checkpoints and scratch files of the run that builds a store.

    >>> work_path("/data/tree.zarr").name
    'tree.zarr.work'
    """
    target = location(path).absolute()
    return target.with_name(f"{target.name}.work")
