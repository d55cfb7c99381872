"""The objectives, one a file; `afterimage.pretrain.objective` says what one is."""
