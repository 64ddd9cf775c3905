"""The simulations of arXiv:2405.15613: the toy example of §3.2, Figures 2 and 3, the five rings."""
