"""User-facing output: progress of runs, descriptions of stores, figures."""
