"""Our page in the dashboard of a real scheduler: it responds and shows a run, but runs do not depend on it."""

import asyncio
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bokeh.client import pull_session
from bokeh.models import ColumnDataSource, Div
from distributed import Client, LocalCluster
from sklearn.datasets import make_blobs

import hkm_dask as hkm
from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.cluster import dashboard
from hkm_dask.compute.cluster.connect import runner_for
from hkm_dask.events import TOPIC, Event, emit, subscribe

CONFIG = hkm.Config(levels=[hkm.Level(n_clusters=20, n_resamples=1), hkm.Level(n_clusters=5, n_resamples=0)])


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers, in threads of this process, and a scheduler with a dashboard."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster, set_as_default=False) as opened,
    ):
        yield opened


@pytest.fixture
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_ROUND_TRIP_FLOPS", 1.0)
    monkeypatch.setattr(runner_module, "_HAND_OVER_FLOPS", 1.0)


def build(path: Path, client: Client) -> np.ndarray:
    rows = make_blobs(n_samples=300, n_features=4, centers=9, random_state=0)[0].astype(np.float32)
    tree = hkm.build_hierarchy(rows, path, CONFIG, client=client)
    return tree["level_1"]["centroids"].to_numpy()


def sent(client: Client) -> list[Any]:
    return [event for _, events in client.get_events(TOPIC) for event in events]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.status == 200
        return answer.read().decode()


@pytest.mark.usefixtures("many_tasks")
def test_the_page_shows_a_run(client: Client, tmp_path: Path) -> None:
    with runner_for(client) as runner:
        page = runner.page
    assert page is not None
    get(page)  # tasks are looked at from when the page is first asked for
    told: list[Event] = []
    with subscribe(told.append):
        build(tmp_path / "tree.zarr", client)
    with pull_session(url=page) as session:
        found = session.document.select({"type": ColumnDataSource})
        data = {source.name: source.data for source in found if source.name}
        text = session.document.select_one({"type": Div, "name": "status"}).text
    inertia: dict[tuple[int, int], list[float]] = {}
    for event in told:
        if event.kind == "iteration":
            inertia.setdefault((event.fields["level"], event.fields["step"]), []).append(event.fields["inertia"])
    assert list(inertia) == [(1, 0), (1, 1), (2, 0)]
    curves = data["inertia"]
    assert list(zip(curves["level"], curves["step"], strict=True)) == [("level 1", 0), ("level 1", 1), ("level 2", 0)]
    for ys, curve in zip(curves["ys"], inertia.values(), strict=True):
        np.testing.assert_allclose(ys, np.divide(curve, curve[0]))
    stages = list(zip(data["stages"]["where"], data["stages"]["stage"], strict=True))
    of_step = ["seeding", "iterations", "assigning"]
    assert stages == [(f"level {t}, step {s}", stage) for t, s in inertia for stage in of_step]
    assert (np.diff(data["stages"]["start"]) >= 0).all()
    assert (np.subtract(data["stages"]["stop"], data["stages"]["start"]) >= 0).all()
    assert len(data["speeds"]["worker"]) == 2
    assert min(data["speeds"]["speed"]) > 0
    assert "<br>level 2 done in " in text
    assert "<br>done in " in text


@pytest.mark.slow
@pytest.mark.usefixtures("many_tasks")
def test_in_a_browser_figures_fit_a_wide_window_and_a_narrow_one(
    client: Client, open_page: Any, tmp_path: Path
) -> None:
    with runner_for(client) as runner:
        address = runner.page
    assert address is not None
    get(address)
    build(tmp_path / "tree.zarr", client)
    for width, n_rows in ((1280, 2), (400, 3)):
        page = open_page(address, viewport={"width": width, "height": 900})
        page.wait_for_function("document.querySelectorAll('canvas').length >= 0 && Bokeh.documents.length > 0")
        figures = page.locator(".bk-Figure")
        figures.nth(2).wait_for()
        boxes = [figures.nth(i).bounding_box() for i in range(figures.count())]
        assert len(boxes) == 3
        assert all(box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        assert len({round(box["y"]) for box in boxes if box is not None}) == n_rows
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("groups", "status", "tasks"):
        get(f"{address.rpartition('/')[0]}/{name}")


def test_the_page_is_added_once_and_linked_from_the_others(client: Client) -> None:
    def applications(dask_scheduler: Any) -> int:
        return len(dask_scheduler.http_application.applications)

    with runner_for(client):
        n = client.run_on_scheduler(applications)
        with runner_for(client) as runner:
            assert client.run_on_scheduler(applications) == n
            assert runner.dashboard is not None
            assert get(runner.dashboard).count('href="hkm"') == 1


@pytest.mark.parametrize("missing", ["hkm_dask.view.dashboard", "distributed.dashboard.core", "the version"])
def test_a_scheduler_that_has_no_page_lets_a_run_go_on(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "the version":
        monkeypatch.setattr(dashboard, "__version__", "0.0.1")
    else:
        monkeypatch.setitem(sys.modules, missing, None)  # an import of it fails, and only the scheduler imports it
    n = len(sent(client))
    with runner_for(client) as runner:
        assert runner.page is None
        assert runner.dashboard is not None
        assert runner.map(abs, [-1, 2], stage="test") == [1, 2]
    if missing == "hkm_dask.view.dashboard":
        assert np.isfinite(build(tmp_path / "tree.zarr", client)).all()
    assert len(sent(client)) == n


def test_few_messages_are_sent_and_the_last_event_is_among_them(client: Client) -> None:
    before, n = len(client.get_events(TOPIC)), len(sent(client))
    begin = time.monotonic()
    with runner_for(client), runner_for(client):
        for done in range(500):
            emit("seeding", level=1, step=0, phase="draw", done=done, total=499)
        emit("iteration", level=1, step=0, iteration=1, inertia=np.float64(2.5), max_iter=50)
    assert len(client.get_events(TOPIC)) - before <= 2 + (time.monotonic() - begin) / 0.4
    kinds = [(kind, fields.get("done")) for kind, _, fields in sent(client)[n:]]
    assert kinds[0] == ("seeding", 0)
    assert kinds[-3:] == [("seeding", 499), ("iteration", None), ("closed", None)]
    assert len(kinds) < 20


def test_events_keep_their_order_where_a_message_takes_long(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, n = client.cluster.scheduler, len(sent(client))
    log_event, under_way = scheduler.handlers["log_event"], threading.Event()

    async def late(**message: Any) -> None:
        if not under_way.is_set():
            under_way.set()
            await asyncio.sleep(0.5)
        log_event(**message)

    monkeypatch.setitem(scheduler.handlers, "log_event", late)
    with runner_for(client):
        emit("note", message="first")
        under_way.wait()
    while len(sent(client)) < n + 2:
        time.sleep(0.05)
    assert [kind for kind, *_ in sent(client)[n:]] == ["note", "closed"]
