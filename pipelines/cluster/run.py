"""`python pipelines/cluster/run.py`: the same as `python -m pipelines.cluster` in the folder of the checkout."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from pipelines.cluster.command import main

    main()
