"""Terms of fine-tuning: each a loss per example over a shared context."""
