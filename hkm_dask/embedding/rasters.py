"""Raster files: their headers, and opening them with GDAL through rasterio."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data.layout import MIB
from hkm_dask.errors import InputError, StoreError
from hkm_dask.events import emit
from hkm_dask.ingestion.folders import natural_key
from hkm_dask.untrusted import open_regular, reading

SUFFIXES = (".tif", ".tiff", ".jpg", ".jpeg", ".png")  # files used in a folder
#: Most bytes of a raster that may be decoded at once, regardless of its size.
MAX_BLOCK_BYTES = 512 * MIB
_DRIVERS = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
    b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG",
}  # fmt: skip
_WGS84 = "EPSG:4326"
_SCANS = (0xC2, 0xC6, 0xCA, 0xCE)  # JPEG markers of progressive frames
_FRAMES = (0xC0, 0xC1, 0xC3, 0xC5, 0xC7, 0xC9, 0xCB, 0xCD, 0xCF, *_SCANS)


@dataclass(frozen=True)
class Raster:
    """Header of a raster."""

    path: Path
    name: str  # includes the folders that distinguish it from the other rasters
    height: int
    width: int
    bands: tuple[int, ...]  # from 1: the three that become red, green and blue, or the one that becomes gray
    dtype: str  # of these bands
    # x = t[0] * column + t[1] * row + t[2] and y = t[3] * column + t[4] * row + t[5]
    transform: tuple[float, ...] | None
    crs: str | None  # coordinate reference system of x and y
    has_gaps: bool  # whether pixels may be missing, by a nodata value, a mask or an alpha band
    stamp: tuple[int, int]  # size of the file in bytes, and its modification time in nanoseconds

    def coordinates(self, rows: NDArray[np.floating], columns: NDArray[np.floating]) -> NDArray[np.float64]:
        """Convert points in pixels to coordinates, float64 (n, 2); the center of the first pixel is (0.5, 0.5).

        Longitude and latitude in degrees (WGS 84); x and y if the raster has no coordinate reference system; NaN if it
        has no coordinates.
        """
        if self.transform is None:
            return np.full((len(rows), 2), np.nan)
        a, b, c, d, e, f = self.transform
        x, y = a * columns + b * rows + c, d * columns + e * rows + f
        if self.crs is not None and self.crs != _WGS84:
            from rasterio.warp import transform

            with reading(f"{self.path}: its coordinates cannot be read", "copy it again", StoreError):
                x, y = (np.array(values) for values in transform(self.crs, _WGS84, x, y))
        return np.stack([x, y], axis=1)


def list_rasters(rasters: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the absolute paths of files, and of files with the known `SUFFIXES` in folders, in natural order.

    Raises InputError with every path that does not exist or is repeated.
    """
    given = [rasters] if isinstance(rasters, str | os.PathLike) else list(rasters)
    problems = [] if given else ["rasters=[] should name at least one file; give files or folders"]
    paths = []
    for path in (Path(raster).absolute() for raster in given):
        if path.is_dir():
            held = sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()), key=natural_key)
            if not held:
                problems.append(f"raster={path} has no files {', '.join(SUFFIXES)}; name the files")
            paths += held
        elif path.is_file():
            paths.append(path)
        else:
            fault = "should be a file" if path.exists() else "does not exist"
            problems.append(f"raster={path} {fault}; check the path")
    problems += [f"raster={path} should be given once; leave it out" for path, n in Counter(paths).items() if n > 1]
    if problems:
        raise InputError(problems)
    return paths


