"""Sorting of rows by cluster with many tasks in bounded memory: the external sort, its inner loops, its output."""
