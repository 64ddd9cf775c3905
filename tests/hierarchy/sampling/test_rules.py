"""Draws with rules: excluded clusters and ids, weights, the best by a column, caps and quotas."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import hkm_dask as hkm
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.data import store
from hkm_dask.data.pool_writer import convert, create_embeddings, finish, measure, write_column
from hkm_dask.errors import InputError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy.sampling.steering import write_weights
from tests.hierarchy.sampling.test_sample import check_shares
from tests.hierarchy.sampling.test_shares import real_shares

RandomTree = Callable[[int], xr.DataTree]
N = 400
SOURCES = np.array(["web", "books", "code", "rare"])
RULES = dict[str, Any]


def ancestors(tree: xr.DataTree) -> list[np.ndarray]:
    """Clusters of every sample, level 1 first."""
    path = [tree["level_1/labels"].to_numpy()]
    for t in range(2, len(tree.children) + 1):
        above = tree[f"level_{t}/labels"].to_numpy()
        path.append(np.where(path[-1] >= 0, above[path[-1]], -1))
    return path


# --- clusters ---------------------------------------------------------------------------------------------------------

clusters = st.lists(
    st.one_of(st.tuples(st.just(t), st.integers(0, k - 1)) for t, k in ((1, 12), (2, 5), (3, 3))), max_size=4
)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 9), exclude=clusters, only=clusters, share=st.floats(0, 1),
    strategy=st.sampled_from(["hierarchical", "flat"]),
    weights=st.dictionaries(st.integers(0, 11).map(lambda c: (1, c)), st.sampled_from([0, 0.25, 1, 2.5, 1000])),
)  # fmt: skip
def test_what_is_drawn_is_what_the_rules_leave_shared_out_by_weight(
    random_tree: RandomTree, seed: int, exclude: list[Any], only: list[Any], share: float, strategy: str,
    weights: dict[Any, float],
) -> None:  # fmt: skip
    tree = random_tree(seed)
    if strategy == "flat":
        weights = {cluster: 0.0 for cluster, weight in weights.items() if weight == 0}
    path = ancestors(tree)
    inside = np.array([not only or any(path[t - 1][i] == c for t, c in only) for i in range(60)])
    out = [*exclude, *(cluster for cluster, weight in weights.items() if weight == 0)]
    left = inside & (path[0] >= 0) & ~np.array([any(path[t - 1][i] == c for t, c in out) for i in range(60)])
    rules: RULES = {"exclude": exclude, "only": [f"{t}:{c}" for t, c in only], "weights": weights, "strategy": strategy}
    if not left.any():
        with pytest.raises(InputError, match="size=1 should be at most the 0 that the rules leave"):
            hkm.sample(tree, 1, **rules)
        return
    size = max(1, round(share * int(left.sum())))
    rows = hkm.sample(tree, size, seed=seed, **rules)
    assert len(np.unique(rows)) == size
    assert left[rows].all()
    if strategy == "flat":
        check_shares(np.bincount(path[-1][rows], minlength=3), np.bincount(path[-1][left], minlength=3), size)
        return
    sizes, taken = (np.bincount(path[0][i], minlength=12) for i in (left, rows))
    parents = tree["level_2/labels"].to_numpy()
    for node in range(5):
        children = np.flatnonzero((parents == node) & (sizes > 0))
        of_children = [round(4 * weights.get((1, int(c)), 1)) for c in children]
        wanted = real_shares(sizes[children].tolist(), of_children, int(taken[children].sum()))
        assert all(abs(t - w) < 1 for t, w in zip(taken[children].tolist(), wanted, strict=True))


@pytest.mark.parametrize("strategy", ["hierarchical", "flat"])
def test_rules_that_leave_all_alone_leave_the_draw_alone(tree: xr.DataTree, strategy: str, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "weights.csv", {"1:3": 1, "2:0": 1})
    plain = hkm.sample(tree, 50, strategy=strategy, seed=4)
    everything = [(2, c) for c in range(tree.hkm.n_clusters[1])]
    rules: list[RULES] = [{"weights": path}, {"only": everything}, {"max_per": {"source": N}}, {"exclude_ids": []}]
    for rule in rules:
        assert hkm.sample(tree, 50, strategy=strategy, seed=4, **rule).tolist() == plain.tolist()


def test_a_weight_of_the_top_scales_a_flat_draw(tree: xr.DataTree) -> None:
    rows = hkm.sample(tree, 60, strategy="flat", weights={"2:1": 3})
    top = ancestors(tree)[-1]
    sizes = np.bincount(top)
    wanted = real_shares(sizes.tolist(), [3 if c == 1 else 1 for c in range(len(sizes))], 60)
    assert np.abs(np.bincount(top[rows], minlength=len(sizes)) - np.array(wanted, float)).max() < 1


# --- ids and columns --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 50, N) / 7
    score[::17] = np.nan
    return {
        "source": SOURCES[rng.choice(4, N, p=[0.6, 0.25, 0.13, 0.02])].astype(object),
        "domain": rng.zipf(1.6, N).clip(max=60),
        "score": score,
        "is_long": rng.random(N) < 0.5,
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, columns: dict[str, np.ndarray]) -> xr.DataTree:
    folder = tmp_path_factory.mktemp("steered")
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(12, 3)) * 5)[rng.choice(12, N, p=rng.dirichlet(np.ones(12)))] + rng.normal(size=(N, 3))
    rows = convert(rows, np.dtype("f4"), False)
    pool, stats = folder / "pool.zarr", measure(rows, rows, np.arange(N))
    store.create_group(pool, {"format": "hkm_dask.pool", "format_version": 2})
    embeddings = create_embeddings(pool, rows.shape, rows.dtype, 64)
    for low in range(0, N, 64):
        embeddings.write(low, rows[low : low + 64])
    stats.checksums = [embeddings.checksum(i) for i in range(embeddings.spec.n_chunks)]
    write_column(pool, "ids", [np.array([f"id-{i}" for i in range(N)], dtype=object)], N)
    for name, values in columns.items():
        write_column(pool, name, [values], N)
    finish(pool, stats, has_ids=True, normalize=False, sources=["test"], columns=list(columns))
    config = hkm.Config.from_flags((30, 6), n_resamples=1)
    return hkm.build_hierarchy(pool, folder / "tree.zarr", config)


@pytest.mark.parametrize(
    ("by", "sign"), [("score", -1), ("-score", 1), ("domain", -1)], ids=["largest", "smallest", "whole"]
)
def test_the_best_of_a_cluster_are_a_sort_by_the_column(
    tree: xr.DataTree, columns: dict[str, np.ndarray], by: str, sign: int
) -> None:
    rows = hkm.sample(tree, 120, within="best", by=by)
    labels, distances = (tree[f"level_1/{name}"].to_numpy() for name in ("labels", "distances"))
    values = columns[by.strip("-")].astype(float)
    for cluster in range(30):
        own = np.flatnonzero(labels == cluster)
        best = sorted(own, key=lambda i: (np.isnan(values[i]), sign * np.nan_to_num(values[i]), distances[i], i))
        taken = rows[labels[rows] == cluster]
        assert taken.tolist() == sorted(best[: len(taken)])


@pytest.mark.parametrize("strategy", ["hierarchical", "flat"])
def test_a_second_draw_has_none_of_the_first_whatever_file_it_is_in(
    tree: xr.DataTree, tmp_path: Path, strategy: str
) -> None:
    from hkm_dask.hierarchy.sampling.export import write_subset

    first = hkm.sample(tree, 60, strategy=strategy)
    draws = {tuple(hkm.sample(tree, 300, strategy=strategy, seed=1, exclude_ids=[f"id-{i}" for i in first]))}
    for suffix in ("npy", "txt", "csv", "parquet"):
        path = write_subset(tmp_path / f"first.{suffix}", first, tree)
        draws.add(tuple(hkm.sample(tree, 300, strategy=strategy, seed=1, exclude_ids=path)))
    halves = [write_subset(tmp_path / f"{i}.txt", first[i::2], tree) for i in range(2)]
    draws.add(tuple(hkm.sample(tree, 300, strategy=strategy, seed=1, exclude_ids=halves)))
    (second,) = draws
    assert len({*second} - {*first}) == 300


def test_ids_that_the_pool_lacks_are_counted(tree: xr.DataTree, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("id-3\nid-3\n\nid-99999\nother\n")
    seen: list[Event] = []
    with subscribe(seen.append):
        rows = hkm.sample(tree, N - 1, exclude_ids=path)
    assert np.setdiff1d(np.arange(N), rows).tolist() == [3]
    assert [e.fields["message"] for e in seen if e.kind == "warning"] == [
        f"exclude_ids='{path}': 2 of 3 ids are not in the pool (id-99999, other)"
    ]
    assert [e.fields["message"] for e in seen if e.kind == "note"] == [
        f"the rules leave {N - 1} of {N} samples, without 1 with excluded ids"
    ]
    path.write_text("other\n")
    with pytest.raises(
        InputError, match=r"exclude_ids=.*: 1 of 1 ids are not in the pool \(other\); give ids like id-0"
    ):
        hkm.sample(tree, 5, exclude_ids=path)


def capped(tree: xr.DataTree, size: int, most: int, score: np.ndarray, domain: np.ndarray, **rules: Any) -> np.ndarray:
    """The loop in plain words: keep the best `most` of every domain drawn too often, and draw again."""
    out: set[int] = set()
    while True:
        rows = hkm.sample(tree, size, within="best", by="score", exclude_ids=[f"id-{i}" for i in out], **rules)
        over = [d for d in set(domain[rows].tolist()) if np.unique(rows[domain[rows] == d]).size > most]
        if not over:
            return rows
        for d in over:
            drawn = np.unique(rows[domain[rows] == d]).tolist()
            kept = sorted(drawn, key=lambda i: (np.isnan(score[i]), -np.nan_to_num(score[i]), keys(i)))[:most]
            out |= {int(i) for i in np.flatnonzero(domain == d)} - set(kept)


def keys(row: int) -> int:
    from hkm_dask.compute.keyed_random import random_bits

    return int(random_bits(stream_key(0, "max_per"), np.array([row]))[0])


@pytest.mark.parametrize(
    ("size", "most", "rules"), [(60, 9, {}), (100, 7, {"exclude": ["2:1"]}), (90, 8, {"strategy": "flat"})]
)
def test_no_value_has_more_rows_than_it_may(
    tree: xr.DataTree, columns: dict[str, np.ndarray], size: int, most: int, rules: RULES
) -> None:
    domain = columns["domain"]
    rows = hkm.sample(tree, size, within="best", by="score", max_per={"domain": most}, **rules)
    assert len(rows) == size
    assert np.bincount(domain[np.unique(rows)]).max() <= most
    assert rows.tolist() == capped(tree, size, most, columns["score"], domain, **rules).tolist()


def test_a_capped_draw_gives_all_that_it_may_and_says_how_much_that_is(
    tree: xr.DataTree, columns: dict[str, np.ndarray]
) -> None:
    available = int(np.minimum(np.bincount(columns["domain"]), 5).sum())
    rows = hkm.sample(tree, available, max_per={"domain": 5}, seed=8)
    assert len(np.unique(rows)) == available
    assert np.bincount(columns["domain"][rows]).max() == 5
    with pytest.raises(
        InputError, match=f"size={available + 1} should be at most the {available} that the rules leave"
    ):
        hkm.sample(tree, available + 1, max_per={"domain": 5})


def test_a_draw_tells_what_each_rule_leaves_out(tree: xr.DataTree, columns: dict[str, np.ndarray]) -> None:
    one, two = ancestors(tree)
    inside, excluded = np.isin(two, [0, 1, 2]), (two == 1) | (one == 7)
    listed = np.arange(0, N, 3)
    left = inside & ~excluded
    left[listed] = False
    n_allowed = int(np.minimum(np.bincount(columns["domain"][left]), 4).sum())
    seen: list[Event] = []
    with subscribe(seen.append):
        rows = hkm.sample(
            tree, n_allowed, only=[(2, 0), (2, 1), (2, 2)], exclude=["2:1"], weights={(1, 7): 0},
            exclude_ids=[f"id-{row}" for row in listed], max_per={"domain": 4},
        )  # fmt: skip
    assert left[rows].all()
    n_listed = int((inside & ~excluded)[listed].sum())
    assert [event.fields["message"] for event in seen if event.kind == "note"] == [
        f"the rules leave {n_allowed} of {N} samples, without {N - inside.sum()} outside the chosen clusters, "
        f"{(inside & excluded).sum()} in excluded clusters, {n_listed} with excluded ids, "
        f"{left.sum() - n_allowed} beyond 4 per domain"
    ]


def test_a_quota_is_a_draw_of_every_value(tree: xr.DataTree, columns: dict[str, np.ndarray], tmp_path: Path) -> None:
    source = columns["source"]
    rows = hkm.sample(tree, 101, quotas={"source": {"code": 0.25, "books": 30}}, seed=5)
    assert {name: int((source[rows] == name).sum()) for name in ("code", "books")} == {"code": 25, "books": 30}
    for name, n in (("code", 25), ("books", 30), ("", 46)):
        left = np.isin(source, ["code", "books"], invert=True) if not name else source == name
        seed = stream_key(5, "quota", name) if name else stream_key(5, "quota")
        # A seed of a draw is below 2**63, a key is not; they are used alike.
        alone = hkm.sample(tree, n, exclude_ids=[f"id-{i}" for i in np.flatnonzero(~left)], seed=seed)
        assert rows[left[rows]].tolist() == alone.tolist()
    path = tmp_path / "quotas.csv"
    path.write_text("value,quota\ncode,0.25\nbooks,30\n")
    assert hkm.sample(tree, 101, quotas={"source": path}, seed=5).tolist() == rows.tolist()
    ones = hkm.sample(tree, 20, quotas={"domain": {"1": 1.0}})  # whole numbers may be written as text
    assert set(columns["domain"][ones].tolist()) == {1}


def test_values_of_quotas_are_those_of_the_column_and_each_comes_once(
    tree: xr.DataTree, columns: dict[str, np.ndarray], tmp_path: Path
) -> None:
    for names in ([True, "FALSE"], [1, 0], [np.True_, "false"]):  # 1 is True in Python
        rows = hkm.sample(tree, 30, quotas={"is_long": dict(zip(names, (10, 20), strict=True))})
        assert columns["is_long"][rows].sum() == 10
    numbers = [1.5, None, float("inf"), "1.5"]
    for column, names in (("is_long", ["yes", "1", 2]), ("domain", numbers), ("level_2", numbers)):
        for name in names:
            with pytest.raises(InputError, match=f"quotas={name!r} should be a value of column {column}"):
                hkm.sample(tree, 40, quotas={column: {name: 3}})
    path = tmp_path / "quotas.csv"
    path.write_text("value,quota\n1,3\n01,3\n")
    for quotas in (path, {1: 3, "01": 3}):
        with pytest.raises(InputError, match="quotas='01' should be another value of column domain than those before"):
            hkm.sample(tree, 40, quotas={"domain": quotas})
    path.write_text("value,quota\nvalue,3\n")  # a value named like its header
    with pytest.raises(InputError, match="quotas='value' should be a value of column source"):
        hkm.sample(tree, 40, quotas={"source": path})


def test_a_cap_holds_over_all_quotas(tree: xr.DataTree, columns: dict[str, np.ndarray]) -> None:
    source, domain = columns["source"], columns["domain"]
    rows = hkm.sample(tree, 40, quotas={"source": {"web": 0.5, "books": 0.5}}, max_per={"domain": 6})
    assert {name: int((source[rows] == name).sum()) for name in ("web", "books")} == {"web": 20, "books": 20}
    assert np.bincount(domain[rows]).max() == 6
    # What web takes of the common domains is not there for books, though either is there by itself.
    web, books = (len(np.unique(domain[source == name])) for name in ("web", "books"))
    with pytest.raises(InputError, match=rf"{books} rows of source='books' should be at most the \d+ that the rules"):
        hkm.sample(tree, web + books, quotas={"source": {"web": web, "books": books}}, max_per={"domain": 1})


@pytest.mark.parametrize("column", ["source", "score"])
def test_values_of_any_kind_are_capped_and_missing_ones_are_one(
    tree: xr.DataTree, columns: dict[str, np.ndarray], column: str
) -> None:
    values = np.array([str(value) for value in columns[column]])
    available = sum(min(int(n), 3) for n in np.unique(values, return_counts=True)[1])
    rows = hkm.sample(tree, available, max_per={column: 3})
    assert np.unique(values[rows], return_counts=True)[1].max() == 3


def test_clusters_of_a_level_are_capped_and_have_quotas(tree: xr.DataTree, random_tree: RandomTree) -> None:
    one, two = ancestors(tree)
    available = int(np.minimum(np.bincount(one), 2).sum())
    rows = hkm.sample(tree, available, max_per={"level_1": 2})
    assert (np.bincount(one[rows], minlength=30) == np.minimum(np.bincount(one), 2)).all()
    rows = hkm.sample(tree, 40, quotas={"level_2": {3: 5, "0": 0.25}}, max_per={"level_1": 4})
    assert [(two[rows] == cluster).sum() for cluster in (3, 0)] == [5, 10]
    assert np.bincount(one[rows]).max() <= 4
    array = random_tree(2)  # without a pool, and with rows left out
    labels = ancestors(array)[1]
    rows = hkm.sample(array, 4, max_per={"level_2": 1})
    assert len({*labels[rows].tolist()}) == 4
    with pytest.raises(
        InputError, match=r"max_per='kind' .*; choose one of them, or give a level of the tree: level_1"
    ):
        hkm.sample(tree, 1, max_per={"kind": 1})


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_all_problems_are_told_at_once(tree: xr.DataTree) -> None:
    with pytest.raises(InputError) as error:
        hkm.sample(
            tree, 0, strategy="flat", within="best", exclude=["3:0", "2.1"], only="1:30", by="scor",
            weights={"2:7": 2, "1:1": 0.5}, max_per={"domian": 0}, quotas={"source": {"web": 0.7, "books": 80}},
        )  # fmt: skip
    assert [line.split(" should")[0] for line in error.value.problems] == [
        "exclude='2.1'", "exclude='3:0'", "only='1:30'", "weights='2:7'", "weights of 1:1", "max_per=0 of domian",
        "quotas of source add up to 80 rows but", "by='scor'", "size=0",
    ]  # fmt: skip
    assert "did you mean score?" in str(error.value)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"by": "score"}, "within='random' should be best with by='score'; "),
        ({"within": "best"}, "by=None should be a column of the pool for within='best'; "),
        ({"within": "best", "by": "source"}, "by='source' should be a column of numbers"),
        ({"max_per": {"a": 1, "b": 2}}, "max_per should be for one column, not for a, b; "),
        ({"max_per": {"domain": 5}, "multiplier": 2}, "multiplier=2 should be 1 with max_per; "),
        ({"quotas": {"source": {"wbe": 0.5}}}, "quotas='wbe' should be a value of column source; did you mean web?"),
        ({"quotas": {"source": {"rare": 0.5}}}, r"50 rows of source='rare' should be at most the \d+ that the rules"),
        ({"quotas": {"source": {"web": "half"}}}, "quotas='half' of 'web' should be a number of rows like 500, or"),
        ({"quotas": {"source": {"web": -1}}}, "quotas=-1 of 'web' should be a number of rows"),
        ({"quotas": {"source": {"web": 101}}}, "add up to 101 rows but should add up to at most size=100"),
        ({"quotas": {"source": "missing.csv"}}, "should be a CSV file of quotas, but cannot be read"),
        ({"quotas": {"source": {}, "domain": {}}}, "quotas should be for one column, not for source, domain; "),
        ({"max_per": "domain=5"}, "max_per='domain=5' should be a mapping of a column; write it like {'domain': 100}"),
        ({"quotas": "quotas.csv"}, "quotas='quotas.csv' should be a mapping of a column; write it like "),
        ({"weights": ["2:1"]}, r"weights=\['2:1'\] should be a mapping of clusters; write it like {'2:19': 0.5}"),
        ({"exclude_ids": np.arange(5)}, r"give ids like \S+; of row numbers pool.ids\(rows\), or an .npy file"),
        ({"exclude_ids": "ids.xlsx"}, "should be a file of ids: .npy, .txt, .csv, .parquet, as"),
        ({"exclude_ids": "missing.txt"}, r"should be a file of ids, but cannot be read \(No such file"),
        ({"weights": "missing.csv"}, "should be a CSV file of weights, but cannot be read"),
    ],
)
def test_rules_that_cannot_be_are_refused(tree: xr.DataTree, rules: RULES, message: str) -> None:
    with pytest.raises(InputError, match=message):
        hkm.sample(tree, 100, **rules)


def test_a_tree_of_an_array_has_row_numbers_for_ids_and_no_columns(random_tree: RandomTree) -> None:
    tree = random_tree(2)
    all_rows = np.flatnonzero(ancestors(tree)[0] >= 0)
    assert hkm.sample(tree, len(all_rows) - 2, exclude_ids=all_rows[:2]).tolist() == all_rows[2:].tolist()
    with pytest.raises(InputError, match="max_per='source' should be a column of the pool, which has none; "):
        hkm.sample(tree, 1, max_per={"source": 3})
    with pytest.raises(InputError, match="exclude_ids should be row numbers from 0 to 59, 1 are not, like 60; "):
        hkm.sample(tree, 1, exclude_ids=[60])


def test_a_draw_tells_that_another_pool_lies_in_the_place_of_its_own(tmp_path: Path) -> None:
    x, path = np.random.default_rng(0).normal(size=(60, 2)), tmp_path / "pool.zarr"
    pool = hkm.ingest(x, path)
    tree = hkm.build_hierarchy(pool, tmp_path / "tree.zarr", hkm.Config.from_flags((9, 3), n_resamples=0))
    told = list[str]()
    with subscribe(lambda event: told.append(str(event.fields["message"])) if event.kind == "warning" else None):
        rows = hkm.sample(tree, 20).tolist()
        assert told == []
        hkm.ingest(x[::-1].copy(), path, overwrite=True)
        assert hkm.sample(tree, 20).tolist() == rows
        path.rename(tmp_path / "moved.zarr")
        assert hkm.sample(tree, 20).tolist() == rows  # a pool that is gone is missed by whoever needs it
    (warned,) = told
    assert re.search(r"pool.zarr' is not the one the tree was built from, .* drawn are numbers of that one", warned)
