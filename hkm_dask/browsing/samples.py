"""Samples for the page: captions, ids, columns, embeddings and images, a few rows at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.errors import InputError
from hkm_dask.view.sample_sources import SampleSources

#: Most characters of a text that are sent to the page.
MAX_CHARACTERS = 2000


class Samples(SampleSources):
    """The samples of a tree, by row number; see `SampleSources`."""

    def facts(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Return what the page shows of rows: ``row``, ``id``, ``caption``, ``columns``, and if it has an ``image``."""
        ids = self.ids.values(rows) if self.ids else [None] * len(rows)
        captions = self.captions.take(rows) if self.captions else [None] * len(rows)
        columns = {name: column.values(rows) for name, column in self.columns.items()}
        return [
            {
                "row": int(row),
                "id": None if ids[i] is None else str(ids[i])[:MAX_CHARACTERS],
                "caption": None if (text := captions[i]) is None else text[:MAX_CHARACTERS],
                "columns": {name: _plain(values[i]) for name, values in columns.items()},
                "image": self.images is not None,
            }
            for i, row in enumerate(rows)
        ]

    def embedding(self, row: int) -> NDArray[np.float32]:
        """Read the embedding of a row; raises InputError if there is no pool or no such row."""
        if self.pool is None:
            raise InputError("pool=None should be given to find neighbors of a row; give --pool")
        if not 0 <= row < self.n_rows:
            raise InputError(f"row={row} should be from 0 to {self.n_rows - 1}; choose another")
        return self.pool.rows().read(row, row + 1)[0].astype(np.float32)

    def image(self, row: int, size: int) -> bytes:
        """Read an image as JPEG of at most `size` pixels per side; raises InputError if there is none."""
        if self.images is None or self.image_names is None or not 0 <= row < self.n_rows:
            raise InputError(f"row={row} should have an image; give --images")
        return self.images.jpeg(str(self.image_names.values(np.array([row]))[0]), size)


def _plain(value: Any) -> Any:
    """Convert a value to one that JSON can represent.

    >>> _plain(float("nan")), _plain(3), _plain("a")
    (None, 3, 'a')
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)  # JavaScript would round larger ones
    return None if value is None else str(value)[:MAX_CHARACTERS]
