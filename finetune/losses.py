"""Losses that several methods and tasks share: from labels or a model's predictions."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from afterimage.errors import UserError
from afterimage.training.stage import Term, TermResult, View


def cross_entropy(
    classes: int,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    stream: str = "train",
    head: str = "classes",
    task: str | None = None,
    weight: float | Callable[[Array], Array] = 1.0,
    examples: str | None = None,
) -> Term:
    """Softmax cross-entropy of one head on one stream.

    ℓ(i) = w[y] · −Σ_c t_c log p_c with t = (1−ε)·onehot(y) + ε/C (Szegedy et al. 2016,
    uniform smoothing). The weights are used as given: the loss is not divided by their
    sum over the batch, so the gradient is unbiased for any batch. Label −1 means
    unlabelled: the mean is over the other examples; a batch without labels costs 0.
    With `task`, the labels of that task are used, and term and metric carry its name.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(
            f"label_smoothing={label_smoothing}: must be in [0, 1); 0.1 is common"
        )
    weights = np.ones(classes) if class_weights is None else np.asarray(class_weights)
    logits_name, label_name = f"{stream}/logits/{head}", f"{stream}/label"
    suffix = "" if task is None else f"_{task}"
    if task is not None:
        label_name += f"/{task}"

    def fn(view: View) -> TermResult:
        logits, labels = view[logits_name], view[label_name]
        each = smoothed_cross_entropy(logits, labels, label_smoothing)
        known = labels >= 0
        each = each * jnp.asarray(weights, each.dtype)[labels.clip(0)]
        count = jnp.maximum(known.sum(), 1)
        correct = known & (logits.argmax(-1) == labels)
        # Scale so that the mean over the batch is the mean over its labelled part.
        each = jnp.where(known, each, 0.0) * (labels.size / count)
        return each, {f"accuracy{suffix}": correct.sum() / count}

    return Term(
        name=f"cross_entropy{suffix}",
        fn=fn,
        reads=(logits_name, label_name),
        weight=weight,
        examples=examples,
        task=head,
    )


def smoothed_cross_entropy(
    logits: Float[Array, "b c"], labels: Int[Array, " b"], smoothing: float
) -> Float[Array, " b"]:
    """−Σ_c t_c log softmax(logits)_c, t = (1−ε)·onehot + ε/C; −1 counts as 0."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    right = jnp.take_along_axis(logp, labels.clip(0)[:, None], axis=-1)[:, 0]
    return -(1.0 - smoothing) * right - smoothing * logp.mean(-1)


def balanced_weights(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """w_c = N / (C · n_c): every class weighs the same, the mean weight is one.

    N counts the labelled examples; unlabelled ones (−1) are left out. Raises UserError
    for a class without examples, whose weight would be undefined.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    if (counts == 0).any():
        missing = np.flatnonzero(counts == 0).tolist()
        raise UserError(
            f"class weights 'balanced' need examples of every class, but {missing} "
            f"have none among the {int(counts.sum())} labelled training images"
        )
    return tuple((counts.sum() / (classes * counts)).tolist())


def soft_kl(
    teacher: Float[Array, "b c"], student: Float[Array, "b c"], temperature: float
) -> Float[Array, " b"]:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)); no gradient to the teacher.

    T² keeps the gradient's size as T grows (Hinton et al. 2015).
    """
    target = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    found = jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.sum(jnp.exp(target) * (target - found), -1)
