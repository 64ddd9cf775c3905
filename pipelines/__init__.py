"""Pipelines from raw data to a subset, the paper's simulations, and the benchmark."""
