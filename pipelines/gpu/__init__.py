"""The first thirty minutes on a GPU: tests, kernels, benchmark suites and a whole run, each with a time limit."""
