"""The demo's pool, against slow and simple computations."""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from hkm_dask.demo import patches as module
from hkm_dask.demo.patches import CELLS, PATCH, cell_means, cut_patches, describe_cells, patch_corners


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_corners_are_the_black_fields_and_fit(step: int) -> None:
    expected = [
        [y, x]
        for y in range(0, 40 - PATCH + 1, step)
        for x in range(0, 50 - PATCH + 1, step)
        if (y // step + x // step) % 2 == 0
    ]
    assert patch_corners(40, 50, step=step).tolist() == expected


def test_cell_means_equal_plain_means(photo: NDArray[np.uint8]) -> None:
    at = patch_corners(40, 50, step=4)
    side = PATCH // CELLS
    for (top, left), cells in zip(at, cell_means(photo, at), strict=True):
        patch = photo[top : top + PATCH, left : left + PATCH].astype(float)
        plain = patch.reshape(CELLS, side, CELLS, side, 3).mean(axis=(1, 3)).reshape(-1, 3)
        np.testing.assert_array_equal(cells, plain)


def test_description_keeps_color_and_the_direction_of_the_pattern(photo: NDArray[np.uint8]) -> None:
    cells = cell_means(photo, patch_corners(40, 50, step=4))
    embeddings, color, contrast = describe_cells(cells)
    pictures = embeddings.astype(float).reshape(cells.shape)
    np.testing.assert_allclose(pictures.mean(axis=1), cells.mean(axis=1) / 255, atol=1e-3)
    np.testing.assert_allclose(color, cells.mean(axis=1))
    np.testing.assert_allclose(contrast, np.sqrt(cells.var(axis=1).mean(axis=1)))
    before = (cells - cells.mean(axis=1, keepdims=True)).reshape(len(cells), -1)
    after = (pictures - pictures.mean(axis=1, keepdims=True)).reshape(len(cells), -1)
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert cosine.min() > 0.999


def test_a_patch_without_contrast_is_its_color_and_finite() -> None:
    embeddings, _, contrast = describe_cells(np.full((2, CELLS * CELLS, 3), 51.0))
    np.testing.assert_array_equal(embeddings, np.float16(0.2))
    assert contrast.tolist() == [0, 0]


def test_shards_ids_and_crops_speak_of_the_same_patch(
    photo: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 100)
    photographs = {"noise.jpg": photo, "inverse.jpg": 255 - photo}
    patches = cut_patches(photographs, tmp_path, step=2)
    n_shards = len(list((tmp_path / "img_emb").iterdir()))
    assert n_shards == 4
    rows = [np.load(tmp_path / "img_emb" / f"img_emb_{shard}.npy") for shard in range(n_shards)]
    ids = [pq.read_table(tmp_path / "metadata" / f"metadata_{shard}.parquet")["id"].to_pylist() for shard in range(4)]
    assert [len(shard) for shard in rows] == [len(shard) for shard in ids]
    embeddings, names = np.concatenate(rows), list(chain.from_iterable(ids))
    assert len(embeddings) == len(patches)

    some = np.array([0, 99, 100, len(patches) - 1])
    crops = patches.crops(some)
    for row, crop in zip(some, crops, strict=True):
        number = patches.photograph[row]
        top, left = patches.corners[row]
        name = list(photographs)[number]
        assert names[row] == f"{name}[{PATCH}x{PATCH}+{left}+{top}]"
        np.testing.assert_array_equal(crop, photographs[name][top : top + PATCH, left : left + PATCH])
        again, color, contrast = describe_cells(cell_means(crop, np.array([[0, 0]], np.int32)))
        np.testing.assert_array_equal(again[0], embeddings[row])
        np.testing.assert_allclose(patches.color[row], color[0], rtol=1e-6)
        np.testing.assert_allclose(patches.contrast[row], contrast[0], rtol=1e-6)
