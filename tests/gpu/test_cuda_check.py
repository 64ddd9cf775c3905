"""The check of a form detects kernels broken on purpose, and accepts correct ones."""

from typing import Any

import numpy as np
import pytest

from hkm_dask.search.cuda import check as cuda_check
from hkm_dask.search.cuda import check_process as cuda_check_process
from hkm_dask.search.cuda.check import Sample, find_fault, made_sample
from hkm_dask.search.cuda.forms import forms_here
from hkm_dask.search.cuda.operand import FORMS, Form
from tests.emulated.broken_hopper import BROKEN
from tests.emulated.plugin import Emulator
from tests.gpu.broken import ON_MADE_ROWS, break_hopper, break_kernels
from tests.gpu.inputs import geometry_of, groups

HALF = np.dtype(np.float16)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator is slow."""
    monkeypatch.setattr(cuda_check, "_N_STEPS", 1)
    monkeypatch.setattr(cuda_check, "_N_COPIES", 700)


# That of Hopper follows below, among the ways to break it: it is compiled once.
@pytest.mark.parametrize("form", FORMS[1:])
def test_a_sound_form_has_no_fault(cuda: Any, form: Form) -> None:
    assert find_fault(form, made_sample(24, HALF), is_made=True) is None


@pytest.mark.slow
@pytest.mark.parametrize("d", [3, 70, 392])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("form", FORMS)
def test_a_sound_form_has_no_fault_at_any_width(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, form: Form, dtype: type, d: int
) -> None:
    monkeypatch.setattr(cuda_check, "_N_STEPS", 12)
    assert find_fault(form, made_sample(d, np.dtype(dtype)), is_made=True) is None


@pytest.mark.parametrize("form", ["hopper", "fused", "half"])
def test_a_sound_form_has_no_fault_on_few_rows_or_centroids(cuda: Any, form: Form) -> None:
    if form not in forms_here("float32"):
        pytest.skip("this device has no such form")
    rows = groups(150, 13, np.float16)
    for n, k in ((150, 1), (1, 1), (5, 2), (150, 3), (3, 7)):  # a seeding begins with one center
        assert find_fault(form, Sample(rows[:n], rows[:k].astype(np.float32), geometry_of(rows))) is None
    centroids = rows[:20].astype(np.float32)
    centroids[:15] = np.nan
    for unused in (slice(0, 15), slice(1, 20), slice(0, 19)):
        centroids[:] = rows[:20]
        centroids[unused] = np.nan
        assert find_fault(form, Sample(rows, centroids, geometry_of(rows))) is None


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_sound_form_has_no_fault_on_rows_of_a_block(cuda: Any, form: Form) -> None:
    rows = groups(70, 13, np.float16)
    rows[:30], rows[5] = rows[0], 3000 * rows[5]
    centroids = rows[::3].astype(np.float32)
    assert find_fault(form, Sample(rows, centroids, geometry_of(rows))) is None
    centroids[:] = np.nan
    assert find_fault(form, Sample(rows, centroids, geometry_of(rows))) is None


@pytest.mark.parametrize("name", ON_MADE_ROWS)
def test_a_kernel_broken_on_purpose_is_found(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    break_kernels(monkeypatch, name, half=True)
    form: Form = "half" if name == "a candidate is overlooked" else "fused"
    found = find_fault(form, made_sample(24, HALF), is_made=True)
    assert found is not None
    expected = {
        "an illegal address": "failed (nearest_two: access outside the memory",
        "an open row counts as proven": "gave wrong labels",
        "a candidate is overlooked": "gave wrong labels",
    }
    assert found.startswith(expected.get(name, "gave wrong scores"))


#: Of the ways to break the kernel for Hopper, those that are always tried.
TRIED = ("products of the tile before added", "stage filled before it is empty")


@pytest.mark.parametrize("how", [how if how in TRIED else pytest.param(how, marks=pytest.mark.slow) for how in BROKEN])
def test_a_kernel_for_hopper_broken_on_purpose_is_found(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with monkeypatch.context() as patch:
        break_hopper(patch, None)
        assert how != TRIED[0] or find_fault("hopper", made_sample(24, HALF), is_made=True) is None
    monkeypatch.setattr(cuda_check, "_N_STEPS", 12)
    break_hopper(monkeypatch, how)
    assert find_fault("hopper", made_sample(72, HALF)) is not None


def test_the_same_kernels_are_right_when_none_is_broken(
    cuda: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_kernels(monkeypatch, None, half=True)
    assert find_fault("fused", made_sample(24, HALF)) is None


def test_memory_that_runs_out_is_no_fault(cuda: Any, emulator: Emulator) -> None:
    sample = made_sample(24, HALF)
    emulator.limit_memory(cuda.get_default_memory_pool().used_bytes() + 100_000)
    with pytest.raises(MemoryError):
        find_fault("fused", sample)


def test_wrong_norms_are_found(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cuda_check.make_cuda_operand

    def with_small_errors(*arguments: Any) -> Any:
        operand = plain(*arguments)
        operand.errors[3:5] *= 0.5
        return operand

    monkeypatch.setattr(cuda_check, "make_cuda_operand", with_small_errors)
    assert find_fault("single", made_sample(24, HALF)) == "gave wrong norms for 2 of 300 rows"


def test_the_program_prints_its_verdicts_and_does_not_outlive_everybody(
    cuda: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(cuda_check_process.signal, "alarm", ends.append)
    checks = [str(cuda_check_process.Check(form, 16, "float16")) for form in ("half", "single")]
    cuda_check_process.main(["0", *checks])
    assert capsys.readouterr().out == "ready\nnull\nnull\n"
    assert ends == [300, 300, 300]
    monkeypatch.setattr(cuda_check_process, "find_fault", lambda *_, **__: "is wrong")
    cuda_check_process.main(["0", *checks])  # what a kernel at fault wrote where may spoil what follows
    assert capsys.readouterr().out == 'ready\n"is wrong"\n'
