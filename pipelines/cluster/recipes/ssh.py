"""A scheduler on the first host and workers on the others: python ssh.py pool.zarr tree.zarr 1000,100 HOST HOST ..."""

import sys

from dask.distributed import Client, SSHCluster

import hkm_dask as hkm

if __name__ == "__main__":
    pool, tree, n_clusters, *hosts = sys.argv[1:]
    # Needs asyncssh. Every host accepts a key of this user and is in known_hosts; connect_options sets keys and ports.
    with SSHCluster(hosts, remote_python=sys.executable) as cluster, Client(cluster) as client:
        client.wait_for_workers(len(hosts) - 1)
        config = hkm.Config.from_flags(tuple(map(int, n_clusters.split(","))))
        hkm.build_hierarchy(pool, tree, config, client=client)
