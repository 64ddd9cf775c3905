"""Classes of clusters, against counts by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

import hkm_dask as hkm
from hkm_dask.errors import InputError
from hkm_dask.view.report import columns
from hkm_dask.view.report.labels import classes_of_clusters, open_labels
from tests.view.report.conftest import Made, N


def test_clusters_are_of_the_class_that_most_of_their_samples_are_of(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_BLOCK", 37)
    labels = np.random.default_rng(0).integers(3, 7, N).astype("i2")
    np.save(tmp_path / "labels.npy", labels)
    found = classes_of_clusters(made.tree, open_labels(tmp_path / "labels.npy", None, made.pool, N))
    assert [one.level for one in found] == [1, 2, 3]
    for one in found:
        clusters = made.tree.hkm.labels(one.level).to_numpy()
        votes = [np.bincount(labels[clusters == c] - 3, minlength=4) for c in np.unique(clusters)]
        sizes = [[vote.sum() for vote in votes if vote.argmax() == kind] for kind in range(4)]
        assert one.sizes.tolist() == np.bincount(labels - 3).tolist()
        assert one.clusters.n_clusters.tolist() == [len(of_kind) for of_kind in sizes]
        means = [np.mean(of_kind) if of_kind else np.nan for of_kind in sizes]
        assert one.clusters.mean_size == pytest.approx(means, nan_ok=True)


def test_samples_without_a_label_are_of_no_class(made: Made) -> None:
    labels = np.ma.MaskedArray(np.arange(N) % 3, np.arange(N) % 5 == 0)
    labels.data[labels.mask] = np.iinfo(np.int64).min
    column = columns.Column("x", N, lambda a, b: labels[a:b], lambda rows: labels[rows], {}, True)
    for one in classes_of_clusters(made.tree, column):
        assert one.sizes.tolist() == np.bincount(labels.compressed()).tolist()


def test_labels_and_their_names_reach_the_page(made: Made, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(N) % 3)
    (tmp_path / "names.json").write_text(json.dumps(["one", "<b>two", "three"]))
    options = {"labels": tmp_path / "labels.npy", "label_names": tmp_path / "names.json", "subset": made.rows}
    text = hkm.report(made.tree, tmp_path / "a.html", **options).read_text()
    assert "&lt;b&gt;two" in text
    assert ">Classes</h2>" in text
    assert text.count("clusters of the class</b>") == 3
    assert ">Classes</h2>" in hkm.report(made.tree, tmp_path / "b.html", labels="kind").read_text()


def test_labels_that_do_not_fit_are_refused(made: Made, tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.arange(3))
    np.save(tmp_path / "floats.npy", np.zeros(N))
    (tmp_path / "names.json").write_text("[1, 2]")
    for labels in ("few.npy", "floats.npy", "none.npy"):
        with pytest.raises(InputError, match=r"should be an \.npy file of whole numbers"):
            open_labels(tmp_path / labels, None, made.pool, N)
    with pytest.raises(InputError, match="label_names="):
        open_labels("kind", tmp_path / "names.json", made.pool, N)
