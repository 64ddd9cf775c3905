"""Make the simulations of arXiv:2405.15613: the toy of §3.2, Figures 2 and 3, the five rings.

    python pipelines/simulation/run.py all --out simulation             # every figure, ten seeds
    python pipelines/simulation/run.py figure3 --seeds 1 --out quick    # one figure, in seconds
    python pipelines/simulation/run.py gap --out simulation             # what brings Figure 3 nearer to uniform
    python pipelines/simulation/run.py beside --seeds 40                # its levels by scikit-learn's k-means, too

Each study writes NAME.json and its pictures as PNG and SVG. `all` leaves out `gap`, which takes an hour, and `beside`.
"""

from simulation_command import main

if __name__ == "__main__":
    main(__doc__)
