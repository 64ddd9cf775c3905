"""`python -m pipelines.cluster`."""

from pipelines.cluster.command import main

if __name__ == "__main__":
    main()
