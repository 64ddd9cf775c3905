"""The file of marks, and the contents of a draw with marks."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hkm_dask as hkm
from hkm_dask.browsing.clusters import Clusters
from hkm_dask.browsing.marks import Draw, Marks, fill
from hkm_dask.errors import InputError
from hkm_dask.hierarchy.sampling.steering import Cluster, read_weights


def test_marks_go_on_from_their_file(clusters: Clusters, tmp_path: Path) -> None:
    marks = Marks(clusters, tmp_path / "weights.csv")
    marks.set(Cluster(2, 3), 0)
    marks.set(Cluster(1, 4), 2)
    marks.set(Cluster(1, 5), 1)  # no change
    assert (marks.unsaved, marks.weight(Cluster(1, 4)), marks.weight(Cluster(1, 5))) == (True, 2, 1)
    marks.save()
    again = Marks(clusters, tmp_path / "weights.csv")
    assert (again.weights, again.unsaved) == ({(2, 3): 0, (1, 4): 2}, False)
    again.set(Cluster(2, 3), 1)
    again.save()
    assert read_weights(tmp_path / "weights.csv") == {(1, 4): 2}
    again.undo()
    again.undo()
    assert (again.weights, again.can_undo) == ({(2, 3): 0, (1, 4): 2}, False)


def test_marks_of_another_are_not_written_over(clusters: Clusters, tmp_path: Path) -> None:
    marks = Marks(clusters, tmp_path / "weights.csv")
    marks.set(Cluster(2, 3), 0)
    (tmp_path / "weights.csv").write_text("cluster,weight\n1:1,0\n")
    with pytest.raises(InputError, match="was changed by another"):
        marks.save()
    assert (tmp_path / "weights.csv").read_text() == "cluster,weight\n1:1,0\n"


def test_what_cannot_be_marked_is_refused(clusters: Clusters, tmp_path: Path) -> None:
    marks = Marks(clusters, tmp_path / "weights.csv")
    for cluster, weight in [
        (Cluster(2, 3), -1),
        (Cluster(2, 3), float("nan")),
        (clusters.root, 0),
        (Cluster(2, 99), 0),
    ]:
        with pytest.raises(InputError):
            marks.set(cluster, weight)
    assert marks.weights == {}
    (tmp_path / "weights.csv").write_text("cluster,weight\n9:1,0\n")
    with pytest.raises(
        InputError, match=r"weights\.csv should be marks of this tree, cluster=9:1 .* another file with --out"
    ):
        Marks(clusters, tmp_path / "weights.csv")
    with pytest.raises(InputError, match=r"in a folder, .* is none"):
        Marks(clusters, tmp_path / "weights.csv" / "more.csv")


def test_a_draw_without_marks_is_the_one_that_is_drawn(clusters: Clusters, stores: Path) -> None:
    rows = hkm.sample(stores / "tree.zarr", 200)
    draw = Draw(clusters, {}, 200)
    for level in (3, 2, 1):
        drawn = np.bincount(clusters.ask.labels(level).to_numpy()[rows], minlength=clusters.n_clusters[level - 1])
        for number, count in enumerate(drawn):
            assert abs(draw.share(Cluster(level, number)) - count) <= level_slack(level)


def test_a_draw_with_marks_is_the_one_that_is_drawn(clusters: Clusters, stores: Path) -> None:
    child = Cluster(1, int(clusters.ask.children(2, 3)[0]))
    weights = {Cluster(2, 3): 3.0, child: 0.0, Cluster(3, 1): 0.5, Cluster(2, 0): 0.0}
    counts = {level: np.zeros(n) for level, n in enumerate(clusters.n_clusters, start=1)}
    draw, n_draws = Draw(clusters, weights, 150), 8
    for seed in range(n_draws):
        rows = hkm.sample(stores / "tree.zarr", 150, weights=weights, seed=seed)
        for level, count in counts.items():
            count += np.bincount(clusters.ask.labels(level).to_numpy()[rows], minlength=len(count))
    for level, count in counts.items():
        shares = [draw.share(Cluster(level, number)) for number in range(len(count))]
        assert np.abs(count / n_draws - shares).max() < 1
    assert counts[1][child.number] == counts[2][0] == 0


def level_slack(level: int) -> float:
    """Rounding adds up from the top: a node rounds by less than one, and passes what it was given on."""
    return float(4 - level)


def test_what_lies_in_a_cluster_left_out_is_left_out_once(clusters: Clusters) -> None:
    child = Cluster(1, int(clusters.ask.children(2, 3)[0]))
    draw = Draw(clusters, {Cluster(2, 3): 0, child: 0}, 599)
    assert draw.available == 599 - clusters.size(Cluster(2, 3))
    assert draw.share(child) == draw.share(Cluster(2, 3)) == 0
    assert draw.share(clusters.root) == draw.available


def test_a_weight_scales_a_share(clusters: Clusters) -> None:
    small = [Draw(clusters, {Cluster(3, 1): weight}, 9).share(Cluster(3, 1)) for weight in (0.5, 1, 2)]
    assert small == pytest.approx([9 / 5, 3, 4.5])


@given(
    children=st.lists(st.tuples(st.integers(0, 20), st.sampled_from([0, 0.5, 1, 3])), min_size=1, max_size=8),
    part=st.floats(0, 1),
)
def test_fill_shares_all_out(children: list[tuple[int, float]], part: float) -> None:
    capacities, weights = (np.array(values, float) for values in zip(*children, strict=True))
    total = part * capacities[weights > 0].sum()
    shares = fill(capacities, weights, total)
    assert shares.sum() == pytest.approx(total)
    assert (shares <= capacities + 1e-9).all()
    able = (weights > 0) & (shares < capacities - 1e-6)
    heights = shares[able] / weights[able]
    if able.any():  # those that are not full have one height, which none that is full is above
        assert np.ptp(heights) == pytest.approx(0, abs=1e-6)
        full = (weights > 0) & ~able
        assert (shares[full] / weights[full] <= heights.max() + 1e-6).all()
