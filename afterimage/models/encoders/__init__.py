"""The encoders, one family per file; `afterimage.models.encoder` has the base class."""
