"""Where work runs, in how much memory, and what it tells while it runs; `cluster` has what workers of Dask need."""
