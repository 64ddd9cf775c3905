"""Work on the workers of a Dask cluster: how one is started or found, and what is done where workers fail."""
