"""Workers as jobs of SLURM, by dask-jobqueue: python slurm_jobqueue.py pool.zarr tree.zarr 1000,100."""

import sys
from typing import Any

from distributed import Client

import hkm_dask as hkm

if __name__ == "__main__":
    from dask_jobqueue.slurm import SLURMCluster

    pool, tree, n_clusters = sys.argv[1:]
    # One worker to a job, with all its cores. One GPU to a job (not tried): job_extra_directives=["--gres=gpu:1"] and
    # job_script_prologue=["export HKM_DEVICE=cuda"].
    options: dict[str, Any] = {"cores": 16, "processes": 1, "memory": "64GiB", "walltime": "12:00:00"}
    with SLURMCluster(**options) as cluster, Client(cluster) as client:
        cluster.scale(jobs=4)  # as many jobs as wished; the run goes on with those that are there
        client.wait_for_workers(1)
        config = hkm.Config.from_flags(tuple(map(int, n_clusters.split(","))))
        hkm.build_hierarchy(pool, tree, config, client=client)
