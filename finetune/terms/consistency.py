"""Consistency: what is predicted of an image is to hold where the image is changed."""

import jax
import jax.numpy as jnp

from finetune.context import View
from finetune.terms.term import Term, TermResult


def pseudo_labels(
    weight: float = 1.0,
    confidence: float = 0.95,
    *,
    head: str,
    weak: str = "unlabelled",
    strong: str = "strong",
) -> Term:
    """FixMatch: ℓ(i) = [max_c q_c ≥ τ] · −log p_k, k = argmax_c q_c.

    q are the probabilities of the weakly changed image, without gradient, p those of
    the same image changed strongly, τ the `confidence` (Sohn et al. 2020, "FixMatch:
    simplifying semi-supervised learning with consistency and confidence", eq. 4). The
    mean is over all images: with few sure ones the term is small. Metric
    `pseudo_labels_sure`: their share.
    """
    reads = (f"{weak}/logits/{head}", f"{strong}/logits/{head}")

    def fn(view: View) -> TermResult:
        guess = jax.nn.softmax(jax.lax.stop_gradient(view[reads[0]]))
        sure = guess.max(-1) >= confidence
        logp = jax.nn.log_softmax(view[reads[1]])
        label = guess.argmax(-1)[:, None]
        each = -jnp.take_along_axis(logp, label, axis=1)[:, 0]
        return jnp.where(sure, each, 0.0), {"pseudo_labels_sure": sure.mean()}

    return Term(name="pseudo_labels", fn=fn, reads=reads, weight=weight)
