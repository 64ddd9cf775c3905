"""Choice of the form of a search: correct on this device, and the fastest if a trial can decide."""

import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster

from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows
from hkm_dask.errors import ComputeError
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.kmeans.predict import nearest_labels
from hkm_dask.search.cuda import check_process as cuda_check_process
from hkm_dask.search.cuda import forms as cuda_forms
from hkm_dask.search.cuda import hopper as cuda_hopper
from hkm_dask.search.cuda import kernels as cuda_kernels
from hkm_dask.search.cuda.check_process import Check, CheckProcess, UntoldError
from hkm_dask.search.cuda.engine import CudaEngine
from hkm_dask.search.cuda.forms import forms_here, quickest, sound_forms
from hkm_dask.search.engine import RowTile
from hkm_dask.search.geometry import make_geometry
from tests.emulated import kernels
from tests.emulated.plugin import Emulator
from tests.gpu.broken import break_hopper, break_kernels
from tests.gpu.conftest import HAS_GPU
from tests.gpu.inputs import geometry_of, groups, twice

HALF, FORMS = np.dtype(np.float16), ("fused", "half")
ONE = Check("fused", 24, "float16")


@pytest.fixture(autouse=True)
def _on_any_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms are those of any device, but where Hopper's is the subject."""
    if "hopper" not in request.node.name:
        monkeypatch.setattr(cuda_hopper, "is_available", lambda: False)


