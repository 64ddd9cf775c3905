"""Workers as SLURM jobs, with dask-jobqueue: python slurm_jobqueue.py pool.zarr tree.zarr 1000,100."""

import sys
from typing import Any

from distributed import Client

import hkm_dask as hkm

if __name__ == "__main__":
    from dask_jobqueue.slurm import SLURMCluster

    pool, tree, n_clusters = sys.argv[1:]
    # One worker per job, with all its cores. One GPU per job (untested): job_extra_directives=["--gres=gpu:1"] and
    # job_script_prologue=["export HKM_DEVICE=cuda"].
    options: dict[str, Any] = {"cores": 16, "processes": 1, "memory": "64GiB", "walltime": "12:00:00"}
    with SLURMCluster(**options) as cluster, Client(cluster) as client:
        cluster.scale(jobs=4)  # any number; the run uses the workers that have started
        client.wait_for_workers(1)
        config = hkm.Config.from_flags(tuple(map(int, n_clusters.split(","))))
        hkm.build_hierarchy(pool, tree, config, client=client)
