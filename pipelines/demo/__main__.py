"""`python -m pipelines.demo`."""

from pipelines.demo.command import main

if __name__ == "__main__":
    main()