def program(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Have the check in a process of its own, by a program."""
    monkeypatch.setattr(cuda_forms, "APART", True)
    monkeypatch.setattr(cuda_check_process, "_PROGRAM", words)


# -- which are right --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("checked", "little_work_on_the_device")
def test_a_form_at_fault_is_put_aside_and_the_next_gives_the_cpus_labels(
    cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_kernels(monkeypatch, "a second best is lost", half=True)
    rows, centroids = groups(300, 24, np.float16), groups(50, 24, seed=1)

    def compute() -> Any:
        with Runner(n_threads=1) as runner:
            return nearest_labels(ArrayRows(rows), centroids, runner=runner)

    with pytest.warns(RuntimeWarning) as told:
        on_cpu, on_device = twice(cuda, monkeypatch, compute)
    compute()  # is told once
    np.testing.assert_array_equal(on_device, on_cpu)
    (warning,) = told
    assert str(warning.message).startswith("the kernel nearest_two gave wrong scores for ")
    assert str(warning.message).endswith("rows; this process continues with cuBLAS in float16")
    geometry = geometry_of(rows)
    assert not CudaEngine().batches(geometry, HALF)


@pytest.mark.usefixtures("checked")
def test_hopper_at_fault_is_put_aside(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    break_hopper(monkeypatch, "another chunk")
    assert forms_here("float16") == ("hopper", *FORMS)
    with pytest.warns(
        RuntimeWarning, match=r"nearest_two_hopper gave wrong scores .* continues with the kernel nearest_two"
    ):
        assert next(sound_forms(forms_here("float16"), 24, HALF)) == "fused"


@pytest.mark.usefixtures("checked")
def test_hopper_is_put_aside_where_nvrtc_cannot_compile_it(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.cuda.nvrtc, "getVersion", lambda: (12, 8))
    cuda_kernels._compiled_for_hopper.cache_clear()
    cuda_kernels._function.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"_hopper failed \(NVRTC=12.8 should be 12.9 or newer; .* contin"):
        assert next(sound_forms(forms_here("float16"), 24, HALF)) == "fused"


@pytest.mark.usefixtures("checked")
def test_where_no_form_is_right_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda form, _, **__: f"is no good as {form}")
    with pytest.warns(RuntimeWarning) as told, pytest.raises(ComputeError) as refused:
        next(sound_forms(FORMS, 24, HALF))
    faults = "the kernel nearest_two is no good as fused", "cuBLAS in float16 is no good as half"
    assert [str(warning.message).partition(";")[0] for warning in told] == list(faults)
    assert str(refused.value).startswith(f"no search on this GPU is correct ({'; '.join(faults)}); compute on the CPU")


@pytest.mark.usefixtures("checked")
def test_a_form_is_checked_once_on_made_rows_and_once_on_rows_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[tuple[str, int]] = []
    for module in (cuda_forms, cuda_check_process):
        monkeypatch.setattr(module, "find_fault", lambda form, sample, **_: checked.append((form, len(sample.rows))))
    search, tile, centroids = search_of(groups(40, 8, np.float16))
    for _ in range(2):
        assert search.form(tile, centroids) == "fused"
    assert checked == [("fused", 300), ("fused", 40)]
    many = SharedArray(array=groups(300, 8))
    for _ in range(2):
        assert search.form(tile, many) == "fused"
    assert checked[2:] == [("fused", 40)]
    assert search.engine.batches(search.geometry, HALF)
    assert len(checked) == 3


@pytest.mark.usefixtures("checked", "little_work_on_the_device", "trials_of_few_rows")
def test_no_form_is_put_aside_in_a_fit_where_all_are_right(cuda: Any) -> None:
    table = ArrayRows(groups(200, 16, np.float16))
    with warnings.catch_warnings(), Runner(n_threads=1) as runner:
        warnings.simplefilter("error")
        geometry = make_geometry(table, runner, n_clusters=12)
        fit(table, Settings(12, max_iter=2), geometry=geometry, runner=runner)
    assert set(cuda_forms._faults.values()) == {None}
    assert {key[-1] for key in cuda_forms._faults if isinstance(key, tuple)} == {0, "few"}
    assert {key[0].form for key in cuda_forms._faults if isinstance(key, tuple)} == {"fused", "half", "single"}


@pytest.mark.usefixtures("checked")
def test_a_fault_that_takes_the_context_with_it_is_noted_for_the_next_process(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    break_kernels(monkeypatch, "an illegal address on 120 rows", half=True)
    emulator.lose_context_by_faults()
    search, tile, centroids = search_of(groups(120, 24, np.float16))
    said = r"nearest_two failed .* costs this process its GPU; restart it: the next one skips that kernel"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no other form is blamed
        with pytest.raises(ComputeError, match=said):
            search.form(tile, centroids)
    emulator.renew_context()
    monkeypatch.setattr(cuda_forms, "_faults", {})
    search, tile, centroids = search_of(groups(120, 24, np.float16))
    with pytest.warns(RuntimeWarning) as told:
        assert search.form(tile, centroids) == "half"
    (warning,) = told
    (note,) = (tmp_path / "cupy").glob("*.fault")
    assert str(warning.message).startswith("the kernel nearest_two failed (nearest_two: access outside the memory")
    assert str(warning.message).endswith(
        f" in a process before (see {note}); this process continues with cuBLAS in float16"
    )


@pytest.mark.usefixtures("checked")
def test_a_kernel_that_never_ends_here_is_noted_and_told_while_it_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = threading.Event()
    monkeypatch.setattr(cuda_check_process, "LIMIT_SECONDS", 0.1)
    monkeypatch.setattr(cuda_forms.warnings, "warn", lambda message, *_, **__: (said.append(message), told.set()))
    said: list[str] = []

    def never_ends() -> str | None:
        assert told.wait(60)
        return None

    cuda_forms.find_fault_here("the kernel", ONE, 0, never_ends)
    fault = "did not end within 0 s"
    (message,) = said
    assert message.startswith(f"the kernel {fault}, which costs this process its GPU; restart it: the next one skips")
    again = cuda_forms.find_fault_here("the kernel", ONE, 0, never_ends)
    assert again is not None
    assert again.startswith(f"{fault} in a process before (see {tmp_path}")


@pytest.mark.usefixtures("checked")
def test_a_worker_does_not_end_over_and_over_where_nothing_can_be_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file"))
    for name in ("has_nanny", "_is_lost"):
        monkeypatch.setattr(cuda_forms, name, lambda: True)
    with pytest.raises(ComputeError, match=r"the kernel failed, .* restart it, with a CUPY_CACHE_DIR"):
        cuda_forms.find_fault_here("the kernel", ONE, 0, lambda: "failed")


@pytest.mark.parametrize(
    "name", ["an illegal address on 120 rows", pytest.param("it never ends on 120 rows", marks=pytest.mark.slow)]
)
@pytest.mark.skipif(HAS_GPU or kernels.missing() is not None, reason=str(kernels.missing() or "time there is dear"))
def test_a_worker_whose_device_is_lost_is_started_again_and_goes_on_with_the_next_form(
    name: str, tmp_path: Path, built_kernels: Path
) -> None:
    rows, centroids = groups(120, 24, np.float16), groups(50, 24, seed=1)
    with Runner(n_threads=1) as runner:
        expected = nearest_labels(ArrayRows(rows), centroids, runner=runner)
    environment = {
        "HKM_DEVICE": "cuda", "HKM_EMULATED_KERNELS": str(built_kernels), "HKM_MUTANT": name,
        "CUPY_CACHE_DIR": str(tmp_path / "cupy"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    preload = str(Path(__file__).with_name("on_broken_worker.py"))
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, preload=[preload], env=environment, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        before = client.run(os.getpid)
        with ClusterRunner(client) as runner, pytest.warns(RuntimeWarning, match="in a process before") as told:
            actual = nearest_labels(ArrayRows(rows), centroids, runner=runner)
        after = client.run(os.getpid)
    assert set(before.values()) != set(after.values())
    assert [str(one.message).partition(" failed")[0].partition(" did")[0] for one in told] == ["the kernel nearest_two"]
    np.testing.assert_array_equal(actual, expected)


PROGRAMS: dict[str, tuple[str, str | None]] = {
    "says none": ("print('noise'); print('ready'); print('null')", None),
    "says a fault": ("print('ready'); print('\"gave wrong scores\"')", "gave wrong scores"),
    "dies": ("print('ready', flush=True); import os; os.kill(os.getpid(), 11)", "ended its process (SIGSEGV)"),
    "ends": ("print('ready'); raise SystemExit(9)", "ended its process (exit code 9)"),
    "hangs": ("print('ready', flush=True); import time; time.sleep(600)", "did not end within 0 s"),
    "is slow to begin": ("import time; time.sleep(600)", "here"),
    "finds no device": ("raise ImportError", "here"),
    "has no memory": ("print('ready'); raise SystemExit(3)", "here"),
}


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize("case", PROGRAMS)
def test_what_a_process_of_its_own_tells(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    code, expected = PROGRAMS[case]
    program(monkeypatch, "-c", code)
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda *_, **__: "here")
    monkeypatch.setattr(cuda_check_process, "LIMIT_SECONDS", 0.4 if case == "is slow to begin" else 60.0)
    if case == "hangs":  # once it has begun, which takes a busy machine its time
        is_ready = cuda_check_process._Child.is_ready

        def is_ready_for_little_time(child: Any) -> bool:
            begun = is_ready(child)
            monkeypatch.setattr(cuda_check_process, "LIMIT_SECONDS", 0.1)
            return begun

        monkeypatch.setattr(cuda_check_process._Child, "is_ready", is_ready_for_little_time)
    assert cuda_forms._fault_apart(ONE, 0) == expected


#: Checks four forms, and notes that it was begun: the second gives wrong scores, the third kills its process.
ONE_AFTER_THE_OTHER = """
import os, pathlib, sys
checks = sys.argv[2:]
with pathlib.Path({log!r}).open("a") as log:
    print(*checks, file=log)
print("ready", flush=True)
for check in checks:
    if check.startswith("half"):
        os.kill(os.getpid(), 6)
    fault = "null" if check[0] in "hs" else '"gave wrong scores"'
    print(fault, flush=True)
    if fault != "null":
        break
"""


@pytest.mark.usefixtures("checked")
def test_one_process_checks_all_forms_and_another_goes_on_after_a_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(monkeypatch, "-c", ONE_AFTER_THE_OTHER.format(log=str(tmp_path / "log")))
    checks = [Check(form, 8, "float16") for form in ("hopper", "fused", "half", "single")]
    process = CheckProcess(0, checks)
    assert process.fault(checks[3]) is None
    assert process.fault(checks[0]) is None
    assert process.fault(checks[1]) == "gave wrong scores"
    assert process.fault(checks[2]) == "ended its process (SIGABRT)"
    with pytest.raises(UntoldError):
        process.fault(ONE)
    begun = (tmp_path / "log").read_text().splitlines()
    assert begun == [" ".join(map(str, checks)), " ".join(map(str, checks[2:])), str(checks[3])]


@pytest.mark.usefixtures("checked")
def test_checks_of_both_types_begin_in_one_process_before_rows_are_read(
    monkeypatch: pytest.MonkeyPatch, timed: list[tuple[str, int]], tmp_path: Path
) -> None:
    program(monkeypatch, "-c", ONE_AFTER_THE_OTHER.replace('"half"', '"none"').format(log=str(tmp_path / "log")))
    monkeypatch.setattr(cuda_forms, "find_fault", lambda *_, **__: None)
    search, tile, centroids = search_of(groups(300, 8, np.float16))
    assert len(cuda_forms._begun) == 6
    with pytest.warns(RuntimeWarning, match="nearest_two gave wrong scores"):
        assert search.form(tile, centroids) == "single"
    assert {form for form, _ in timed} == {"half", "single"}
    search_of(groups(10, 8))  # float32 has begun already
    assert {check.dtype for check, _ in cuda_forms._begun} == {"float32"}
    (first, second) = (tmp_path / "log").read_text().splitlines()
    assert [len(words.split()) for words in (first, second)] == [6, 5]
    for process in cuda_forms._begun.values():
        process.end()


@pytest.mark.usefixtures("checked")
def test_what_was_right_is_not_checked_again_unless_something_changed(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verdicts, asked = iter(["gave wrong labels", None, None, None, None]), []
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda form, _, **__: asked.append(form) or next(verdicts))

    def fault(check: Check = ONE) -> str | None:
        """What a new process finds."""
        monkeypatch.setattr(cuda_forms, "_faults", {})
        return cuda_forms._fault(check.form, check.n_features, np.dtype(check.dtype), None, ["half"])

    with pytest.warns(RuntimeWarning, match="gave wrong labels"):
        assert fault() is not None
    assert not (tmp_path / "cupy").exists()  # it is told to the next one too
    assert [fault(), fault(), fault(Check("half", 24, "float16"))] == [None, None, None]
    assert asked == ["fused", "fused", "half"]
    cuda_forms.begin_checks("float16", 24, np.dtype(np.float16))
    assert not cuda_forms._begun
    monkeypatch.setattr(cuda.cuda.runtime, "driverGetVersion", lambda: 13010)
    assert fault() is None
    monkeypatch.setattr("hkm_dask.search.cuda.verdicts._program", lambda: "another kernel")
    assert fault() is None
    assert asked == ["fused", "fused", "half", "fused", "fused"]


@pytest.mark.usefixtures("checked")
def test_where_nothing_can_be_written_all_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file"))
    asked: list[str] = []
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda form, _, **__: asked.append(form))
    assert [cuda_forms._fault_apart(ONE, 0) for _ in range(2)] == [None, None]
    assert asked == ["fused", "fused"]


@pytest.mark.usefixtures("checked")
def test_without_another_process_the_check_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch)
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda *_, **__: "here")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert cuda_forms._fault_apart(ONE, 0) == "here"


@pytest.mark.usefixtures("checked")
@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("", 60.0, None),
        # The limit counts the imports as well, and the kernel takes a processor until it is over.
        pytest.param("it never ends", 15.0, "did not end within 15 s", marks=pytest.mark.slow),
    ],
)
def test_a_kernel_is_checked_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, limit: float, expected: str | None
) -> None:
    break_kernels(monkeypatch, None, half=True)  # compiled for the child
    (tmp_path / "sitecustomize.py").write_text("from tests.gpu.broken import install_here; install_here()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cuda_forms, "APART", True)
    monkeypatch.setattr(cuda_check_process, "LIMIT_SECONDS", limit)
    monkeypatch.setenv("HKM_EMULATED_KERNELS", str(kernels._build_folder))
    monkeypatch.setenv("HKM_MUTANT", name)
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda *_, **__: "here")
    assert cuda_forms._fault_apart(ONE, 0) == expected


# -- which is fastest -------------------------------------------------------------------------------------------------


def search_of(rows: np.ndarray, phase: str = "lloyd") -> tuple[Any, RowTile, SharedArray]:
    """A search of all rows, with nothing known of them."""
    engine = CudaEngine()
    assignment = engine.unknown(len(rows))
    part = Part(ArrayRows(rows), (0, len(rows)), budget=1 << 20)
    search = engine.search(part, geometry_of(rows), phase, assignment)
    tile = RowTile(
        0, len(rows), engine.put(rows), assignment.labels, assignment.distances, engine.put(np.empty(0, np.int64))
    )
    return search, tile, SharedArray(array=rows[:20].astype(np.float32))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The forms that were timed, and on how many rows."""
    calls: list[tuple[str, int]] = []
    took = {"fused": 2.0, "half": 5.0, "single": 1.5}

    def search_of_a_form(form: str, *_: Any) -> Callable[[int], float]:
        return lambda n: calls.append((form, n)) or took[form]

    monkeypatch.setattr(cuda_forms, "_timed_search", search_of_a_form)
    monkeypatch.setattr(cuda_forms, "LEAST_TRIAL_ROWS", 50)
    monkeypatch.setattr(cuda_forms, "MOST_TRIAL_ROWS", 100)
    monkeypatch.setattr(cuda_forms, "_FIRST_ROWS", 20)
    return calls


def test_rows_that_do_not_fill_the_device_take_the_first_form(cuda: Any, timed: list[tuple[str, int]]) -> None:
    search, tile, centroids = search_of(groups(49, 8))
    assert search.form(tile, centroids) == "fused"
    assert timed == []


def test_a_trial_is_made_for_each_size_of_rows_and_centroids(cuda: Any, timed: list[tuple[str, int]]) -> None:
    search, _, _ = search_of(groups(300, 8))
    sizes = []
    for n in (60, 63, 64, 300, 200):
        _, tile, centroids = search_of(groups(n, 8))
        assert search.form(tile, centroids) == "single"
        sizes.append(len(timed))
    # Two of a few rows, and three of all but by the one that has no hope.
    assert sizes == [12, 12, 24, 24, 24]
    assert {n for _, n in timed} == {20, 60, 64}
    search.form(tile, SharedArray(array=groups(100, 8)))
    assert len(timed) == 36
    assert [n for form, n in timed if form == "half"] == [20] * 6


def test_forms_that_differ_by_little_on_few_rows_are_compared_on_all(
    cuda: Any, timed: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_forms, "_CLOSE_MS", 5.0)  # of half's that are 3.5 longer than those of the quickest
    search, tile, centroids = search_of(groups(60, 8))
    assert search.form(tile, centroids) == "single"
    assert ("half", 60) in timed


def test_a_search_is_timed_by_the_device_and_changes_nothing(cuda: Any) -> None:
    search, tile, centroids = search_of(groups(80, 8))
    assert cuda_forms._timed_search("half", search, tile, centroids.get())(50) > 0
    assert (tile.labels.get() == -1).all()
    assert np.isinf(tile.distances.get()).all()


def test_the_median_decides_and_the_order_where_times_are_alike() -> None:
    assert quickest({"fused": [5.0, 1.0, 1.04], "half": [1.0, 1.0, 0.1]}) == "fused"
    assert quickest({"fused": [1.0, 1.2, 1.2], "half": [1.0, 1.0, 7.0]}) == "half"
    assert quickest({"half": [1.0], "fused": [1.0]}) == "half"
