"""Models trained on what was drawn, beside the same model trained on other draws of the same size."""
