"""Work on a Dask cluster: starting or finding one, and handling failures of its workers."""
