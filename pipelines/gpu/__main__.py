"""`python -m pipelines.gpu`."""

from pipelines.gpu.command import main

if __name__ == "__main__":
    main()
