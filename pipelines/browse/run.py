"""`python pipelines/browse/run.py`: the same as `python -m pipelines.browse` in the folder of the checkout."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from pipelines.browse.command import main

    main()
