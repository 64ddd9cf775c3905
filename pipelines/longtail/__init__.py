"""Trees on labeled pools with a long tail: what their draws are worth."""
