"""Benchmarks of time and memory: against other libraries, and against another version of this one."""
