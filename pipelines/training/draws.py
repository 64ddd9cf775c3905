"""The draws that models are trained on."""

from __future__ import annotations

from pipelines.longtail.methods import METHODS, Method

#: By what the tables call them: a uniform draw, the tree, what is cheaper, and what one would do who knows the classes.
DRAWS: dict[str, Method] = {
    "raw": METHODS["uniform"],
    "tree": METHODS["tree, as advised"],
    "tree of larger clusters": METHODS["tree, larger clusters"],
    "k-center": METHODS["k-center"],
    "inverse density": METHODS["isolated, r20^16"],
    "SemDeDup": METHODS["SemDeDup"],
    "balanced by labels": METHODS["balanced by labels"],
}
#: Not a draw: all there is, for as many steps.
ALL = "the whole pool"
