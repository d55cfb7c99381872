"""Measurements of speed and accuracy; results are stored with device and date."""
