"""The hkm page in the Dask dashboard: status and time left of a build, its stages and inertia, the workers' speed.

The scheduler serves it, from events that the driver sends (`hkm_dask.compute.cluster.dashboard`) and its own task log.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from html import escape
from itertools import islice, takewhile
from typing import Any

from hkm_dask.events import TOPIC, Event
from hkm_dask.view.progress import Status

#: Colors of stages and levels, distinguishable for color-blind readers (Okabe and Ito).
STAGES = {
    "seeding": "#E69F00",
    "iterations": "#0072B2",
    "one task": "#56B4E9",
    "assigning": "#009E73",
    "splitting": "#CC79A7",
}
_LEVEL_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_UPDATE_MS = 500
#: Minimum width of a figure in pixels; a phone screen has 360.
_LEAST_WIDTH = 320
#: Most workers whose speeds are shown (the slowest), and number of their last passes that count.
_MOST_WORKERS, _PASSES = 40, 4
#: Most tasks examined (the last ones), to keep the load on the scheduler low.
_MOST_TASKS = 5000
_PASS = re.compile(r"hkm-(lloyd|assign)-.*?level(\d+)(?:-step(\d+))?")


class RunLog:
    """State of a run, collected from its events: a build, or other work that reports progress.

    It began at `started`, in seconds since the epoch.
    """

    def __init__(self, started: float) -> None:
        self.started, self.status, self.running = started, Status(started), True
        #: ``where`` (level and step), ``stage``, ``start`` and ``stop`` in seconds since the run began; ``stop`` is
        #: None for the current stage.
        self.stages: list[dict[str, Any]] = []
        self.curves: dict[tuple[int, int], list[float]] = {}  # inertia of each iteration, by level and step
        self.rows: dict[tuple[int, int | None], int] = {}  # rows of each k-means; of the whole level if step is None
        self.lines: list[str] = []  # messages to keep: finished levels, warnings
        self._seeded: float | None = None

    def update(self, event: Event) -> None:
        """Process one event; events after the end of the run are ignored."""
        if not self.running:
            return
        self.lines += self.status.update(event)
        fields, time = event.fields, event.time - self.started
        match event.kind:
            case "level_started":
                self.rows[fields["level"], None] = fields["n"]
            case "step_started":
                self.rows[_where(fields)] = fields["n"]
                self._begin("seeding", fields, time)
            case "seeding":
                self._seeded = time
            case "iteration":
                curve = self.curves.setdefault(_where(fields), [])
                if not self.stages or self.stages[-1]["stage"] != "iterations":
                    self._begin("iterations", fields, time if self._seeded is None else self._seeded)
                curve.append(fields["inertia"])
            case "step_finished":
                if self.stages and self.stages[-1]["stage"] == "seeding":  # a small k-means runs as a single task
                    self.stages[-1]["stage"] = "one task"
                self._begin("assigning", fields, time)
            case "splitting" if not fields["done"]:
                self._begin("splitting", fields, time)
            case "assigned" | "level_finished":
                self._end(time)
            case "progress" if fields["done"] == fields["total"] and not ("then" in fields or self.status.levels):
                self.lines.append(f"{fields['stage']}: done")
                self.running = False
            case "run_finished" | "closed":
                self._end(time)
                self.running = False
                if event.kind == "closed":
                    self.lines.append("stopped before completion; run the same command again to resume")

    def _begin(self, stage: str, fields: Mapping[str, Any], time: float) -> None:
        self._end(time)
        self._seeded = None
        step = f"step {fields['step']}" if "step" in fields else stage
        where = f"level {fields['level']}, {step}"
        self.stages.append({"where": where, "stage": stage, "start": time, "stop": None})

    def _end(self, time: float) -> None:
        if self.stages and self.stages[-1]["stop"] is None:
            self.stages[-1]["stop"] = time


def _where(fields: Mapping[str, Any]) -> tuple[int, int]:
    return fields["level"], fields["step"]


def _status_html(log: RunLog, now: float) -> str:
    """Make the status text above the figures, in HTML."""
    lines = [escape(line) for line in log.lines[-3:]]
    if log.running:
        headline, detail, share, times = log.status.parts(now)
        bar = "" if share is None else f' <progress value="{share:.3f}" aria-label="{escape(detail)}"></progress>'
        lines = [f"<b>{escape(headline)}</b>", escape(detail) + bar, escape(times), *lines]
    return "<br>".join(line for line in lines if line)


def rows_per_second(tasks: Iterable[Mapping[str, Any]], rows: Mapping[tuple[int, int | None], int]) -> dict[str, float]:
    """Compute the rows per second of each worker, over its last passes that assign rows.

    Tasks are those of distributed's ``TaskStreamPlugin.buffer``: ``key``, ``worker`` and ``startstops``; `rows` are
    those of `RunLog`. The parts of a pass are assumed to have the same number of rows.

    >>> def task(i, worker, start, stop):
    ...     spent = [{"action": "compute", "start": start, "stop": stop}]
    ...     return {"key": ("hkm-lloyd-iteration1-level1-step0-7-ab", i), "worker": worker, "startstops": spent}
    >>> tasks = [task(0, "a", 0, 1), task(1, "a", 1, 2), task(2, "b", 0, 4), task(3, "b", 4, 8)]
    >>> rows_per_second(tasks, {(1, 0): 1000})
    {'a': 250.0, 'b': 62.5}
    """
    passes: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for task in tasks:
        if isinstance(task["key"], tuple) and _PASS.match(str(task["key"][0])):
            passes[task["key"][0]].append(task)
    n_rows: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    n_passes: Counter[str] = Counter()
    for name in reversed(passes):
        found = _PASS.match(name)
        assert found is not None
        # An assignment passes over all rows of the level, whatever the step.
        level, step = int(found[2]), None if found[1] == "assign" or found[3] is None else int(found[3])
        n_parts = 1 + max(task["key"][1] for task in passes[name])
        spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for task in passes[name]:
            times = [(one["start"], one["stop"]) for one in task["startstops"] if one["action"] == "compute"]
            if times and (level, step) in rows and n_passes[task["worker"]] < _PASSES:
                spent[task["worker"]] += times
                n_rows[task["worker"]] += rows[level, step] / n_parts
        for worker, times in spent.items():
            n_passes[worker] += 1
            seconds[worker] += max(stop for _, stop in times) - min(start for start, _ in times)
    return {worker: n_rows[worker] / spent for worker, spent in sorted(seconds.items()) if spent > 0}


def add_to(scheduler: Any) -> bool:
    """Add the page to a scheduler's dashboard, if it is not there yet; returns whether it is. Runs on the scheduler."""
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables
    from tornado.ioloop import IOLoop

    dashboards = [app for app in scheduler.http_application.applications if hasattr(app, "app_paths")]
    if not dashboards:
        return False
    if any(f"/{TOPIC}" in app.app_paths for app in dashboards):
        return True
    prefix, variables = dashboards[0].prefix, template_variables(scheduler)
    application = BokehApplication({f"/{TOPIC}": show}, scheduler, prefix=prefix, template_variables=variables)
    scheduler.http_application.add_application(application)
    application.initialize(IOLoop.current())
    application.start()
    if TOPIC not in variables["pages"]:  # the navigation bar of all pages
        variables["pages"].append(TOPIC)
    return True


