"""The descriptor of cells against plain averages; `describe` itself is tested with the demo's patches."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.embedding.cells import CELLS, Cells, average, describe
from hkm_dask.embedding.embed import embed
from hkm_dask.embedding.raster_patches import open_windows
from hkm_dask.errors import InputError


@given(st.integers(1, 40), st.integers(1, 40))
def test_cells_are_averages_whatever_the_size(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # Every pixel cut into 8 × 8 parts: then any image divides into cells.
    parts = image.repeat(CELLS, axis=0).repeat(CELLS, axis=1).astype(float)
    plain = parts.reshape(CELLS, height, CELLS, width, 3).mean(axis=(1, 3)).reshape(-1, 3)
    np.testing.assert_allclose(average(image), plain, atol=1e-9)


def test_a_pool_of_cells(tmp_path: Path) -> None:
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    pool = embed(open_windows(tmp_path / "a.png", size=32), tmp_path / "pool.zarr", Cells())
    cells = image.reshape(2, 8, 4, 3, 8, 4, 3).mean(axis=(2, 5)).transpose(0, 2, 1, 3, 4).reshape(6, 64, 3)
    np.testing.assert_array_equal(pool.rows().read(0, 6), describe(cells)[0])


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 4), (0, 8, 3)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"should be uint8 \(height, width, 3\)"):
        Cells()([np.zeros(shape, np.uint8)])
