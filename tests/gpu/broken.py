"""Kernels broken on purpose by substitutions in their source; the active one is selected at run time."""

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.search.cuda import check as cuda_check
from hkm_dask.search.cuda import hopper as cuda_hopper
from hkm_dask.search.cuda import kernels as cuda_kernels
from pipelines.mutants.cases import Mutant
from tests.emulated import kernels
from tests.emulated.broken_hopper import switched_source, unit_of
from tests.emulated.plugin import install


def _mutant(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, "search.cu", old, new, ())


#: Each takes the place of an expression, or of a statement where it ends with a semicolon.
MUTANTS = (
    _mutant("a tile is loaded again", "tile * TILE_COLUMNS + copied_line + 32 * i", "copied_line + 32 * i"),
    _mutant("a barrier is lost", "__syncthreads();\n        fetch(step + STAGES - 1);", "fetch(step + STAGES - 1);"),
    _mutant("a score is NaN", "__ldg(bias + j)", "j == 6 ? 0.0f / 0.0f : __ldg(bias + j)"),
    _mutant(
        "a line is not written",
        "thread < TILE_ROWS && first + thread < n_lines",
        "thread < TILE_ROWS && first + thread < n_lines && thread != 5",
    ),
    _mutant(
        "a second best is lost",
        "kept.second = fminf(kept.second, fmaxf(kept.best, score));",
        "if (score >= kept.best) kept.second = fminf(kept.second, score);",
    ),
    _mutant(
        "a second best is lost between lanes",
        "fminf(fmaxf(kept.best, best), fminf(kept.second, second))",
        "fminf(kept.second, second)",
    ),
    _mutant("an index is off by one", "(int)first_centroid + all.index", "(int)first_centroid + all.index + 1"),
    _mutant(
        "a ragged tile is too wide",
        "j + 1 < n_centroids ? __ldg(bias + j + 1) : INFINITE",
        "j + 1 < n_centroids ? __ldg(bias + j + 1) : -1e30f",
    ),
    _mutant("groups are forgotten", "bias += first_centroid;", ";"),
    _mutant("the chosen rows are forgotten", "(has_which ? which[line] : line)", "line"),
    _mutant(
        "a line beside is written",
        "second[first + thread] = all.second;",
        "second[first + thread + (first + thread + 1 == n_lines)] = all.second;",
    ),
    _mutant(
        "an open row counts as proven",
        "!(second_score[line] > highest_score(distance, norm, size, error, bound))",
        "false",
    ),
    _mutant(
        "a candidate is overlooked",
        "alpha * line[j] + bias[first + j] <= limit",
        "j % 9 && alpha * line[j] + bias[first + j] <= limit",
    ),
    _mutant("an illegal address", "best[first + thread] = all.best;", "best[first + thread + (1LL << 40)] = all.best;"),
    _mutant("it never ends", "best[first + thread] = all.best;", "for (volatile unsigned i = 0;; ++i) best[0] = i;"),
    _mutant(
        "few rows are not combined",
        "take_two(all, shared_best[at], shared_second[at], shared_index[at]);",
        "if (n_lines >= TILE_ROWS) take_two(all, shared_best[at], shared_second[at], shared_index[at]);",
    ),
    _mutant(
        "the last of whole tiles is left out",
        "n_steps_per_tile * n_tiles",
        "n_steps_per_tile * (n_tiles - (n_tiles > 1 && n_centroids % TILE_COLUMNS == 0))",
    ),
    _mutant(
        "blocks beyond the first few are wrong",
        "best[first + thread] = all.best;",
        "if (blockIdx.x > 3) all.index = 0;\nbest[first + thread] = all.best;",
    ),
    # No check on made rows has so many.
    _mutant(
        "an illegal address on 120 rows",
        "shared_index[at] = kept[r].index;",
        "shared_index[at] = kept[r].index; if (n_lines == 120) best[1LL << 40] = 0;",
    ),
    _mutant(
        "it never ends on 120 rows",
        "shared_second[at] = kept[r].second;",
        "shared_second[at] = kept[r].second; if (n_lines == 120) for (volatile unsigned i = 0;; ++i) best[0] = i;",
    ),
)
#: Those of walks over groups of points; without the barrier where nothing takes the place of a text.
WALK_MUTANTS = tuple(
    Mutant(name, "walks.cu", old, new, ())
    for name, old, new in (
        (
            "a distance is rounded the other way round",
            "__fadd_rn(norms[start + i], rest)",
            "__fadd_rn(norms[start + j], __fmaf_rn(__int2float_rn(sums[r][c]), -2.0f, norms[start + i]))",
        ),
        (
            "the last features are left out",
            "second[part + f][line] = column[low + f];",
            "second[part + f][line] = low ? 0 : column[low + f];",
        ),
        ("points that are one are two", "squared > 512.0f", "squared > 0.0f"),
        ("the table is another group's", "tables[blockIdx.x]", "tables[blockIdx.x / 2]"),
        ("the last points are not added up", "values[i] = total;", ";"),
        ("points are added twice", "at + WALK_AHEAD < whole ? at + WALK_AHEAD : at", "at"),
        ("a row is read twice", "at + 8 * WALK_AHEAD < unrolled ? at + 8 * WALK_AHEAD : at", "at"),
        ("the last points are added to other sums", "unrolled + lane", "unrolled + (lane ^ 1)"),
        (
            "of choices that are as good the last is taken",
            "potentials[trial] < potentials[best]",
            "potentials[trial] <= potentials[best]",
        ),
        ("sums stay as they were", "atomicMin(&from, nearer);", ";"),
        (
            "a barrier of the walk is lost",
            "__syncthreads();\n        for (int i = from + thread; i < n; i += WALK_THREADS) "
            "reach[i] = __dmul_rn(weight[i], widened(closest[i]));",
            "for (int i = from + thread; i < n; i += WALK_THREADS) "
            "reach[i] = __dmul_rn(weight[i], widened(closest[i]));",
        ),
        ("tiles of pairs are copied over too soon", "__syncthreads();\n    }\n    const float square", ""),
        (
            "tiles of pairs are read too soon",
            "__syncthreads();\n#pragma unroll\n        for (int f = 0; f < PAIR_DEPTH; ++f) {\n            int a[8]",
            "",
        ),
        ("sums are read too soon", "__syncthreads();\n        const double total = reach[n - 1];", ""),
        (
            "sums begin too soon",
            "__syncthreads();\n        if (thread == 0) {\n            add_up(reach, from, n);",
            "",
        ),
        ("trials are read too soon", "__syncthreads();\n        if ((thread & ~31) / 8 < trials) {", ""),
        ("choices are compared too soon", "__syncthreads();\n        int best = 0;", ""),
        (
            "tiles beyond the diagonal are left out",
            "i0 >= n || j0 >= n",
            "i0 >= n || j0 >= n || blockIdx.x > blockIdx.y",
        ),
        ("the last point of a tile is the one before", "min(j0 + line, n - 1)", "min(j0 + line, n - 2)"),
        ("the step is another group's", "squares[blockIdx.z]", "squares[0]"),
        ("a distance is NaN", "__fmul_rn(squared, square)", "j == 5 ? 0.0f / 0.0f : __fmul_rn(squared, square)"),
        ("weights are another group's", "weights[start + i]", "weights[i]"),
        (
            "numbers are another group's",
            "draws[(first_step + step) * n_trials + thread]",
            "draws[step * n_trials + thread]",
        ),
        ("the first choice is made among several", "step ? n_trials : 1", "n_trials"),
        (
            "the last choice is left out",
            "(int)(steps[blockIdx.x + 1] - first_step)",
            "(int)(steps[blockIdx.x + 1] - first_step) - 1",
        ),
        ("sums go on from a wrong one", "values[from - 1]", "values[from - 1] + 1.0"),
        ("what another step left is compared", "potentials[trial] = potential;", "potentials[trial] += potential;"),
        ("a choice too many is told", "n_chosen[blockIdx.x] = step;", "n_chosen[blockIdx.x] = step + 1;"),
        (
            "a line beside the choices is written",
            "left[first_step + step] = potentials[best];",
            "left[first_step + step] = left[first_step + step + 1] = potentials[best];",
        ),
        (
            "a walk at an illegal address",
            "chosen[first_step + step] = point;",
            "chosen[first_step + step + (1LL << 40)] = point;",
        ),
    )
)
ON_MADE_ROWS = [mutant.name for mutant in MUTANTS if "120" not in mutant.name and mutant.name != "it never ends"]


