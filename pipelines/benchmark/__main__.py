"""`python -m pipelines.benchmark`."""

from pipelines.benchmark.command import main

if __name__ == "__main__":
    main()
