"""Kernels are checked while a command starts workers, which wait for the result instead of checking again."""

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.search.cuda import ahead as cuda_ahead
from hkm_dask.search.cuda import check_process as cuda_check_process
from hkm_dask.search.cuda import forms as cuda_forms
from hkm_dask.search.cuda import verdicts as cuda_verdicts
from hkm_dask.search.cuda.ahead import checked_ahead, main
from hkm_dask.search.cuda.forms import checks_of
from tests.emulated.plugin import Emulator

HALF = np.dtype(np.float16)


@pytest.fixture
def asked(cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The forms that were checked, on a device with much memory of which nothing is known; every form is right."""
    forms: list[str] = []
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cupy"))
    monkeypatch.setattr(cuda_forms, "_faults", {})
    monkeypatch.setattr(cuda_forms, "_begun", {})
    monkeypatch.setattr(cuda_forms, "APART", True)
    monkeypatch.setattr(cuda_ahead, "_LEAST_MEMORY", 1 << 20)
    monkeypatch.setattr(cuda_ahead.signal, "alarm", lambda _: None)
    monkeypatch.setattr(cuda_ahead, "compile_for", lambda *_: None)
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda form, _, **__: forms.append(form))
    monkeypatch.setattr(cuda_check_process, "find_made_walk_fault", lambda _: forms.append("walks"))
    return forms


def test_what_was_checked_ahead_is_not_checked_by_a_worker(asked: list[str]) -> None:
    main("24", "float16", "float32")
    checks = checks_of("float32", 24, HALF)
    assert asked == [check.form for check in checks]
    assert {check.dtype for check in checks} == {"float16", "float32"}
    cuda_forms.begin_checks("float32", 24, HALF)
    assert not cuda_forms._begun
    assert [cuda_forms._fault_apart(check, 0) for check in checks] == [None] * len(checks)
    main("24", "float16", "float32")
    assert len(asked) == len(checks)


def test_after_a_fault_the_rest_is_left_to_the_workers(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    faults = iter([None, "gave wrong labels"])
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda *_, **__: next(faults))
    main("24", "float16", "float32")
    checks = checks_of("float32", 24, HALF)
    assert [cuda_verdicts.is_noted(check, 0) for check in checks] == [True] + [False] * (len(checks) - 1)
    assert not cuda_verdicts.is_under_way(0)


@pytest.mark.parametrize("why", ["one process alone may use it", "it is small"])
def test_a_device_that_a_worker_may_need_for_itself_is_left_alone(
    cuda: Any, asked: list[str], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    if why == "it is small":
        monkeypatch.setattr(cuda_ahead, "_LEAST_MEMORY", 16 << 30)
    else:
        monkeypatch.setitem(cuda.cuda.Device.attributes, "ComputeMode", 3)
    main("24", "float16", "float32")
    assert asked == []


def test_a_worker_waits_for_what_another_process_is_finding_out(asked: list[str]) -> None:
    first, second, *_ = checks_of("float32", 24, HALF)
    with cuda_verdicts.under_way(0) as is_first, cuda_verdicts.under_way(0) as is_second:
        assert (is_first, is_second) == (True, False)
        main("24", "float16", "float32")
        cuda_forms.begin_checks("float32", 24, HALF)
        assert asked == []
        assert not cuda_forms._begun
        later = threading.Timer(0.1, cuda_verdicts.note, (first, 0))
        later.start()
        assert cuda_forms._fault_apart(first, 0) is None
        later.join()
        cuda_verdicts.wait_for(second, 0, seconds=0.05)
    assert asked == []
    assert not cuda_verdicts.is_under_way(0)
    cuda_verdicts.wait_for(second, 0, seconds=600.0)


def test_where_no_file_can_be_locked_nothing_is_checked_ahead(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file"))
    main("24", "float16", "float32")
    assert asked == []
    assert not cuda_verdicts.is_under_way(0)


def test_the_process_begins_at_once_and_ends_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = (
        f"import sys, time, pathlib; pathlib.Path({str(told)!r}).write_text(' '.join(sys.argv[1:])); time.sleep(600)"
    )
    monkeypatch.setattr(cuda_ahead, "_PROGRAM", ("-c", program))
    begun: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: begun.append(popen(*a, **k)) or begun[-1])
    with checked_ahead(24, HALF, "float32"):
        while not told.exists() or not told.read_text():
            assert begun[0].poll() is None
            time.sleep(0.01)
        assert told.read_text() == "24 float16 float32"
    assert begun[0].returncode == -9
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with checked_ahead(24, HALF, "float32"):
        pass
