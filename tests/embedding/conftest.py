"""A raster, shared by several test files."""

from pathlib import Path

import pytest
from numpy.typing import NDArray

from tests.embedding.scenes import noise, write_tiff


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray]:
    values = noise(3, 61, 83)
    path = write_tiff(tmp_path_factory.mktemp("a scene") / "scene.tif", values, crs="EPSG:4326")
    return path, values.transpose(1, 2, 0)
