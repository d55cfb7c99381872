"""Continual learning: a sequence of tasks, each on its own images alone."""
