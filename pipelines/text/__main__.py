"""`python -m pipelines.text`."""

from pipelines.text.command import main

if __name__ == "__main__":
    main()
