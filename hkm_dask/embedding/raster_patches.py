"""Patches of rasters larger than memory, for an encoder of images: read by windows, each with its place.

A patch is known in three ways: by its row in the pool; by its id, like ``scene.tif[256x256+512+1024]`` (width, height,
left and top in pixels, as ImageMagick writes them); and by its place, the columns ``raster``, ``top``, ``left``,
``longitude`` and ``latitude``. The pool and every exported subset carry ids and columns.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data.ids import ID_PIECE_ROWS, Pieces
from hkm_dask.data.layout import MIB
from hkm_dask.embedding.models import require
from hkm_dask.embedding.rasters import Raster, color_table, describe_raster, list_rasters, open_raster
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import emit
from hkm_dask.untrusted import reading

# Decoded blocks that GDAL remembers; by itself it takes a twentieth of the machine's memory.
CACHE_BYTES = 256 * MIB
#: Patches in all; ten times as many as the largest pool so far.
MAX_PATCHES = 10**10
_OPEN_RASTERS = 4
# Patches of one row are read together unless more than so many of their widths lie between two of them.
_WIDEST_GAP = 4


class Windows:
    """Square patches of rasters in reading order, one raster after the other; made by `open_windows`.

    It is a source for `hkm_dask.embedding.embed.embed`. One lock guards the files: GDAL's readers are of one thread
    each, and read fastest in order. It decodes the blocks of a tiled GeoTIFF on all cores.

    The columns tell where the patches lie: ``raster`` (its number), ``top`` and ``left`` in pixels, int64; and where a
    raster has coordinates, ``longitude`` and ``latitude`` of the middle in degrees (WGS 84), float64, NaN for those of
    rasters that do not tell theirs. Where none tells what its coordinates are, they are called ``x`` and ``y``.
    """

    def __init__(
        self,
        rasters: Sequence[Raster],
        *,
        size: int,
        step: int,
        value_range: tuple[float, float] | None = None,
        max_missing: float = 1.0,
    ) -> None:
        self.rasters, self.size, self.step, self.value_range = tuple(rasters), size, step, value_range
        self.name = self.rasters[0].name + (f" and {len(rasters) - 1} more" if len(rasters) > 1 else "")
        # Patches that fit down and across each raster.
        self._grids = np.array([((r.height - size) // step + 1, (r.width - size) // step + 1) for r in rasters])
        self._first = np.concatenate([[0], self._grids.prod(axis=1).cumsum()])
        self.ids: Pieces | None = self._ids
        self._known = any(raster.crs is not None for raster in rasters)
        names = ["raster", "top", "left"]
        if any(raster.transform is not None for raster in rasters):
            names += ["longitude", "latitude"] if self._known else ["x", "y"]
        self.columns: dict[str, Pieces] = {name: partial(self._column, number) for number, name in enumerate(names)}
        self._lock = threading.Lock()
        self._open: dict[Path, Any] = {}
        facts = [(r.name, r.height, r.width, r.bands, r.transform, r.crs, r.stamp) for r in rasters]
        settings = json.dumps([facts, size, step, value_range, max_missing])
        self.fingerprint = hashlib.sha256(settings.encode()).hexdigest()
        self._kept = self._find_kept(max_missing)

    def __len__(self) -> int:
        return int(self._first[-1]) if self._kept is None else len(self._kept)

    def positions(self, rows: slice | NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """Number of the raster, top and left in pixels, of some rows of the pool or all: int64 of shape (n, 3)."""
        chosen = rows if isinstance(rows, np.ndarray) else np.arange(*(rows or slice(None)).indices(len(self)))
        numbers = chosen if self._kept is None else self._kept[chosen]
        raster = np.searchsorted(self._first, numbers, side="right") - 1
        down, across = np.divmod(numbers - self._first[raster], self._grids[raster, 1])
        return np.stack([raster, down * self.step, across * self.step], axis=1)

    def coordinates(self, rows: slice | NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """Middles of the patches of some rows of the pool or all: float64 of shape (n, 2).

        Degrees of longitude and latitude (WGS 84), NaN for rasters that do not tell theirs; x and y where none of the
        rasters says what these are.
        """
        positions = self.positions(rows)
        points = np.full((len(positions), 2), np.nan)
        for number in np.unique(positions[:, 0]):
            raster = self.rasters[number]
            if raster.crs is not None or not self._known:
                inside = positions[:, 0] == number
                points[inside] = raster.coordinates(*(positions[inside, 1:] + self.size / 2).T)
        return points

    def _ids(self) -> Iterator[np.ndarray]:
        side = f"{self.size}x{self.size}"
        for start in range(0, len(self), ID_PIECE_ROWS):
            positions = self.positions(slice(start, start + ID_PIECE_ROWS)).tolist()
            names = [f"{self.rasters[raster].name}[{side}+{left}+{top}]" for raster, top, left in positions]
            yield np.array(names, dtype=object)

    def _column(self, number: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self), ID_PIECE_ROWS):
            rows = slice(start, start + ID_PIECE_ROWS)
            yield self.positions(rows)[:, number] if number < 3 else self.coordinates(rows)[:, number - 3]

    def read(self, first: int, last: int) -> list[NDArray[np.uint8]]:
        """Read the patches from row `first` of the pool up to `last`; those side by side in one window.

        Each is red, green and blue, uint8 of shape (size, size, 3); missing pixels are black. `StoreError` where a
        raster cannot be read.
        """
        positions = self.positions(slice(first, last))
        apart = (np.diff(positions[:, :2], axis=0) != 0).any(axis=1) | (
            np.diff(positions[:, 2]) > _WIDEST_GAP * self.size
        )
        patches = []
        for run in np.split(positions, np.flatnonzero(apart) + 1):
            if len(run):
                raster, top, left = run[0].tolist()
                strip = self._read(self.rasters[raster], _window(top, left, self.size, run[-1, 2] + self.size - left))
                # Copies: a patch that is kept should not keep the whole strip.
                patches += [strip[:, begin : begin + self.size].copy() for begin in (run[:, 2] - left).tolist()]
        return patches

    def picture(self, raster: int = 0, *, width: int = 1024) -> NDArray[np.uint8]:
        """Draw one raster at most `width` pixels wide, averaged: uint8 of shape (height, width, 3)."""
        source = self.rasters[raster]
        width = min(width, source.width)
        return self._read(source, shape=(max(1, round(source.height * width / source.width)), width))

    def _read(self, raster: Raster, window: Any = None, shape: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Read a window, or all, averaged to a shape where one is given, as red, green and blue."""
        from rasterio.enums import Resampling

        with self._dataset(raster) as data:
            stack = shape and (len(raster.bands), *shape)
            values = data.read(raster.bands, window=window, out_shape=stack, resampling=Resampling.average)
            missing = data.dataset_mask(window=window, out_shape=shape) == 0 if raster.has_gaps else None
            table = color_table(data, raster.bands[0])
        return self._to_colors(values, missing, table)

    def _to_colors(
        self, values: NDArray[Any], missing: NDArray[np.bool_] | None, table: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        """Turn what a raster holds, (bands, height, width), into red, green and blue."""
        if table is not None:
            colors = table[values[0]]
        else:
            if self.value_range is not None:
                low, high = self.value_range
                scaled = (values.astype(np.float32) - low) * (255 / (high - low))
                values = np.rint(np.nan_to_num(scaled, nan=0.0).clip(0, 255)).astype(np.uint8)
            colors = np.repeat(values, 3, axis=0) if len(values) == 1 else values
            colors = np.ascontiguousarray(colors.transpose(1, 2, 0))
        if missing is not None:
            colors[missing] = 0
        return colors

    def _find_kept(self, max_missing: float) -> NDArray[np.int64] | None:
        """Number the patches that miss few enough pixels; None where that is all of them."""
        if max_missing >= 1 or not any(raster.has_gaps for raster in self.rasters):
            return None
        kept, n_rows, done = [], int(self._grids[:, 0].sum()), 0
        for raster, (down, across), first in zip(self.rasters, self._grids.tolist(), self._first, strict=False):
            width = (across - 1) * self.step + self.size
            for row in range(down):
                enough = np.ones(across, bool)
                if raster.has_gaps:
                    with self._dataset(raster) as data:
                        mask = data.dataset_mask(window=_window(row * self.step, 0, self.size, width))
                    sums = np.concatenate([[0], (mask == 0).sum(axis=0).cumsum()])
                    starts = np.arange(across) * self.step
                    enough = sums[starts + self.size] - sums[starts] <= max_missing * self.size**2
                kept.append(first + row * across + np.flatnonzero(enough))
                done += 1
                emit("progress", stage="windows", done=done, total=n_rows)
        return np.concatenate(kept)

    @contextmanager
    def _dataset(self, raster: Raster) -> Iterator[Any]:
        """An open raster, for one thread at a time; the last few stay open."""
        import rasterio

        damage = reading(f"{raster.path} cannot be read", "copy it again", StoreError)
        with self._lock, rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), damage:
            if raster.path not in self._open:
                while len(self._open) >= _OPEN_RASTERS:
                    self._open.pop(next(iter(self._open))).close()
                self._open[raster.path] = open_raster(raster.path)
            yield self._open[raster.path]


