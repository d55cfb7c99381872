"""Meta-learning: a start from which new classes are learned from a few images."""
