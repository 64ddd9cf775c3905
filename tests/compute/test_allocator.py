"""A process that Dask started keeps the memory that arrays leave behind, counted by its page faults."""

import os
import subprocess
import sys

import pytest

_FAULTS = """
import resource
import numpy as np
from hkm_dask.compute.allocator import reuse_freed_memory

reuse_freed_memory()
np.ones(1 << 17)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(1 << 17)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="only glibc is told to give memory back")
@pytest.mark.parametrize(("threshold", "faults"), [("65536", range(1_000)), ("100000", range(5_000, 20_000))])
def test_memory_of_freed_arrays_is_used_again_unless_someone_says_otherwise(threshold: str, faults: range) -> None:
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": threshold}
    outcome = subprocess.run([sys.executable, "-c", _FAULTS], env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) in faults  # 50 arrays have 12,800 pages: Dask's setting maps each anew
