"""Pools: embeddings on disk with their metadata, ids and further columns."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data import layout
from hkm_dask.data.chunks import StoredArray, check_rows, open_array
from hkm_dask.data.files import read_attributes, read_complete, similar_store
from hkm_dask.data.ids import as_array
from hkm_dask.data.layout import wip_path
from hkm_dask.data.objects import each, location, whole_path, zarr_store
from hkm_dask.data.rows import ZarrRows
from hkm_dask.data.summary import Summary, size_text
from hkm_dask.errors import InputError, StoreError, first_few

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


@dataclass(frozen=True, repr=False)
class Pool:
    """A complete pool of embeddings on disk; cheap to pickle.

    Attributes
    ----------
    path : str
        Absolute path of the pool's folder, or its URL.
    n_samples, n_features : int
        Shape of the embeddings.
    dtype : np.dtype
        float16 or float32.
    chunk_rows : int
        Rows per storage chunk.
    fingerprint : str
        Hexadecimal SHA-256 of the shape, the dtype and the checksums of all chunks.
    max_abs : float
        Largest absolute value of the embeddings.
    mean : np.ndarray of float32, shape (n_features,)
        Mean of the embeddings.
    n_zero_rows : int
        Number of rows that are all zero.
    sources : tuple of str
        Sources that the pool was made from.
    has_ids : bool
        Whether every row has an id in addition to its number.
    columns : tuple of str
        Names of further values per row, such as ``longitude``; see `column`.
    history : tuple of (int, str, tuple of str)
        Earlier states of a pool that grew, oldest first: samples, fingerprint, and the fingerprints of what was added.
    """

    path: str
    n_samples: int
    n_features: int
    dtype: np.dtype
    chunk_rows: int
    fingerprint: str
    max_abs: float
    mean: np.ndarray = field(compare=False)
    n_zero_rows: int
    sources: tuple[str, ...]
    has_ids: bool
    columns: tuple[str, ...]
    history: tuple[tuple[int, str, tuple[str, ...]], ...] = ()
    #: Digest of all metadata, including those of ids and columns, which the fingerprint does not cover.
    _digest: str = field(default="", compare=False)

    def n_known_as(self, fingerprint: str) -> int | None:
        """Return the number of rows when the pool had this fingerprint, all still in it; None if it never had."""
        known = {before: n_samples for n_samples, before, _ in self.history} | {self.fingerprint: self.n_samples}
        return known.get(fingerprint)

    def head(self, n_samples: int) -> Pool:
        """Return the pool limited to its first rows, as it is known to a tree made before the pool grew."""
        return replace(self, n_samples=n_samples)

    def _summary(self) -> Summary:
        n_bytes = self.n_samples * self.n_features * self.dtype.itemsize
        title = f"Pool of {self.n_samples:,} samples × {self.n_features:,} features"
        facts = [
            ("path", self.path),
            ("stored", f"{self.dtype}, {size_text(n_bytes)} in chunks of {self.chunk_rows:,} rows"),
            ("ids", "yes" if self.has_ids else "none; rows are identified by their numbers"),
            ("columns", ", ".join(self.columns)),
            ("made from", ", ".join([*self.sources[:3], *["…"] * (len(self.sources) > 3)])),
        ]
        return Summary(title, [(name, value) for name, value in facts if value])

    def __repr__(self) -> str:
        """Return lines of text: shape, path, and what else is stored."""
        return str(self._summary())

    def _repr_html_(self) -> str:
        return self._summary().to_html()

    def rows(self) -> ZarrRows:
        """Return the embeddings as a table that is read by blocks."""
        rows = ZarrRows(self.path, layout.EMBEDDINGS, fingerprint=self.fingerprint, max_abs=self.max_abs)
        return rows.head(self.n_samples)

    def check_unchanged(self) -> None:
        """Raise StoreError if another pool has replaced this one at its path."""
        self._check_is(open_pool(self.path).fingerprint)

    def _check_is(self, fingerprint: object) -> None:
        if fingerprint != self.fingerprint:
            raise StoreError(
                f"{self.path} was replaced by another pool meanwhile; run the command again on the new one"
            )

    def ids(self, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Return ids (int64 or str) of all rows, or of row numbers in any order; None if the pool has no ids."""
        return self._of_rows(self._arrays(layout.IDS)[0], rows) if self.has_ids else None

    def rows_of(self, ids: Any) -> NDArray[np.int64]:
        """Return the row numbers of ids, in their order; reads all ids of the pool, in pieces.

        InputError if the pool has no ids, or not all of these.

        >>> import tempfile, hkm_dask as hkm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     hkm.ingest(np.eye(3), f"{folder}/pool.zarr", ids=["a", "b", "c"]).rows_of(["c", "a"])
        array([2, 0])
        """
        import pandas as pd

        if not self.has_ids:
            raise InputError(f"ids={ids!r:.80} should be of a pool with ids, {self.path} has none; give row numbers")
        unique, places = np.unique(np.atleast_1d(as_array(ids)), return_inverse=True)
        wanted, rows = pd.Index(unique, dtype=object), np.full(len(unique), -1)
        for low in range(0, self.n_samples if len(unique) else 0, layout.MAX_ID_CHUNK_ROWS):
            piece = self.column_piece(layout.IDS, low, min(low + layout.MAX_ID_CHUNK_ROWS, self.n_samples))
            found = wanted.get_indexer(pd.Index(piece, dtype=object))
            rows[found[found >= 0]] = low + np.flatnonzero(found >= 0)
        if (unknown := unique[rows < 0]).size:
            rule = f"should be ids of {self.path}, like {self.ids(np.array([0])).tolist()[0]!r}"  # type: ignore[union-attr]
            raise InputError(f"ids={first_few(unknown)} {rule}; leave them out")
        return rows[places]

    def column(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Return values (int64, float32, float64, bool or str) of one of the `columns`, for all rows or some.

        The row numbers may be in any order. A column with missing values is a masked array. InputError if there is no
        such column.
        """
        if name not in self.columns:
            names = ", ".join(self.columns) or "none"
            raise InputError(
                f"column={name} should be one of the pool's columns, which are {names}; choose one of them"
            )
        return self._with_mask(name, lambda array: self._of_rows(array, rows))

    def column_piece(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return values of a column for the rows `start` to `stop`; see `column`."""
        return self._with_mask(name, lambda array: array.read(start, stop))

    def to_xarray(self) -> xr.Dataset:
        """Return the pool as a lazy `xarray.Dataset` over ``sample`` and ``feature``: embeddings, ids and columns.

        Missing numbers are NaN, which converts integers to floats; missing strings and booleans are None. Chunks are
        verified when they are read: StoreError if one is missing, altered, or of a pool that has replaced this one.
        """
        import xarray as xr

        from hkm_dask.data.lazy_arrays import checked_arrays

        folder = location(self.path)
        opened = xr.open_zarr(zarr_store(folder), chunks=None)
        stored = checked_arrays(opened, folder).isel({layout.SAMPLE: slice(self.n_samples)})
        self._check_is(read_attributes(folder).get("fingerprint"))
        names = [layout.EMBEDDINGS, *([layout.IDS] if self.has_ids else []), *self.columns]
        variables = {name: stored[name] for name in names}
        texts = [name for name in names if opened[name].dtype != stored[name].dtype]
        variables |= {name: stored[name].astype(opened[name].dtype) for name in texts}
        for name in self.columns:
            if (mask := f"{name}{layout.MISSING_SUFFIX}") in stored:
                values = variables[name]
                wide = values.astype({"f": values.dtype, "i": np.float64}.get(values.dtype.kind, object))
                variables[name] = wide.where(~stored[mask], np.nan if wide.dtype.kind == "f" else None)
        return xr.Dataset(variables, attrs={"pool": self.path, "fingerprint": self.fingerprint})

    def to_pandas(self, rows: np.ndarray | None = None) -> pd.DataFrame:
        """Ids and columns of all rows, or of row numbers such as `sample` gives, as a data frame without embeddings.

        Its index ``sample`` has the row numbers, as that of ``tree.hkm.path`` does, so that the two join. Missing
        numbers and truth values are NA, missing texts None. InputError where a row is none of the pool.

        >>> import tempfile, hkm_dask as hkm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pool = hkm.ingest(np.eye(3), f"{folder}/pool.zarr", ids=["a", "b", "c"])
        ...     pool.to_pandas([2, 0])["id"].to_dict()
        {2: 'c', 0: 'a'}
        """
        import pandas as pd

        numbers = np.arange(self.n_samples) if rows is None else np.asarray(rows)
        check_rows(np.sort(numbers, axis=None) if numbers.ndim == 1 else numbers, self.n_samples)
        ids = self.ids(numbers)
        columns = ({} if ids is None else {"id": ids}) | {name: self.column(name, numbers) for name in self.columns}
        index = pd.Index(numbers.astype(np.int64), name=layout.SAMPLE)
        return pd.DataFrame({name: _for_pandas(values) for name, values in columns.items()}, index=index)

    def __len__(self) -> int:
        return self.n_samples

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and features, of the embeddings."""
        return self.n_samples, self.n_features

    def _with_mask(self, name: str, read: Callable[[StoredArray], np.ndarray]) -> np.ndarray:
        # Opening the pool has verified that the mask was not lost: the digest covers all members of the pool.
        mask = f"{name}{layout.MISSING_SUFFIX}"
        if not (location(self.path) / mask).is_dir():
            return read(*self._arrays(name))
        values, missing = map(read, self._arrays(name, mask))
        return np.ma.MaskedArray(values, missing)

    def _arrays(self, *names: str) -> list[StoredArray]:
        """Open arrays of the pool, which fail if it is replaced; StoreError if another pool is there already."""
        arrays = each(open_array, [location(self.path) / name for name in names], location(self.path))
        attributes = read_attributes(self.path)
        # With the same rows but other ids, results would mix the ids of two pools.
        same = attributes.get(layout.DIGEST, "") == self._digest
        self._check_is(attributes.get("fingerprint") if same else None)
        return arrays

    def _of_rows(self, array: StoredArray, rows: np.ndarray | None) -> np.ndarray:
        if rows is None:
            return array.read(0, self.n_samples)
        rows = np.asarray(rows)
        unique, places = np.unique(rows, return_inverse=True)
        return array.take(unique)[places.reshape(rows.shape)]


def open_pool(path: str | os.PathLike[str]) -> Pool:
    """Open a complete pool, made by `hkm_dask.ingest`, by its path or URL; the embeddings are not loaded.

    StoreError if it is missing, not a pool, of another version, incomplete or damaged.

    >>> open_pool("nowhere.zarr")
    Traceback (most recent call last):
    hkm_dask.errors.StoreError: ...nowhere.zarr is missing; make it with `hkm ingest`
    """
    folder = whole_path(location(path, "pool"))
    if not folder.exists():
        unfinished = f", an unfinished {wip_path(folder).name} is beside it" if wip_path(folder).exists() else ""
        other = similar_store(folder, layout.POOL_FORMAT)
        raise StoreError(f"{folder} is missing{unfinished}; {other}make it with `hkm ingest`")
    attributes = read_complete(folder, layout.POOL_FORMAT)
    embeddings, mean = each(open_array, [folder / name for name in (layout.EMBEDDINGS, layout.MEAN)], folder)
    spec = embeddings.spec
    try:
        if len(spec.shape) != 2 or mean.spec.shape != spec.shape[1:]:
            raise ValueError(f"embeddings are {spec.shape}, their mean is {mean.spec.shape}")
        if embeddings.fingerprint != attributes["fingerprint"]:
            raise ValueError("the fingerprint is not that of its embeddings")
        return Pool(
            path=str(folder),
            n_samples=spec.shape[0],
            n_features=spec.shape[1],
            dtype=spec.dtype,
            chunk_rows=spec.chunk_rows,
            fingerprint=str(attributes["fingerprint"]),
            max_abs=float(attributes["max_abs"]),
            mean=mean.read(0, spec.shape[1]),
            n_zero_rows=int(attributes["n_zero_rows"]),
            sources=tuple(map(str, attributes["sources"])),
            has_ids=bool(attributes["has_ids"]),
            columns=tuple(map(str, attributes.get("columns", ()))),
            history=tuple(
                (int(step["n_samples"]), str(step["fingerprint"]), tuple(map(str, step["added"])))
                for step in attributes.get("history", ())
            ),
            _digest=str(attributes.get(layout.DIGEST, "")),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{folder} is damaged: {error}; {layout.remedy(layout.POOL_FORMAT)}") from error


def _for_pandas(values: np.ndarray) -> Any:
    """A column for pandas, which has no masks for arrays of NumPy."""
    import pandas as pd

    data, missing = np.ma.getdata(values), np.ma.getmaskarray(values)
    if not missing.any():
        return data
    if data.dtype.kind in "ib":
        return (pd.arrays.IntegerArray if data.dtype.kind == "i" else pd.arrays.BooleanArray)(data, missing)
    blank: Any = np.nan if data.dtype.kind == "f" else None
    return np.where(missing, blank, data)
