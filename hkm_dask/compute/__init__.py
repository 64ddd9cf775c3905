"""Execution of tasks, memory planning and caching; `cluster` has what is specific to Dask workers."""
