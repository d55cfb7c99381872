"""Images unlike the normal ones: detectors, how they score, the command."""
