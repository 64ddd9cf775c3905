"""`hkm browse` prints an address, serves until Ctrl-C, and reports marks that were not saved."""

import contextlib
import io
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from hkm_dask import cli
from tests.cli.results import Result


def test_it_serves_until_ctrl_c(hkm: Callable[..., Result], pool: Path, small: list[str], tmp_path: Path) -> None:
    assert hkm("cluster", pool, tmp_path / "tree.zarr", *small).code == 0
    out, err, answers = io.StringIO(), io.StringIO(), list[object]()

    def visit() -> None:
        try:
            while "\n" not in out.getvalue():
                time.sleep(0.01)
            url = out.getvalue().strip()
            with urllib.request.urlopen(f"{url}api/tree") as answer:
                answers.append(json.load(answer)["n_clusters"])
            body, origin = b'{"cluster": "2:1", "weight": 0}', url.split("/")[2]
            mark = urllib.request.Request(f"{url}api/mark", body, {"Origin": f"http://{origin}"})
            with urllib.request.urlopen(mark) as answer:
                answers.append(json.load(answer)["unsaved"])
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=visit)
    thread.start()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit_:
        cli.main(["browse", str(tmp_path / "tree.zarr"), "--out", str(tmp_path / "w.csv")], prog_name="hkm")
    thread.join()
    assert (exit_.value.code or 0, answers) == (0, [[20, 5], True])
    assert "Press Ctrl-C to end" in err.getvalue()
    assert f"1 mark was not saved to {tmp_path / 'w.csv'}" in err.getvalue()
    assert "Interrupted" not in err.getvalue()


def test_a_mistake_is_one_line(hkm: Callable[..., Result], tmp_path: Path) -> None:
    code, out, err = hkm("browse", tmp_path / "none.zarr")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "none.zarr is missing; make it with `hkm cluster`" in err
