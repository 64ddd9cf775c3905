"""Comparison of columns, against counts by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hkm_dask.ingestion.ingest import ingest
from hkm_dask.view.report import columns
from hkm_dask.view.report.columns import Column, Numbers, Values, compare, pool_columns
from tests.view.report.conftest import Made, N


def column(values: np.ndarray, names: dict[str, str] | None = None) -> Column:
    return Column("x", len(values), lambda a, b: values[a:b], lambda rows: values[rows], names or {}, bool(names))


def test_kinds_are_counted_in_the_pool_and_in_the_draw(made: Made) -> None:
    of_pool = {one.name: one for one in pool_columns(made.pool)}
    kinds = compare(of_pool["kind"], made.rows)
    assert isinstance(kinds, Values)
    assert kinds.names[:2] == ["many", "few"]
    assert kinds.pool.tolist() == [360 / N, 38 / N, 2 / N]
    drawn = Counter(made.pool.column("kind", made.rows).tolist())
    assert kinds.draw is not None
    assert kinds.draw.tolist() == [n / len(made.rows) for n in (drawn["many"], drawn["few"], 2)]


def test_what_is_missing_is_no_value(tmp_path: Path) -> None:
    n, rng = 400, np.random.default_rng(0)
    missing, kinds, years = rng.random(n) < 0.3, rng.integers(0, 3, n), rng.integers(1900, 2000, n)
    table = {"v": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=n)), 1)}
    table |= {"kind": pa.array(kinds, mask=missing), "year": pa.array(years, mask=missing)}
    table |= {"name": pa.array(kinds.astype(str), mask=missing), "odd": pa.array(kinds == 1, mask=missing)}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    pool = ingest(tmp_path / "t.parquet", tmp_path / "p.zarr", keep=["kind", "year", "name", "odd"])
    drawn = np.arange(0, n, 3)
    found = {one.name: compare(one, drawn) for one in pool_columns(pool)}
    for name, values in (("kind", kinds), ("name", kinds.astype(str)), ("odd", kinds == 1)):
        counts, of_draw = (
            Counter(np.where(gone, "(missing)", of.astype(str)).tolist())
            for of, gone in ((values, missing), (values[drawn], missing[drawn]))
        )
        shown = found[name]
        assert isinstance(shown, Values)
        assert dict(zip(shown.names, shown.pool, strict=True)) == {value: m / n for value, m in counts.items()}
        assert shown.draw is not None
        assert shown.draw.tolist() == [of_draw[value] / len(drawn) for value in shown.names]
    year = found["year"]
    assert isinstance(year, Numbers)
    assert year.edges[[0, -1]].tolist() == np.quantile(years[~missing], [0.01, 0.99]).tolist()
    clipped = years[~missing].clip(year.edges[0], year.edges[-1])
    assert year.pool.tolist() == (np.histogram(clipped, year.edges)[0] / (~missing).sum()).tolist()


def test_measures_are_counted_in_bins_whatever_the_blocks(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_BLOCK", 37)
    monkeypatch.setattr(columns, "_MOST_RANGED", 100)
    score = compare({one.name: one for one in pool_columns(made.pool)}["score"], None)
    assert isinstance(score, Numbers)
    values = made.pool.column("score")
    values = values[np.isfinite(values)]
    assert score.edges[[0, -1]].tolist() == pytest.approx(np.quantile(values, [0.01, 0.99]), abs=0.01)
    expected = np.histogram(values.clip(score.edges[0], score.edges[-1]), score.edges)[0] / (N - 1)
    assert score.pool.tolist() == expected.tolist()


def test_whole_numbers_are_kinds_where_they_are_few_or_named() -> None:
    years = np.arange(2000) % 70
    assert isinstance(compare(column(years), None), Numbers)
    assert isinstance(compare(column(years % 7), None), Values)
    named = compare(column(years, {"0": "zero"}), None)
    assert isinstance(named, Values)
    assert named.names[0] == "zero"


def test_texts_and_constants() -> None:
    assert compare(column(np.array([f"text {i}" for i in range(2000)], dtype=object)), None) is None
    assert compare(column(np.array([f"text {i}" for i in range(20)], dtype=object)), None) is None
    assert compare(column(np.full(9, np.nan)), None) is None
    constant = compare(column(np.full(9, 2.5)), np.arange(3))
    assert isinstance(constant, Numbers)
    assert constant.pool.sum() == 1
