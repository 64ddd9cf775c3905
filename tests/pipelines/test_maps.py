"""Maps of selected patches, pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.satellite.maps import KeptMap, draw_kept, light_up


@given(st.lists(st.tuples(st.integers(0, 18), st.integers(0, 28)), max_size=8), st.integers(1, 6))
def test_what_lies_in_a_square_keeps_its_color_and_nothing_else(at: list[tuple[int, int]], size: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    found = light_up(picture, np.array(at, float).reshape(-1, 2), size=size)
    for row in range(20):
        for column in range(30):
            lit = any(top <= row < top + size and left <= column < left + size for top, left in at)
            pixel = found[row, column].tolist()
            assert pixel == picture[row, column].tolist() if lit else len(set(pixel)) == 1
    gray = light_up(picture, np.zeros((0, 2)), size=size)[..., 0].astype(int)
    assert 90 <= gray.min() <= gray.max() <= 172, "dimmed: neither black nor white"


def test_a_square_smaller_than_a_pixel_is_seen() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    lit = light_up(black, np.array([[1.9, 2.2]]), size=0.3)[..., 0] == 0
    assert np.argwhere(lit).tolist() == [[1, 2]]


def test_bars_are_as_long_as_the_shares() -> None:
    pool = {"sea": 0.75, "land": 0.25}
    maps = [
        KeptMap("Random draw of 3", "", "#123456", np.array([[0, 0]]), {"sea": 1.0}),
        KeptMap("Curated draw of 3", "", "#654321", np.array([[0, 0]]), {"sea": 0.4, "land": 0.6}),
    ]
    figure = draw_kept(np.zeros((100, 200, 3), np.uint8), maps, size=5, scale=0.5, pool=pool)
    (bars,) = [axes for axes in figure.axes if axes.containers]
    assert [text.get_text() for text in bars.get_yticklabels()] == ["sea", "land"]
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["pool", "random draw", "curated draw"]
    widths = [[bar.get_width() for bar in group] for group in bars.containers]
    assert widths == [pytest.approx(row) for row in ([75, 25], [100, 0], [40, 60])]
    assert len(draw_kept(np.zeros((9, 9, 3), np.uint8), maps, size=1, scale=1, pool={}).axes) == 2
