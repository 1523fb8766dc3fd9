"""Training in floats, before a model is imported."""
