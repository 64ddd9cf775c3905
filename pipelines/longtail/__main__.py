"""`python -m pipelines.longtail`."""

from pipelines.longtail.command import main

if __name__ == "__main__":
    main()
