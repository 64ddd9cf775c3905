"""Clusters: simulated hosts on one machine, tests of the job-scheduler recipes, and projected hours of large runs."""
