"""`python -m pipelines.browse`."""

from pipelines.browse.command import main

if __name__ == "__main__":
    main()