def open_windows(
    rasters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: int,
    step: int | None = None,
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    bounds: tuple[float, float, float, float] | None = None,
    max_missing: float = 1.0,
) -> Windows:
    """Lay patches over rasters: every `step` pixels from the top left corner, as far as whole patches fit.

    What lies beyond the last whole patch, at the right and lower margin, is in none. Rasters are read by windows and so
    may be larger than memory. Tiled GeoTIFF is best: any window costs only the tiles it touches. JPEG and PNG have no
    windows: GDAL decodes their lines in order, which reading in order needs once, and holds few of them. Only a
    progressive JPEG must be held whole, as coefficients of 2 bytes a value; a warning then tells how much that is.

    Rasters are GeoTIFF, JPEG or PNG (or what else GDAL reads), or folders of these, in natural order. A patch has
    `size` pixels along a side, and the next one is `step` away along both; by default `size`, so that none overlap.
    Three `bands` become red, green and blue, or one becomes gray, from 1; by default the first three, or the first.
    `value_range` are the values that become black and white, what lies beyond them too; needed where a raster is not of
    8 bits. `bounds` are west, south, east and north, in degrees, of a raster that has no coordinates of its own.
    `max_missing` is the share of its pixels that a patch may lack (by a nodata value, a mask or an alpha band); by
    default patches are kept even if nothing is there. Below 1 costs a pass over the masks.

    InputError with every problem: what cannot be opened, is smaller than a patch, or needs a setting.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(f"{folder}/sea.png")
    ...     windows = open_windows(f"{folder}/sea.png", size=4, step=2, bounds=(-180, -90, 180, 90))
    ...     len(windows), windows.read(5, 6)[0][:, 0, 0].tolist(), next(windows.ids())[5]
    (8, [22, 32, 42, 52], 'sea.png[4x4+2+2]')
    >>> windows.positions()[5].tolist(), windows.coordinates()[5].tolist()
    ([0, 2, 2], [-36.0, -30.0])
    """
    paths = list_rasters(rasters)
    problems = _wrong_settings(size, step, bands, value_range, bounds, max_missing)
    require("rasterio", "satellite")
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    described = []
    for path in [] if problems else paths:
        try:
            raster = describe_raster(path, path.relative_to(shared).as_posix(), bands=bands, bounds=bounds)
        except InputError as error:
            problems += error.problems
            continue
        described.append(raster)
        if (side := min(raster.height, raster.width)) < size:
            problems.append(f"size={size} should be at most {side}, {path} has no more pixels")
        if raster.dtype != "uint8" and value_range is None:
            problems.append(f"{path}: dtype={raster.dtype} should be uint8; give value_range, its black and its white")
    n_patches = sum(math.prod((side - size) // (step or size) + 1 for side in (r.height, r.width)) for r in described)
    if n_patches > MAX_PATCHES:
        problems.append(f"n_patches={n_patches} should be at most {MAX_PATCHES}; give a larger step")
    if problems:
        raise InputError(problems)
    windows = Windows(described, size=size, step=step or size, value_range=value_range, max_missing=max_missing)
    if not len(windows):
        raise InputError(f"max_missing={max_missing} should leave some patches, none has so few gaps; raise it")
    return windows


def _wrong_settings(
    size: int,
    step: int | None,
    bands: Sequence[int] | None,
    value_range: tuple[float, float] | None,
    bounds: tuple[float, float, float, float] | None,
    max_missing: float,
) -> list[str]:
    sides = [("size", size)] if step is None else [("size", size), ("step", step)]
    problems = [f"{name}={side} should be at least 1; give it in pixels" for name, side in sides if side < 1]
    if bands is not None and (len(bands) not in (1, 3) or min(bands) < 1):
        problems.append(f"bands={tuple(bands)} should be one or three numbers from 1; choose red, green and blue")
    if value_range is not None and not value_range[0] < value_range[1]:
        problems.append(f"value_range={value_range} should rise; give the value of black, then that of white")
    if bounds is not None and not (bounds[0] < bounds[2] and bounds[1] < bounds[3]):
        problems.append(f"bounds={bounds} should be west, south, east, north; give them in this order")
    if not 0 <= max_missing <= 1:
        problems.append(f"max_missing={max_missing} should be between 0 and 1; it is a share of a patch")
    return problems


def _window(top: int, left: int, height: int, width: int) -> Any:
    from rasterio.windows import Window

    return Window(int(left), int(top), int(width), int(height))
