"""Where work runs, in how much memory, and how it reports progress; `cluster` holds what only Dask clusters need."""
