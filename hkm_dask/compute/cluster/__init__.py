"""Dask clusters: starting or finding one, running tasks on its workers, and recovery if workers fail."""
