"""Writes the file or object of one chunk, row by row, with its checksum at the end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import google_crc32c
import numpy as np

from hkm_dask.data import layout
from hkm_dask.data.files import careful
from hkm_dask.data.layout import ArraySpec
from hkm_dask.data.objects import Location
from hkm_dask.errors import InputError


class ChunkWriter:
    """Writes one chunk file row by row; see `StoredArray.writer`.

    Attributes
    ----------
    crc : int
        CRC-32C of the chunk, padding included; valid once the writer's context is closed.
    """

    def __init__(self, path: Location, spec: ArraySpec, put: Callable[[np.ndarray], int]) -> None:
        self.crc = 0
        self._path, self._spec, self._write = path, spec, put
        self._missing = spec.chunk_rows * spec.row_bytes

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows of the chunk, in the array's type and row shape."""
        data = np.ascontiguousarray(rows, dtype=self._spec.dtype).reshape(-1).view(np.uint8)
        if data.size > self._missing:
            raise InputError(f"rows={len(rows)} should fit the chunk {self._path}; write whole chunks")
        self._append(data)

    def close(self) -> None:
        """Fill what is missing with zeros, as all chunks of Zarr have one length, and write the checksum."""
        padding = np.zeros(min(self._missing, layout.MIB), dtype=np.uint8)
        while self._missing:
            self._append(padding[: self._missing])
        self._put(np.frombuffer(self.crc.to_bytes(layout.CRC_BYTES, "little"), dtype=np.uint8))

    def _append(self, data: np.ndarray) -> None:
        self._put(data)
        self._missing -= data.size
        self.crc = google_crc32c.extend(self.crc, data)

    def _put(self, data: np.ndarray) -> None:
        offset = 0
        while offset < data.size:
            offset += careful(partial(self._write, data[offset:]), f"writing {self._path}")
