"""Evaluation of curation on labeled pools with a long tail: class balance of draws, and probes trained on them."""
