"""Rows in the order of their clusters, by many tasks in bounded memory: the sort, its inner loops, what is written."""