def describe_raster(
    path: Path,
    name: str,
    *,
    bands: Sequence[int] | None = None,
    bounds: tuple[float, float, float, float] | None = None,
) -> Raster:
    """Read the header of a raster; by default its first three bands are used, or the first.

    Raises InputError if it cannot be opened, lacks these bands, or has coordinates although `bounds` (west, south, east
    and north in degrees) are given.
    """
    from rasterio.enums import MaskFlags

    with reading(f"raster={path} should be GeoTIFF, JPEG or PNG, but cannot be opened", "copy it again"):
        with open_raster(path) as data:
            n_bands, located = data.count, not data.transform.is_identity
            transform = tuple(data.transform)[:6] if located else None
            crs = data.crs.to_string() if located and data.crs else None
            height, width = data.height, data.width
            dtypes, driver = data.dtypes, data.driver
            flags = data.mask_flag_enums
            # Over all bands, since most files interleave them.
            block_bytes = sum(
                math.prod(shape) * np.dtype(kind).itemsize
                for shape, kind in zip(data.block_shapes, dtypes, strict=True)
            )
        if transform is not None and not np.isfinite(transform).all():
            raise ValueError(f"its transform is {transform}")
    chosen = tuple(bands) if bands is not None else (1, 2, 3) if n_bands >= 3 else (1,)
    problems = []
    if max(chosen) > n_bands:
        problems = [f"bands={chosen} should be among the {n_bands} of {path}; choose from 1 to {n_bands}"]
    elif any(dtypes[band - 1].startswith("complex") for band in chosen):
        problems = [f"{path}: dtype={dtypes[0]} should be real; write its magnitude as a raster of its own"]
    if block_bytes > MAX_BLOCK_BYTES:
        problems.append(
            f"raster={path}: n_block_bytes={block_bytes} should be at most {MAX_BLOCK_BYTES}, decoded at once; "
            "gdal_translate -co TILED=YES makes a GeoTIFF that is read by windows"
        )
    if bounds is not None and located:
        problems.insert(0, f"bounds={bounds} should be left out, {path} has coordinates; remove it")
    if problems:
        raise InputError(problems)
    if bounds is not None:
        west, south, east, north = bounds
        transform = ((east - west) / width, 0.0, west, 0.0, (south - north) / height, north)
        crs = _WGS84
    if driver == "JPEG" and is_progressive(path):
        need = height * width * n_bands * 2 / 1e6
        emit(
            "warning",
            message=f"{path} is a progressive JPEG, which is decoded whole: up to {need:,.0f} MB; "
            "gdal_translate -co TILED=YES makes a GeoTIFF that is read by windows",
        )
    state = path.stat()
    return Raster(
        path=path,
        name=name,
        height=height,
        width=width,
        bands=chosen,
        dtype=str(np.result_type(*(dtypes[band - 1] for band in chosen))),
        transform=transform,
        crs=crs,
        has_gaps=any(MaskFlags.all_valid not in flags[band - 1] for band in chosen),
        stamp=(state.st_size, state.st_mtime_ns),
    )


def open_raster(path: Path) -> Any:
    """Open a raster as a `rasterio.DatasetReader`, for one thread at a time; raises OSError if GDAL cannot."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # photographs have no coordinates and need none
        suffix = path.suffix.lower()
        with open_regular(path) as file:
            start = file.read(4)
        driver = next((name for magic, name in _DRIVERS.items() if start.startswith(magic)), None)
        if driver is None and suffix in SUFFIXES:
            # GDAL would detect the format from the content, and some formats refer to other files or to URLs.
            raise OSError("its first bytes match none of these")
        threads = {"num_threads": "all_cpus"} if suffix in (".tif", ".tiff") else {}
        return rasterio.open(path, driver=driver, **threads)


def color_table(data: Any, band: int) -> NDArray[np.uint8] | None:
    """Return the palette (256, 3) of a band (from 1) of an open raster; None if its values are not indices."""
    from rasterio.enums import ColorInterp

    if data.colorinterp[band - 1] != ColorInterp.palette or data.dtypes[band - 1] != "uint8":
        return None
    table = np.zeros((256, 3), np.uint8)
    for index, color in data.colormap(band).items():
        table[index] = color[:3]
    return table


def is_progressive(path: Path) -> bool:
    """Return whether a JPEG has several scans, so that no line is complete before the end of the file.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
    ...     Image.new("RGB", (8, 8)).save(file.name, progressive=True)
    ...     is_progressive(Path(file.name))
    True
    """
    with path.open("rb") as file:
        file.read(2)
        while len(head := file.read(4)) == 4:
            if head[1] in _FRAMES:
                return head[1] in _SCANS
            file.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)
    return False
