"""A process started by Dask keeps the memory of freed arrays, measured by its page faults."""

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


_THREADS = """
import threading
import numpy as np
import psutil
from hkm_dask.compute.allocator import reuse_freed_memory

reuse_freed_memory()
turns = [threading.Event() for _ in range(9)]

def work(i):
    turns[i].wait()
    arrays = [np.ones(1 << 17) for _ in range(40)]
    last = np.ones(1)  # above them: they do not lie at the end of what the thread has
    del arrays
    turns[i + 1].set()
    turns[8].wait()

threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
for thread in threads:
    thread.start()
turns[0].set()
turns[8].wait()
print(psutil.Process().memory_info().rss >> 20)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc has memory for each thread")
@pytest.mark.parametrize(("said", "held"), [({}, range(250)), ({"MALLOC_ARENA_MAX": "8"}, range(300, 500))])
def test_what_one_thread_freed_is_there_for_the_others_unless_someone_says_otherwise(
    said: dict[str, str], held: range
) -> None:
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536", **said}
    outcome = subprocess.run([sys.executable, "-c", _THREADS], env=environment, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) in held  # 8 threads had 40 MiB each, one after the other
