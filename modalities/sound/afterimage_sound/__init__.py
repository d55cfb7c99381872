"""Recordings as data for Afterimage: log-mel spectrograms, computed by JAX."""

from afterimage_sound.rendering import Rendering
from afterimage_sound.spectrogram import log_mel, mel_filters, picture

__all__ = ["Rendering", "log_mel", "mel_filters", "picture"]
