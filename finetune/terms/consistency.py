"""Consistency: what is predicted of an image is to hold where the image is changed."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.training.terms import Term, TermResult, View

COUNTED = 0.25
"""The share of the steps after which the predicted frequencies are taken."""


def pseudo_labels(
    weight: float = 1.0,
    confidence: float = 0.95,
    *,
    head: str,
    weak: str = "unlabelled",
    strong: str = "strong",
    frequencies: Sequence[float] | None = None,
    running: bool = False,
    counted: bool = False,
    propagation: float = 0.0,
) -> Term:
    """FixMatch: ℓ(i) = [max_c q_c ≥ τ] · −log p_k, k = argmax_c q_c.

    q are the probabilities of the weakly changed image, without gradient, p those of
    the same image changed strongly, τ the `confidence` (Sohn et al. 2020, "FixMatch:
    simplifying semi-supervised learning with consistency and confidence", eq. 4). The
    mean is over all images: with few sure ones the term is small. With the
    `frequencies` of the classes, q are `aligned` to them first: by the mean of these
    images' q, or with `running` by that of the steps before too, which `WEAK/predicted`
    gives. With `counted` they are aligned to `WEAK/frequencies` in place of those
    given, and no image counts while these are still counted, `progress` below COUNTED.
    While `progress` is below `propagation`, k must be `WEAK/propagated` too.
    Metric `pseudo_labels_sure`: the share of images that count.
    """
    reads = [f"{weak}/logits/{head}", f"{strong}/logits/{head}"]
    predicted = f"{weak}/predicted"
    if running:
        reads.append(predicted)
    told, wanted = f"{weak}/propagated", f"{weak}/frequencies"
    if counted:
        reads.append(wanted)
    if propagation:
        reads.append(told)
    if counted or propagation:
        reads.append("progress")

    def fn(view: View) -> TermResult:
        guess = jax.nn.softmax(jax.lax.stop_gradient(view[reads[0]]))
        if frequencies is not None:
            mean = view[predicted] if running else guess.mean(0)
            aim = view[wanted] if counted else frequencies
            guess = aligned(guess, jnp.asarray(aim, guess.dtype), mean)
        sure = guess.max(-1) >= confidence
        if counted:
            sure &= view["progress"] >= COUNTED
        logp = jax.nn.log_softmax(view[reads[1]])
        label = guess.argmax(-1)
        if propagation:
            sure &= (label == view[told]) | (view["progress"] >= propagation)
        each = -jnp.take_along_axis(logp, label[:, None], axis=1)[:, 0]
        return jnp.where(sure, each, 0.0), {"pseudo_labels_sure": sure.mean()}

    return Term(name="pseudo_labels", fn=fn, reads=tuple(reads), weight=weight)


def aligned(
    guess: Float[Array, "b c"],
    frequencies: Float[Array, " c"],
    mean: Float[Array, " c"],
) -> Float[Array, "b c"]:
    """Distribution alignment: q_ic π_c / mean_c, normalised over the classes.

    A class that is predicted of fewer images than its frequency π gains, so that none
    dies out (Berthelot et al. 2020, "ReMixMatch", §3.1). The `mean` of the predictions
    runs over the last 128 batches there: one batch's is moved by chance more than by a
    class that is often, not always, taken for another.
    """
    ratio = frequencies / jnp.maximum(mean, 1e-6)
    weighed = guess * ratio[None]
    return weighed / weighed.sum(-1, keepdims=True)
