"""A real cluster, for tests that need one."""

from collections.abc import Iterator

import dask
import pytest

from hkm_dask.compute.cluster.all_workers import list_workers
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.cluster.connect import connect


@pytest.fixture(scope="module")
def two_processes() -> Iterator[ClusterRunner]:
    """A LocalCluster of two single-threaded processes, as `--workers 2` makes it."""
    with connect(workers=2, memory_limit="800MiB") as runner:
        assert isinstance(runner, ClusterRunner)
        yield runner


@pytest.fixture
def workers(two_processes: ClusterRunner) -> ClusterRunner:
    """The cluster, with both processes alive."""
    list_workers(two_processes.client, 2)
    return two_processes


@pytest.fixture
def spawned_workers() -> Iterator[None]:
    """Workers start as users have them, with the modules and the environment of this moment."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):
        yield
