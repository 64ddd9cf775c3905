"""Threads: results in order, exceptions raised, folders removed."""

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from dask.utils import key_split

from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.runner import MAX_PROCESSORS, Runner, n_processors
from hkm_dask.data.rows import ArrayRows, NpyRows
from hkm_dask.errors import ComputeError, InputError


def join(a: str, b: str) -> str:
    return f"{a}+{b}"


def test_as_many_processors_as_the_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HKM_PROCESSORS", str(MAX_PROCESSORS))
    assert n_processors() == MAX_PROCESSORS
    for text in ("0", "-1", "1.5", "", "²", str(MAX_PROCESSORS + 1), "9" * 5000):
        monkeypatch.setenv("HKM_PROCESSORS", text)
        with pytest.raises(ComputeError, match=r"^HKM_PROCESSORS='.{0,80} should be an integer from 1 to 4096; unset"):
            n_processors()


@pytest.mark.parametrize("n_threads", [1, 3])
def test_results_come_in_the_order_of_the_items(n_threads: int) -> None:
    with Runner(n_threads) as runner:
        assert runner.map(abs, list(range(-20, 0)), stage="test") == list(range(20, 0, -1))
        assert runner.map(abs, [-7], stage="test") == [7]
        assert runner.map(abs, [], stage="test") == []
        assert runner.call(abs, -3, stage="test") == 3
        joined = runner.map_reduce(str, list(range(20)), combine=join, finish=str.title, stage="test")
        assert joined == "+".join(map(str, range(20)))


def test_tasks_run_on_all_threads_and_nowhere_else() -> None:
    meet = threading.Barrier(3, timeout=20)
    with Runner(3) as runner:
        names = set(runner.map(lambda _: meet.wait() >= 0 and threading.current_thread().name, range(3), stage="test"))
    assert len(names) == 3
    assert all(name.startswith("hkm") for name in names)
    assert not [t for t in threading.enumerate() if t.name in names]


def test_what_a_task_raises_is_raised() -> None:
    with Runner(2) as runner, pytest.raises(ZeroDivisionError):
        runner.map(lambda x: 1 / x, [1, 0], stage="test")
    with Runner(2) as runner, pytest.raises(InputError, match="bad"):
        runner.map_reduce(abs, [1, 2], combine=max, finish=partial(_raise, InputError("bad")), stage="test")


def _raise(error: Exception, _: object) -> None:
    raise error


@pytest.mark.parametrize(("flops", "expected"), [(0, 1), (1e7, 1), (8.1e7, 2), (1e9, 4), (1e15, 4)])
def test_a_pass_is_cut_into_as_many_tasks_as_it_is_worth(flops: float, expected: int) -> None:
    with Runner(4) as runner:
        assert runner.n_parts(flops) == expected


def test_sums_that_do_not_fit_beside_each_other_take_fewer_threads() -> None:
    with Runner(8, memory_limit=1 << 30) as runner:
        rows = ArrayRows(np.broadcast_to(np.float32(0), (10**6, 384)))
        assert len(runner.split(rows, 100)) == 8
        assert 1 <= len(runner.split(rows, 14_000)) < 8
        with pytest.raises(ComputeError, match=r"memory_limit=1024MiB should be at least .*n_clusters=4000000 needs"):
            runner.split(rows, 4_000_000)


def test_what_is_resident_gives_way_to_the_stage(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((1000, 64), np.float32))
    rows = NpyRows(tmp_path / "rows.npy")
    with Runner(1, memory_limit=1 << 30) as runner:
        most, less = (runner.split(rows, 10, stage=StageBytes(n << 20))[0].budget for n in (10, 400))
        assert most == runner.memory_budget // 2
        assert less <= runner.memory_budget - (400 << 20)
        host_cache.hold("gathered", 100 << 20)
        assert runner.split(rows, 10, stage=StageBytes(400 << 20))[0].budget <= less - (50 << 20)
        host_cache.drop("gathered")


def test_what_is_remembered_gives_way_to_what_the_process_makes() -> None:
    host_cache.clear()
    with Runner(1, memory_limit=1 << 30) as runner:
        for rows in ("oldest", "older", "last"):
            host_cache.put(rows, 0, rows, 20 << 20, runner.memory_budget)
        runner.make_room_for(StageBytes(runner.memory_budget - (50 << 20)))
    assert [host_cache.get(rows, 0) for rows in ("oldest", "older", "last")] == [None, "older", "last"]
    host_cache.clear()


class Meeting:
    """A task that notes how many are at work at once."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def __call__(self, item: int) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.02)
        with self.lock:
            self.now -= 1
        return -item


@pytest.mark.parametrize(("task_bytes", "at_once"), [(0, 4), (100 << 20, 3), (200 << 20, 1), (2 << 30, 1)])
def test_only_as_many_tasks_work_at_once_as_there_is_room_for(task_bytes: int, at_once: int) -> None:
    meeting = Meeting()
    with Runner(4) as runner:
        runner.memory_budget = 420 << 20
        found = runner.map(meeting, range(12), stage="test", takes=StageBytes(100 << 20, task_bytes))
    assert found == [-i for i in range(12)]
    assert 1 <= meeting.most <= at_once


def test_folders_that_were_made_are_removed_and_those_given_stay(tmp_path: Path) -> None:
    with Runner(1) as runner:
        made = runner.work_dir
        (made / "file").touch()
        assert runner.work_dir == made
    assert not made.exists()
    with Runner(1, work_dir=tmp_path) as runner:
        assert runner.work_dir == tmp_path
        assert runner.array_store.folder is None
    assert tmp_path.exists()


def test_tasks_are_counted_as_they_are_done() -> None:
    for n_items in (1, 7):
        told: list[tuple[int, int]] = []
        with Runner(3) as runner:
            runner.map(abs, range(n_items), stage="test", report=lambda *one, to=told: to.append(one))
        assert told == [(i, n_items) for i in range(1, n_items + 1)]


def test_the_dashboard_groups_by_stage() -> None:
    with Runner(1) as runner:
        names = [runner._name("assign") for _ in range(200)]
        assert {key_split(f"{name}-{i}") for i, name in enumerate(names)} == {"hkm-assign"}
        assert len(set(names)) == 200
        with runner.span("level 1"):
            pass
