"""Rasters of noise with coordinates."""

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

UTM = "EPSG:32631"  # zone 31 north, whose middle, 3 degrees east, has the easting 500,000 m
ALTAI = Affine(0.5, 0, 100.0, 0, -0.25, 50.0)  # half a degree a column, a quarter a row, from 100° E 50° N


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_tiff(path: Path, values: NDArray, **options: object) -> Path:
    """Write (bands, height, width) as a tiled, compressed GeoTIFF."""
    settings = {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate", "transform": ALTAI} | options
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=values.dtype, **settings
    ) as raster:
        raster.write(values)
    return path
