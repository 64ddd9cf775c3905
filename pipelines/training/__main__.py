"""`python -m pipelines.training`."""

from pipelines.training.command import main

if __name__ == "__main__":
    main()