def show(scheduler: Any, extra: Mapping[str, Any], doc: Any) -> None:
    """Fill a Bokeh document with the page and keep it up to date."""
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env
    from distributed.diagnostics.task_stream import TaskStreamPlugin

    if TaskStreamPlugin.name not in scheduler.plugins:
        scheduler.add_plugin(TaskStreamPlugin(scheduler))
    page = Page(scheduler)
    page.update()
    doc.title = "hkm: the run"
    doc.add_root(page.root)
    doc.add_periodic_callback(page.update, _UPDATE_MS)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME


class Page:
    """The figures in one browser window, updated while it is open."""

    def __init__(self, scheduler: Any) -> None:
        from bokeh.layouts import column, row
        from bokeh.models import ColumnDataSource
        from bokeh.models.widgets import Div

        self.scheduler = scheduler
        self.log: RunLog | None = None
        self._last: Any = None  # last entry of the scheduler's log that was read
        self._names: dict[str, str] = {}  # of workers, including those that have left
        self._ahead = 0.0  # seconds by which the driver's clock is ahead of this one
        self.text = Div(name="status", sizing_mode="stretch_width", styles={"font-size": "115%"})
        names = ("where", "stage", "start", "stop", "seconds", "color")
        self.stages = ColumnDataSource({name: [] for name in names}, name="stages")
        names = ("xs", "ys", "level", "step", "color", "alpha")
        self.curves = ColumnDataSource({name: [] for name in names}, name="inertia")
        self.speeds = ColumnDataSource({"worker": [], "speed": []}, name="speeds")
        self._draw()
        # Side by side if there is room, otherwise stacked.
        wrapped = {"display": "flex", "flex-wrap": "wrap"}
        below = row(self.inertia_figure, self.speed_figure, sizing_mode="stretch_width", styles=wrapped)
        self.root = column(self.text, self.stage_figure, below, sizing_mode="stretch_width", margin=10)

    def _draw(self) -> None:
        from bokeh import plotting
        from bokeh.models import FactorRange, NumeralTickFormatter

        figure: Any = plotting.figure  # not all of its options are typed
        options: dict[str, Any] = {"sizing_mode": "stretch_width", "tools": "", "toolbar_location": None}
        self.stage_figure: Any = figure(
            title="Stages", y_range=FactorRange(), x_axis_label="time since the run began", height=120, **options,
            tooltips=[("", "@where"), ("stage", "@stage"), ("seconds", "@seconds{0,0.0}")],
        )  # fmt: skip
        self.stage_figure.hbar(
            y="where", left="start", right="stop", height=0.75, color="color", legend_field="stage", source=self.stages
        )
        self.stage_figure.xaxis.formatter = NumeralTickFormatter(format="00:00:00")
        self.stage_figure.x_range.start = 0
        self.stage_figure.ygrid.visible = False
        self.stage_figure.legend.orientation = "horizontal"
        self.stage_figure.legend.border_line_alpha = 0
        self.stage_figure.legend.padding = self.stage_figure.legend.margin = 0
        self.stage_figure.add_layout(self.stage_figure.legend[0], "above")
        self.inertia_figure: Any = figure(
            title="Inertia, as a share of the first iteration's", x_axis_label="iteration", height=300,
            min_width=_LEAST_WIDTH, **options,
            tooltips=[("level", "@level"), ("step", "@step"), ("share", "$data_y{0.0000}")],
        )  # fmt: skip
        self.inertia_figure.multi_line(
            "xs", "ys", color="color", alpha="alpha", line_width=2, legend_field="level", source=self.curves
        )
        self.speed_figure: Any = figure(
            title="Rows per second of each worker", y_range=FactorRange(), height=300,
            min_width=_LEAST_WIDTH, **options,
            tooltips=[("worker", "@worker"), ("rows per second", "@speed{0,0}")],
        )  # fmt: skip
        self.speed_figure.hbar(y="worker", right="speed", height=0.75, color="#56B4E9", source=self.speeds)
        self.speed_figure.xaxis.formatter = NumeralTickFormatter(format="0,0")
        self.speed_figure.x_range.start = 0
        self.speed_figure.ygrid.visible = False
        for shown in (self.stage_figure, self.speed_figure):
            shown.xaxis.ticker.desired_num_ticks = 4  # so that labels do not overlap in a narrow window
            shown.xaxis.ticker.num_minor_ticks = 0
        self.inertia_figure.xaxis.ticker.num_minor_ticks = 0  # iterations are integers
        self.inertia_figure.visible = self.speed_figure.visible = False  # until they have data

    def update(self) -> None:
        """Read new events and update the figures."""
        from distributed.metrics import time

        changed = self._read()
        if self.log is None:
            self.text.text = "Nothing has run on this scheduler yet."
        elif changed or self.log.running:
            now = time() + self._ahead
            self.text.text = _status_html(self.log, now)
            self._show_stages(self.log, now - self.log.started)
            if changed:
                self._show_curves(self.log)
                self._show_speeds(self.log)

    def _read(self) -> bool:
        entries = self.scheduler.get_events(TOPIC)
        new = list(takewhile(lambda entry: entry is not self._last, reversed(entries)))[::-1]
        for heard, events in new:
            for kind, time, fields in events:
                idle = self.log is None or not self.log.running
                if kind == "run_started" or (idle and kind == "progress"):
                    self.log = RunLog(time)
                if self.log is not None:
                    self.log.update(Event(kind, fields, time))
                self._ahead = time - heard
        if new:
            self._last = new[-1]
        return bool(new)

    def _show_stages(self, log: RunLog, now: float) -> None:
        stages = [{**one, "stop": now if one["stop"] is None else one["stop"]} for one in log.stages]
        data: dict[str, Any] = {name: [one[name] for one in stages] for name in ("where", "stage", "start", "stop")}
        data["color"] = [STAGES[stage] for stage in data["stage"]]
        data["seconds"] = [one["stop"] - one["start"] for one in stages]
        rows = list(dict.fromkeys(data["where"]))[::-1]
        if self.stage_figure.y_range.factors != rows:
            self.stage_figure.y_range.factors = rows
            self.stage_figure.height = 120 + 22 * max(3, len(rows))
        self.stages.data = data

    def _show_curves(self, log: RunLog) -> None:
        curves = {where: curve for where, curve in log.curves.items() if curve[0]}
        self.inertia_figure.visible = bool(curves)
        n_steps: dict[int, int] = defaultdict(int)
        for level, step in curves:
            n_steps[level] = max(n_steps[level], step)
        self.curves.data = {
            "xs": [list(range(1, len(curve) + 1)) for curve in curves.values()],
            "ys": [[inertia / curve[0] for inertia in curve] for curve in curves.values()],
            "level": [f"level {level}" for level, _ in curves],
            "step": [step for _, step in curves],
            "color": [_LEVEL_COLORS[(level - 1) % len(_LEVEL_COLORS)] for level, _ in curves],
            "alpha": [1 - 0.6 * (n_steps[level] - step) / max(1, n_steps[level]) for level, step in curves],
        }

    def _show_speeds(self, log: RunLog) -> None:
        from distributed.diagnostics.task_stream import TaskStreamPlugin

        tasks = self.scheduler.plugins[TaskStreamPlugin.name].buffer
        recent = list(islice(reversed(tasks), _MOST_TASKS))[::-1]
        speeds = rows_per_second(recent, log.rows)
        slowest = sorted(speeds.items(), key=lambda one: one[1])[:_MOST_WORKERS]
        for address, worker in self.scheduler.workers.items():
            self._names[address] = f"worker {worker.name}" if isinstance(worker.name, int) else str(worker.name)
        shown = sorted((self._names.get(address, address), speed) for address, speed in slowest)
        names = [name for name, _ in shown]
        if self.speed_figure.y_range.factors != names[::-1]:
            self.speed_figure.y_range.factors = names[::-1]
            self.speed_figure.height = max(150, 70 + 25 * len(names))
        self.speed_figure.visible = bool(names)
        self.speeds.data = {"worker": names, "speed": [speed for _, speed in shown]}
