"""`python pipelines/training/run.py`: the same as `python -m pipelines.training` in the folder of the checkout."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from pipelines.training.command import main

    main()
