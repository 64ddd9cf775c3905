import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pipelines.images.thumbnails import GAP, SIDE, Row, draw_rows, thumbnails


def test_thumbnails_show_the_middle_square() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200
    tall = wide.transpose(1, 0, 2)
    found = thumbnails([wide, tall], side=20)
    assert found.shape == (2, 20, 20, 3)
    inner = found[:, 2:-2, 2:-2]  # the filter rings at the edges
    assert abs(inner.astype(int) - 200).max() <= 4


@pytest.mark.parametrize("n_members", [[3, 1], [20, 20, 7]])
def test_members_stand_in_rows_pixel_for_pixel(n_members: list[int]) -> None:
    rows = [
        Row(f"{n} images", "drawn: 1", np.full((n, SIDE, SIDE, 3), 40 * (number + 1), np.uint8))
        for number, n in enumerate(n_members)
    ]
    figure = draw_rows(rows, title="clusters", caption="their members")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    assert pixels.shape[1] <= 1600
    for number, n in enumerate(n_members):
        # Text is drawn in other grays, and left of the members.
        shown = (pixels == 40 * (number + 1)).all(axis=2)[:, 260:]
        assert shown.sum() >= n * SIDE * SIDE * 0.98
        columns = np.flatnonzero(shown.sum(axis=0) > SIDE / 2)
        assert len(columns) == pytest.approx(n * SIDE, abs=2 * n)
        assert columns[-1] - columns[0] + 1 == pytest.approx(n * (SIDE + GAP) - GAP, abs=3)
