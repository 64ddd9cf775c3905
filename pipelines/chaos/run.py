"""`python pipelines/chaos/run.py`: the same as `python -m pipelines.chaos` in the folder of the checkout."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from pipelines.chaos.command import main

    main()
