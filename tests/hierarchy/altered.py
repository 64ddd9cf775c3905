"""Stores altered with all checksums corrected, so that only their contents can reveal it."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest.mock import patch

import numpy as np

from hkm_dask.data import layout, store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.files import METADATA_FILE

Change = Callable[[np.ndarray], np.ndarray | None]


def rewrite(root: Path, name: str, change: Change, *, chunk_rows: int | None = None) -> None:
    """Change the values of an array in place, or replace them by what `change` returns, in chunks of `chunk_rows`."""
    array = open_array(root / name)
    values = array.read(0, array.spec.shape[0])
    changed = change(values)
    values = values if changed is None else changed
    metadata = json.loads((root / name / METADATA_FILE).read_text())
    rows = chunk_rows or array.spec.chunk_rows
    dtype = str if values.dtype == object else values.dtype
    store.create_array(
        (root / name).parent, Path(name).name, shape=values.shape, dtype=dtype, chunks=(rows, *values.shape[1:]),
        dims=metadata["dimension_names"][: values.ndim],
    )  # fmt: skip
    open_array(root / name).write(0, values)
    seal(root, Path(name).parts[:-1])
    if name == layout.EMBEDDINGS and values.ndim == 2:
        set_attributes(root, fingerprint=open_array(root / name).fingerprint)


def set_attributes(root: Path, **attributes: object) -> None:
    with patch.object(store, "sync"):  # what lies here is not to outlive a loss of power
        store.mark_complete(root, attributes)


def seal(root: Path, levels: Iterable[str] = ()) -> None:
    """Mark some levels of a store, and the store, as complete once more."""
    for folder in [*levels, "."]:
        set_attributes(root / folder)


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))
