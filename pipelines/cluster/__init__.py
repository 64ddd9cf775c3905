"""Clusters: four hosts on one machine, recipes for schedulers of jobs, and the hours of runs too large to be tried."""
