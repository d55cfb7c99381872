"""Fine-tuning methods, one file each; files with a leading `_` hold shared code."""
