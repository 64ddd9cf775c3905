"""Draws for training models."""

from __future__ import annotations

from pipelines.longtail.methods import METHODS, Method

#: Draws by their name in tables: uniform, tree, cheaper methods, and balanced by the true classes.
DRAWS: dict[str, Method] = {
    "raw": METHODS["uniform"],
    "tree": METHODS["tree, as advised"],
    "tree of larger clusters": METHODS["tree, larger clusters"],
    "k-center": METHODS["k-center"],
    "inverse density": METHODS["isolated, r20^16"],
    "SemDeDup": METHODS["SemDeDup"],
    "balanced by labels": METHODS["balanced by labels"],
}
#: No draw: the model is trained on the whole pool, for the same number of steps.
ALL = "the whole pool"
