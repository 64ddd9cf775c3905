"""`python -m pipelines.simulation`."""

from pipelines.simulation.command import main

if __name__ == "__main__":
    main()
