"""`python -m pipelines.chaos`."""

from pipelines.chaos.command import main

if __name__ == "__main__":
    main()
