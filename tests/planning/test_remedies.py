"""Settings that are suggested to fit do fit, according to the check of the build."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkm_dask.config import Config
from hkm_dask.planning.gpus import GPUS
from hkm_dask.planning.remedies import Check, remedies_for
from hkm_dask.planning.workers import PlannedRows, Workers


def remedied(check: Check, remedy: str) -> Check:
    """What a remedy says, done."""
    if found := re.match(r"--memory (\d+)MiB", remedy):
        return replace(check, workers=replace(check.workers, memory_limit=int(found[1]) << 20))
    if found := re.match(r"(\d+) such workers", remedy):
        return replace(check, workers=replace(check.workers, n_workers=int(found[1]), is_cluster=True))
    if remedy.startswith("hkm ingest"):
        rows = PlannedRows(check.rows.n_rows, check.rows.n_features, check.rows.dtype.name)
        rows.chunk_rows = (1 << 20) // rows.row_bytes
        return replace(check, rows=rows)
    overrides = re.findall(r"--set (\S+=\w+)", remedy)
    levels = list(check.config.levels)
    for override in overrides:
        number, name, value = re.fullmatch(r"levels\.(\d)\.(\w+)=(\w+)", override).groups()  # type: ignore[union-attr]
        levels[int(number) - 1] = levels[int(number) - 1].model_copy(
            update={name: int(value) if value.isdigit() else value}
        )
    return replace(check, config=check.config.model_copy(update={"levels": tuple(levels)}))


def check_of(n: int, d: int, k: int, workers: Workers) -> Check:
    rows = PlannedRows(n, d, "float16")
    return Check(Config.from_flags((k, max(1, k // 20))), rows, workers, n)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(10**5, 10**8), d=st.integers(16, 2048), per_cluster=st.integers(2, 200), gib=st.floats(0.6, 16.0),
    n_workers=st.integers(1, 8),
)  # fmt: skip
def test_every_remedy_is_one(n: int, d: int, per_cluster: int, gib: float, n_workers: int) -> None:
    workers = Workers(n_workers, 2, int(gib * 2**30), is_cluster=n_workers > 1)
    check = check_of(n, d, n // per_cluster, workers)
    remedies = list(remedies_for(check))
    assert bool(remedies) != check.fits()  # more memory is always one
    for remedy in remedies:
        changed = remedied(check, remedy)
        assert changed != check
        level = re.search(r"levels\.(\d)", remedy)
        assert changed.fits(int(level[1])) if level else changed.fits()


def test_ten_million_clusters_come_in_two_steps() -> None:
    check = check_of(743_000_000, 1024, 10_000_000, Workers.of_gpus(GPUS["h200"], 128, 256 << 30))
    remedies = list(remedies_for(check))
    assert any("levels.1.n_clusters=1000000 --set levels.1.n_splits=10" in one for one in remedies)
    assert not any("such workers" in one for one in remedies)  # every worker has all centroids


@pytest.mark.parametrize("name", ["a100-40gb", "l4"])
def test_centroids_that_no_device_holds_do_not_fit(name: str) -> None:
    rows = PlannedRows(10**8, 1024, "float16")
    check = Check(Config.from_flags((3_000_000,)), rows, Workers.of_gpus(GPUS[name], 8, 8 << 40), 10**8)
    assert not check.fits()
    assert any(remedy.startswith("--set levels.1") for remedy in remedies_for(check))
