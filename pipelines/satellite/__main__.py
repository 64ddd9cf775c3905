"""`python -m pipelines.satellite`."""

from pipelines.satellite.command import main

if __name__ == "__main__":
    main()
