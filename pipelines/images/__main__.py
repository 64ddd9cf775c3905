"""`python -m pipelines.images`."""

from pipelines.images.command import main

if __name__ == "__main__":
    main()
