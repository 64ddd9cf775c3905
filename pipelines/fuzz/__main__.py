"""`python -m pipelines.fuzz`."""

from pipelines.fuzz.command import main

if __name__ == "__main__":
    main()
