"""The arrays of a level, against groups computed in Python."""

from pathlib import Path

import numpy as np

from hkm_dask.compute.runner import Runner
from hkm_dask.hierarchy import level_arrays

LABELS = np.int32([1, 0, -1, 1, 3, 1])
DISTANCES = np.float32([2, 0, np.nan, 1, 4, 1])


def test_arrays_of_rows_come_back_and_can_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "level_1"
    level_arrays.create_row_arrays(folder, 1, 6, 4)
    for labels in (LABELS, LABELS[::-1].copy()):
        level_arrays.write_row_arrays(folder, labels, DISTANCES)
        np.testing.assert_array_equal(level_arrays.read_whole(folder / "labels"), labels)
        np.testing.assert_array_equal(level_arrays.read_whole(folder / "distances"), DISTANCES)


def test_clusters_know_their_members_closest_first_and_the_leaves_below_them(tmp_path: Path) -> None:
    folder = tmp_path / "level_1"
    level_arrays.create_row_arrays(folder, 1, 6, 4)
    level_arrays.write_row_arrays(folder, LABELS, DISTANCES)
    inertia = [np.array([3.0, 2.0]), np.array([1.0])]
    with Runner() as runner:
        level_arrays.write_cluster_arrays(folder, 1, np.zeros((4, 2), np.float32), inertia, runner)
    read = level_arrays.read_whole
    assert read(folder / "members_1").tolist() == [1, 3, 5, 0, 4]
    assert read(folder / "indptr_1").tolist() == [0, 1, 4, 4, 5]
    assert read(folder / "sizes").tolist() == read(folder / "leaf_sizes").tolist() == [1, 3, 0, 1]
    np.testing.assert_array_equal(read(folder / "inertia"), [[3, 2], [1, np.nan]])

    above = tmp_path / "level_2"
    level_arrays.create_row_arrays(above, 2, 4, 4)
    level_arrays.write_row_arrays(above, np.int32([0, 1, -1, 0]), np.float32([1, 0, np.nan, 0]))
    with Runner() as runner:
        level_arrays.write_cluster_arrays(above, 2, np.zeros((2, 2), np.float32), [np.ones(1)], runner)
    assert read(above / "members_2").tolist() == [3, 0, 1]
    assert read(above / "leaf_sizes").tolist() == [2, 3]
