"""CPU work is counted as in a run: pairs of rows and centroids, part by part."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hkm_dask.config import Config, Level
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.planning.cost import seeding_passes
from hkm_dask.planning.files import Resident, passes_of_fit
from hkm_dask.planning.phases import PhaseClock, Place, Spent, spent_so_far
from hkm_dask.planning.processor_work import Part, Table, run_parts, together
from hkm_dask.search.cpu.tally import counting

N, D = 9000, 64
CONFIG = Config.from_flags((300, 70), n_resamples=(2, 1))


class Run:
    """A run, what it was seen to do, and what was planned for it."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(300, D))[rng.integers(300, size=N)] + rng.normal(size=(N, D))
        np.save(folder / "rows.npy", (rows * np.arange(1, D + 1) ** -0.5).astype(np.float16))
        ingest([folder / "rows.npy"], folder / "pool.zarr")
        self.n_members: list[int] = []
        with counting() as tally:
            clock = PhaseClock(partial(spent_so_far, tally))
            with subscribe(clock), subscribe(self._note):
                write_hierarchy(folder / "pool.zarr", folder / "tree.zarr", CONFIG)
        self.took: dict[Place, Spent] = clock.spent
        self.iterations = clock.iterations
        self.planned: dict[Place, Part] = {}
        for part in run_parts(Table(N, D, 2, n_threads=1), CONFIG.levels, self._course):
            place = part.level, part.resampled, part.name
            units = together(part.units, self.planned[place].units if place in self.planned else {})
            self.planned[place] = Part(*place, units)

    def _note(self, event: Event) -> None:
        if event.kind == "step_started":
            self.n_members.append(event.fields["n"])

    def _course(self, number: int, resampled: bool, level: Level) -> tuple[float, float]:
        return float(np.mean(self.iterations[number, resampled])), 0.3

    def pairs(self, place: Place) -> tuple[float, float]:
        """Pairs that were compared in a part, and those planned."""
        units = self.planned[place].units
        return self.took[place].pairs, sum(units.get(kind, 0.0) for kind in ("searched", "drawn", "labeled")) / D


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("work"))


def test_a_first_iteration_compares_every_row_with_every_centroid(run: Run) -> None:
    assert run.pairs((1, False, "Lloyd: first")) == (N * 300, N * 300)
    compared, planned = run.pairs((1, True, "Lloyd: first"))
    assert compared == sum(run.n_members[1:3]) * 300
    assert compared == pytest.approx(planned, rel=0.15)  # not every cluster has as many members


def test_a_seeding_compares_every_row_with_every_point_that_is_drawn(run: Run) -> None:
    for place, n in (((1, False, "seeding: draw"), N), ((1, True, "seeding: draw"), sum(run.n_members[1:3]))):
        compared, planned = run.pairs(place)
        assert compared > n * 3 * 300
        assert compared == pytest.approx(planned, rel=0.25)
    compared, planned = run.pairs((1, True, "seeding: refine"))
    assert 2 * 900 * 300 < compared < 2 * 2 * 900 * 300
    assert compared == pytest.approx(planned, rel=0.35)


def test_later_iterations_compare_fewer_and_labels_all(run: Run) -> None:
    n_later = run.iterations[1, False][0] - 1
    assert 0 < run.took[1, False, "Lloyd: later"].pairs < 0.8 * n_later * N * 300
    for place, n_hinted in (((1, False, "assign"), 0), ((1, True, "assign"), 2)):
        compared, planned = run.pairs(place)
        assert compared >= (max(1, n_hinted) * N + n_hinted * 300) * 300
        assert compared == pytest.approx(planned, rel=0.3)


def test_every_part_that_a_run_has_was_planned(run: Run) -> None:
    small = {place for place in run.took if place[2] == "seeding: draw"}  # points are grouped before they are chosen
    assert set(run.took) - small <= set(run.planned)
    assert {place for place in run.planned if place[0] < 2} <= set(run.took)


@pytest.mark.parametrize("init", ["coreset", "k-means++", "k-means||", "random"])
def test_work_grows_with_rows_clusters_and_features(init: str) -> None:
    def total(n: int, k: int, d: int) -> float:
        level = Level(n_clusters=k, init=init, n_resamples=1)
        parts = run_parts(Table(n, d, 2, 2), [level], lambda *_: (10.0, 0.3))
        return sum(sum(one.units.values()) for one in parts)

    assert total(10**5, 1000, 64) < min(total(2 * 10**5, 1000, 64), total(10**5, 2000, 64), total(10**5, 1000, 128))


def test_rows_that_are_not_kept_are_rotated_in_every_pass() -> None:
    kept, streamed = (Table(10**6, 128, 2, 2, kept=kept).search(1000)["projected"] for kept in (True, False))
    assert streamed > 10 * kept


@pytest.mark.parametrize("init", ["coreset", "k-means||", "random"])
def test_members_that_do_not_stay_in_memory_are_read_in_every_pass(init: str) -> None:
    n, k, d, m, n_iter = 10**6, 1000, 64, 3, 10
    level = Level(n_clusters=k, init=init, n_resamples=m, resample_size=200)  # type: ignore[arg-type]

    def reread(**shares: float) -> dict[tuple[bool, str], float]:
        parts = run_parts(Table(n, d, 2, 1), [level], lambda *_: (n_iter, 0.3), shares=[Resident(**shares)])
        of_phases: dict[tuple[bool, str], float] = {}
        for part in parts:
            place = part.resampled, part.phase
            of_phases[place] = of_phases.get(place, 0.0) + part.units.get("reread", 0.0)
        return {place: n_bytes for place, n_bytes in of_phases.items() if n_bytes}

    assert reread() == {}
    members, rows, n_seeding = 200 * k * d * 2, n * d * 2, seeding_passes(200 * k, k, init)
    passes = {"seeding": n_seeding, "Lloyd": n_iter}
    expected = {(True, phase): m * 0.25 * members * times for phase, times in passes.items() if times}
    assert reread(members=0.75) == pytest.approx(expected)
    files = passes_of_fit(members, 0.75, n_seeding, n_iter)  # those of a resampling, with what is read once
    assert sum(one.read for one in files.values()) == pytest.approx(sum(expected.values()) / m + 0.75 * members)
    assert reread(after_members=0.0) == {(True, "assign"): m * rows}
    assert reread(labels=0.5) == {(False, "assign"): 0.5 * rows, (True, "gather"): m * 0.5 * rows}


def test_members_are_rotated_where_their_level_is_not_kept() -> None:
    def projected(kept: bool) -> float:
        parts = run_parts(
            Table(10**5, 128, 2, 2, kept=kept), [Level(n_clusters=1000, n_resamples=1)], lambda *_: (1.0, 1.0)
        )
        return sum(
            part.units.get("projected", 0.0) for part in parts if part.resampled and part.name == "seeding: draw"
        )

    centers = Table(10**5, 128, 2, 2, kept=True, rotated=True)
    assert centers.search(1000, rotates=True)["projected"] == centers.search(1000)["projected"]
    assert projected(kept=False) > 2 * projected(kept=True)
