"""The encoders, one family a file; `afterimage.models.encoder` says what one is."""
