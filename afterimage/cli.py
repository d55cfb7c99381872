"""Moved: presets to `afterimage.presets`, exit codes to `afterimage.commands`."""

from afterimage.commands import exit_code, leave
from afterimage.presets import Measured, Preset, find_preset

__all__ = ["Measured", "Preset", "exit_code", "find_preset", "leave"]
