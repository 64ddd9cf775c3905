"""`python -m pipelines.mutants`."""

from pipelines.mutants.command import main

if __name__ == "__main__":
    main()
