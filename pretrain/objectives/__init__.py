"""The objectives, one per file; `afterimage.pretrain.objective` has the base class."""