def _with_switches(source: str) -> str:
    """The source in which `hkm_mutant` says what is broken: n for the n-th mutant, 0 for nothing."""
    for n, mutant in enumerate((*MUTANTS, *WALK_MUTANTS), 1):
        if not mutant.new:
            both = mutant.old.replace("__syncthreads();", f"if (hkm_mutant != {n}) __syncthreads();")
        elif mutant.old.endswith(";"):
            both = f"if (hkm_mutant == {n}) {{ {mutant.new} }} else {{ {mutant.old} }}"
        else:
            both = f"(hkm_mutant == {n} ? ({mutant.new}) : ({mutant.old}))"
        source = Mutant(mutant.name, mutant.file, mutant.old, both, ()).apply(source)
    return f'extern "C" {{ int hkm_mutant; }}\n{source}'


def break_kernels(monkeypatch: pytest.MonkeyPatch, name: str | None, *, half: bool) -> None:
    """Have one of the mutants run, or none; the kernels are compiled once for all of them."""
    sound, switched = cuda_kernels.source, _with_switches(cuda_kernels.source())
    cuda_kernels._compiled(not half)  # that of the other type of rows stays sound, and is compiled elsewhere
    monkeypatch.setattr(cuda_kernels, "source", lambda *files: sound(*files) if files else switched)
    n = 0 if name is None else 1 + [mutant.name for mutant in (*MUTANTS, *WALK_MUTANTS)].index(name)
    module = cuda_kernels._compiled(half)
    module.compile()
    ctypes.c_int.in_dll(module._library, "hkm_mutant").value = n


def break_hopper(monkeypatch: pytest.MonkeyPatch, how: str | None) -> None:
    """Have the kernel for Hopper run broken, in one of the ways of `tests.emulated.broken_hopper`, or in none."""
    sound, switched, search = cuda_kernels.source, switched_source(), cuda_hopper.nearest_two
    monkeypatch.setattr(cuda_kernels, "source", lambda *files: switched if files else sound())

    def search_broken(*arguments: Any) -> None:
        unit = arguments[4] if how is None else np.int32(unit_of(how, int(arguments[4])))
        search(*arguments[:4], unit, *arguments[5:])

    monkeypatch.setattr(cuda_hopper, "nearest_two", search_broken)


def install_here() -> None:
    """Put the emulator in place in this process, with the mutant of the environment, if there is one."""
    kernels.build_in(Path(os.environ["HKM_EMULATED_KERNELS"]))
    patch = pytest.MonkeyPatch()
    install(patch)
    patch.setattr(cuda_check, "_N_STEPS", 1)
    patch.setattr(cuda_check, "_N_COPIES", 700)
    break_kernels(patch, os.environ["HKM_MUTANT"] or None, half=True)
