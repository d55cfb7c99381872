"""Scorers of anomalies, one file each; see `afterimage.anomalies.scorer`."""
