"""The page on steering a draw, from a folder of images on."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from tests.pages import run_page


def photos(folder: Path) -> None:
    """Images of stripes, in one of three directions each."""
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for i in range(90):
        stripes = np.sin((x, y, x + y)[i % 3] / (1 + i % 5) + rng.random()) * 99 + 128
        Image.fromarray((stripes + rng.normal(0, 9, (32, 32))).clip(0, 255).astype("u1")).save(
            folder / "photos" / f"{i}.png"
        )


def test_the_page_on_steering_holds(tmp_path: Path) -> None:
    run = run_page("docs/steer-a-draw.md", tmp_path, photos)
    first, more = (
        list(csv.DictReader((tmp_path / name).read_text().splitlines())) for name in ("subset.csv", "more.csv")
    )
    assert "1" not in {row["level_3"] for row in first + more}
    assert not {row["id"] for row in first} & {row["id"] for row in more}
    drawn = pq.read_table(tmp_path / "texts.parquet").to_pandas()
    assert drawn["source"].value_counts().to_dict() == {"web": 50, "books": 40, "code": 10}
    assert drawn["domain"].value_counts().max() <= 20
    assert drawn["row"].tolist() == run.namespace["rows"].tolist()
