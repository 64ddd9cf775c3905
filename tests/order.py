"""Runs the slowest test files first, so that processes do not wait for a slow file at the end.

`--dist loadfile` starts with the files with the most tests, and so would end with a few tests that start processes.
"""

from collections import Counter

import pytest

#: Files that take ten seconds or more, the slowest first.
LONGEST = (
    "compute/cluster/test_started_by_hand",
    "compute/cluster/test_local",
    "test_faults",
    "test_memory",
    "gpu/test_cluster",
    "gpu/test_cuda_check",
    "gpu/test_cuda",
    "test_object_stores",
    "test_end_to_end",
    "cli/test_interrupts",
    "gpu/test_cuda_forms",
    "hierarchy/test_step",
    "gpu/test_first_minutes",
    "test_how_to",
    "compute/cluster/test_device",
    "planning/test_plan",
    "pipelines/test_simulation",
    "test_crashes",
    "ingestion/test_update",
    "gpu/test_method",
    "fuzz/test_bombs",
    "hierarchy/test_split",
    "demo/test_demo",
    "compute/test_jit",
    "search/test_int16_gemm",
    "compute/cluster/test_cluster_runner",
    "hierarchy/test_build_by_ranges",
    "test_golden",
    "test_walkthrough",
)
_RANKS = {f"tests/{name}.py": rank for rank, name in enumerate(LONGEST)}


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the time of their file; the tests of a file stay together."""
    n_tests = Counter(map(_file, items))
    first = {_file(item): number for number, item in reversed(list(enumerate(items)))}

    def place(item: pytest.Item) -> tuple[int, int, int]:
        file = _file(item)
        return _RANKS.get(file, len(_RANKS)), -n_tests[file], first[file]

    items.sort(key=place)


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]
