"""The first thirty minutes on a GPU: tests, kernels, suites and a whole run, each within its time."""
