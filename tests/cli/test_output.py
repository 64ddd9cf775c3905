"""With ``--json``, all computing commands report progress, results and errors in the same format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hkm_dask import cli
from hkm_dask.errors import InputError
from tests.cli.results import Result, embeddings

#: Those that answer at once, or stay until Ctrl-C.
WITHOUT_JSON = {"demo", "browse"}


def told(err: str) -> list[dict[str, Any]]:
    """The lines of stderr, each an event."""
    events = [json.loads(line) for line in err.splitlines()]
    assert all({"event", "time"} <= set(event) for event in events)
    return events


def test_every_command_that_computes_answers_machines(hkm: Callable[..., Result], tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", embeddings())
    np.save(tmp_path / "new.npy", embeddings(20, seed=1))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 80 * i, np.uint8)).save(tmp_path / f"photos/{i}.png")
    pool, tree, draw = (tmp_path / name for name in ("pool.zarr", "tree.zarr", "draw.npy"))
    runs: dict[str, tuple[object, ...]] = {
        "ingest": (tmp_path / "rows.npy", pool),
        "embed": ("image", tmp_path / "photos", tmp_path / "photos.zarr", "--model", "cells"),
        "dedup": (pool, "--threshold", 0.9999, "--out", tmp_path / "kept.npy"),
        "plan": (pool, "--seconds", 0),
        "cluster": (pool, tree),  # as advised
        "sample": (tree, "--size", 30, "--out", draw),
        "compare": (pool, draw, "--tree", tree),
        "export": (tree, tmp_path / "rows.parquet"),
        "report": (tree, "--subset", draw, "--out", tmp_path / "report.html"),
        "assign": (tree, tmp_path / "new.npy", tmp_path / "assigned.zarr"),
        "update": (tree, pool, tmp_path / "new.npy"),
        "verify": (tree,),
        "info": (tree,),
    }
    assert set(runs) == set(cli.main.commands) - WITHOUT_JSON
    answers, kinds = {}, {}
    for name, words in runs.items():
        code, out, err = hkm(name, *words, "--json")
        assert code == 0, err
        answers[name], kinds[name] = json.loads(out), {event["event"] for event in told(err)}
    silent = {name for name, kind in kinds.items() if not kind & {"progress", "iteration"}}
    assert silent == {
        "info",
        "plan",
        "verify",
        "report",
    }  # or so little that it takes no time
    assert "note" in kinds["cluster"]  # the advice that was taken
    assert answers["ingest"]["n_samples"] == 200
    assert answers["sample"] == {"out": str(draw), "n_rows": 30}
    assert answers["export"]["columns"][0] == "row"
    assert answers["update"]["n_joined"] == 20
    assert answers["report"]["n_bytes"] == (tmp_path / "report.html").stat().st_size


def test_a_failure_is_an_event_as_well(hkm: Callable[..., Result], tmp_path: Path) -> None:
    code, out, err = hkm("verify", tmp_path / "nothing.zarr", "--json")
    (event,) = told(err)
    assert (code, out, event["event"]) == (1, "", "error")
    assert "nothing.zarr" in event["message"]
    assert hkm("verify", tmp_path / "nothing.zarr").err == f"Error: {event['message']}\n"


def test_every_problem_of_an_input_is_an_event(hkm: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: object, **options: object) -> None:
        raise InputError("one\ntwo")

    monkeypatch.setattr("hkm_dask.hierarchy.verify.verify.verify", fail)
    _, _, err = hkm("verify", "x", "--json")
    assert [event["message"] for event in told(err)] == ["one", "two"]
