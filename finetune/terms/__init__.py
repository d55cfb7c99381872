"""Terms: what a phase minimises, each a loss per example over a shared context."""

from afterimage.finetune.terms.classification import balanced_weights, cross_entropy
from afterimage.finetune.terms.term import Term, TermResult

__all__ = ["Term", "TermResult", "balanced_weights", "cross_entropy"]
