"""The demo from end to end, on a few hundred of its patches."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from PIL import Image

from hkm_dask.config import Config
from hkm_dask.demo import demo
from hkm_dask.demo.demo import DemoSummary, Size, measure_spread, run_demo
from hkm_dask.demo.patches import Patches
from hkm_dask.errors import InputError
from hkm_dask.events import subscribe

TINY = Size(12, Config.from_flags((60, 20, 8), resample_size=(3, 2, 2), n_resamples=1, max_iter=5), subset=240)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "QUICK", TINY)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoSummary, list[str]]:
    out = tmp_path_factory.mktemp("a demo") / "out"
    stages: list[str] = []
    with pytest.MonkeyPatch.context() as patch, subscribe(lambda event: stages.append(event.fields.get("stage", ""))):
        patch.setattr(demo, "QUICK", TINY)
        return out, run_demo(out, quick=True), stages


def test_it_makes_what_it_says(made: tuple[Path, DemoSummary, list[str]]) -> None:
    out, summary, stages = made
    assert (summary.n_patches, summary.n_features, summary.n_drawn) == (1856, 192, 240)
    assert all(path.exists() for path in summary.files)
    assert {path.name for path in summary.files} >= {"tree.zarr", "subset.parquet", "draws.png", "places.png"}
    assert {"cut", "ingest", "pictures"} <= set(stages)
    with xr.open_datatree(out / "tree.zarr", engine="zarr") as tree:
        assert [tree[f"level_{level}"]["centroids"].shape for level in (1, 2, 3)] == [(60, 192), (20, 192), (8, 192)]
    for path in summary.files:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.verify()


def test_the_subset_names_its_patches(made: tuple[Path, DemoSummary, list[str]]) -> None:
    out, _, _ = made
    table = pq.read_table(out / "subset.parquet").to_pydict()
    ids = []
    for shard in sorted((out / "patches" / "metadata").iterdir(), key=lambda path: int(path.stem.split("_")[1])):
        ids += pq.read_table(shard)["id"].to_pylist()
    assert table["id"] == [ids[row] for row in table["row"]]
    assert len(set(table["row"])) == TINY.subset


def test_the_curated_draw_is_wider_than_chance(made: tuple[Path, DemoSummary, list[str]]) -> None:
    _, summary, _ = made
    assert summary.spreads["curated"].plain < 0.7 * summary.spreads["random"].plain
    assert summary.spreads["curated"].effective_colors > summary.spreads["random"].effective_colors
    assert summary.spreads["random"].plain == pytest.approx(summary.spreads["pool"].plain, abs=0.1)


def test_its_summary_tells_the_numbers(made: tuple[Path, DemoSummary, list[str]]) -> None:
    _, summary, _ = made
    text = str(summary)
    assert text.startswith("1,856 patches (192 numbers each) → 60 → 20 → 8 clusters → 240 drawn")
    assert f"{100 * summary.spreads['curated'].plain:.1f} %" in text
    assert all(str(path) in text for path in summary.files)


def test_a_second_demo_replaces_the_first(made: tuple[Path, DemoSummary, list[str]]) -> None:
    out, first, _ = made
    before = pq.read_table(out / "subset.parquet")
    (out / "subset.parquet").write_bytes(b"of another time")
    second = run_demo(out, quick=True)
    assert pq.read_table(out / "subset.parquet").equals(before), "the same seed gives the same subset"
    assert second.spreads == first.spreads


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tree.zarr").mkdir()
    with pytest.raises(InputError, match="should be a new or empty folder"):
        run_demo(tmp_path, quick=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tree.zarr"]


def test_measures_by_hand() -> None:
    patches = Patches(
        photographs={},
        photograph=np.zeros(4, np.int64),
        corners=np.zeros((4, 2), np.int32),
        color=np.array([[0, 0, 0], [31, 31, 31], [32, 0, 0], [255, 255, 255]], np.float32),
        contrast=np.array([0, 10, 20, 7], np.float32),
    )
    spread = measure_spread(patches, np.array([1, 1, 0, 2], np.int32), np.array([0, 1, 2, 3]))
    assert (spread.plain, spread.commonest_color, spread.largest_cluster, spread.n_colors) == (0.5, 0.5, 0.5, 3)
    # Entropy of (1/2, 1/4, 1/4) is 1.5 bits.
    assert spread.effective_colors == pytest.approx(2**1.5)
