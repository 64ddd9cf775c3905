"""Bytes of an iteration, computed by hand."""

from hkm_dask.search.cuda.traffic import Shares, lloyd_traffic


def test_bytes_of_an_iteration_in_which_nothing_happens() -> None:
    shares = Shares(moved_centroids=0.0, relabeled=0.0, left_open=0.0, resident=1.0)
    traffic = lloyd_traffic(1000, 10, 64, shares=shares)
    per_row = {
        "label_distances": 4 + 4 + 8,
        "nearest_two": 128 + 8 + 12,
        "certify": 8 + 12 + 24 + 2 * (4 + 8),
        "settle": 0,
        "add_limbs": 8,
        "count_entries": 8,
        "place_entries": 8,
        "add_entries": 0,
    }
    once = {"label_distances": 4 * 640, "nearest_two": 2 * 640, "certify": 4 * 640}
    assert traffic.by_kernel == {name: 1000 * n + once.get(name, 0) for name, n in per_row.items()}
    assert traffic.on_device == sum(traffic.by_kernel.values())


def test_rows_that_are_not_resident_are_sent() -> None:
    at_rest, streamed = (lloyd_traffic(1000, 10, 64, itemsize=4, shares=Shares(resident=r)) for r in (1.0, 0.25))
    assert streamed.uploaded - at_rest.uploaded == 750 * 64 * 4
    assert at_rest.uploaded == 10 * 64 * 4
    assert at_rest.downloaded == 10 * 65 * 8
