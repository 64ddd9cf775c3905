"""Patches of rasters larger than memory, as items for an image encoder: read by windows, with their positions.

A patch is identified by its row in the pool; by its id, like ``scene.tif[256x256+512+1024]`` (width, height, left and
top in pixels, in ImageMagick's notation); and by its position, the columns ``raster``, ``top``, ``left``, ``longitude``
and ``latitude``. The pool and every exported subset have ids and columns.
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

# GDAL's cache of decoded blocks; its default is a twentieth of the machine's memory.
CACHE_BYTES = 256 * MIB
#: Most patches in total; ten times the largest pool so far.
MAX_PATCHES = 10**10
_OPEN_RASTERS = 4
# Patches of one row are read in one window unless a gap between two is wider than this many patches.
_WIDEST_GAP = 4


class Windows:
    """Square patches of rasters in reading order, one raster after another; made by `open_windows`.

    A source for `hkm_dask.embedding.embed.embed`. A lock guards the files, since GDAL's readers are single-threaded and
    fastest in sequence. GDAL decodes the blocks of a tiled GeoTIFF on all cores.

    The columns give the position of each patch: ``raster`` (its number), ``top`` and ``left`` in pixels, int64; and if
    a raster has coordinates, ``longitude`` and ``latitude`` of the center in degrees (WGS 84), float64, NaN for rasters
    without a coordinate system. If no raster has a coordinate system, they are named ``x`` and ``y``.
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
        # Number of patches down and across each raster.
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
        """Return raster number, top and left in pixels of the given rows of the pool, or of all: int64 (n, 3)."""
        chosen = rows if isinstance(rows, np.ndarray) else np.arange(*(rows or slice(None)).indices(len(self)))
        numbers = chosen if self._kept is None else self._kept[chosen]
        raster = np.searchsorted(self._first, numbers, side="right") - 1
        down, across = np.divmod(numbers - self._first[raster], self._grids[raster, 1])
        return np.stack([raster, down * self.step, across * self.step], axis=1)

    def coordinates(self, rows: slice | NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """Return the centers of the patches of the given rows of the pool, or of all: float64 of shape (n, 2).

        Longitude and latitude in degrees (WGS 84), NaN for rasters without a coordinate system; x and y if no raster
        has one.
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
        """Read the patches `first` to `last` (exclusive) of the pool; adjacent patches are read in one window.

        Each is RGB, uint8 of shape (size, size, 3); missing pixels are black. Raises StoreError if a raster cannot be
        read.
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
                # Copied, so that keeping a patch does not keep the whole strip in memory.
                patches += [strip[:, begin : begin + self.size].copy() for begin in (run[:, 2] - left).tolist()]
        return patches

    def picture(self, raster: int = 0, *, width: int = 1024) -> NDArray[np.uint8]:
        """Render one raster, averaged to at most `width` pixels across: uint8 of shape (height, width, 3)."""
        source = self.rasters[raster]
        width = min(width, source.width)
        return self._read(source, shape=(max(1, round(source.height * width / source.width)), width))

    def _read(self, raster: Raster, window: Any = None, shape: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Read a window or the whole raster as RGB, averaged to a shape if one is given."""
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
        """Convert the values of a raster, (bands, height, width), to RGB."""
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
        """Return the numbers of the patches with few enough missing pixels; None if that is all of them."""
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
        """Yield an open raster, for one thread at a time; the last few stay open."""
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
    """Divide rasters into patches, every `step` pixels from the top left corner, as far as whole patches fit.

    The margins at the right and bottom that do not fill a patch are left out. Rasters are read by windows and so may be
    larger than memory. Tiled GeoTIFF is best: a window reads only the tiles it touches. JPEG and PNG have no windows:
    GDAL decodes their lines in sequence and holds few of them, so that reading patches in order decodes them once. Only
    a progressive JPEG must be held whole, as coefficients of 2 bytes per value; a warning gives the size.

    Rasters are GeoTIFF, JPEG or PNG (or another format of GDAL), or folders of these, in natural order. Patches have
    `size` pixels per side and are `step` apart in both directions; by default `size`, so that they do not overlap.
    Three `bands`, numbered from 1, become red, green and blue, or one becomes gray; by default the first three, or the
    first. `value_range` gives the values for black and white, and values beyond are clipped; it is required unless
    rasters have 8 bits. `bounds` are west, south, east and north, in degrees, of a raster without coordinates.
    `max_missing` is the largest share of missing pixels (by a nodata value, a mask or an alpha band) in a patch; by
    default even empty patches are kept. Values below 1 cost a pass over the masks.

    Raises InputError with all problems: rasters that cannot be opened or are smaller than a patch, missing settings.

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
            problems.append(
                f"{path}: dtype={raster.dtype} should be uint8; give value_range, the values of black and white"
            )
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
        problems.append(f"value_range={value_range} should increase; give the value of black, then that of white")
    if bounds is not None and not (bounds[0] < bounds[2] and bounds[1] < bounds[3]):
        problems.append(f"bounds={bounds} should be west, south, east, north; give them in this order")
    if not 0 <= max_missing <= 1:
        problems.append(f"max_missing={max_missing} should be between 0 and 1; it is a share of a patch")
    return problems


def _window(top: int, left: int, height: int, width: int) -> Any:
    from rasterio.windows import Window

    return Window(int(left), int(top), int(width), int(height))
