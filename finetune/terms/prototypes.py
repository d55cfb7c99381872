"""Prototypes: a class is the mean of its few images in feature space."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.finetune.episodes.sampler import Shape
from afterimage.finetune.terms.classification import smoothed_cross_entropy
from afterimage.finetune.terms.discrepancy import square_distances
from afterimage.training.terms import Term, TermResult, View


def prototype_logits(
    support: Float[Array, "s d"], queries: Float[Array, "q d"], shape: Shape
) -> Float[Array, "q ways"]:
    """−‖f(x) − c_k‖², c_k the mean of the support of class k (Snell et al. 2017).

    The support's rows stand class after class, as in an episode.
    """
    return -square_distances(queries, _class_means(support, shape))


def nearest_mean(
    support: Float[Array, "s d"], shape: Shape
) -> tuple[Float[Array, "d ways"], Float[Array, " ways"]]:
    """(2 c_k / d, −‖c_k‖² / d): the linear layer that calls the nearest c_k.

    Its softmax is that of −‖f(x) − c_k‖² / d, as ‖f(x)‖² is the same for all classes
    (Triantafillou et al. 2020, "Meta-Dataset", §3, without the d). Where an episode's
    descent of Proto-MAML begins: undivided, distances of d standardised features are
    of the size of d, and a step of a rate that suits a head destroys the encoder.
    """
    prototypes = _class_means(support, shape)
    width = prototypes.shape[-1]
    return 2 * prototypes.T / width, -jnp.square(prototypes).sum(-1) / width


def _class_means(support: Float[Array, "s d"], shape: Shape) -> Float[Array, "ways d"]:
    return support.reshape(shape.ways, shape.shots, -1).mean(1)


def prototypical(shape: Shape, *, head: str) -> Term:
    """−log softmax(−‖f(x) − c‖²)_y, the mean over the queries of a batch's episodes.

    The loss of prototypical networks (Snell et al. 2017), over what the head would
    read; no head takes part.
    """
    source = f"train/features/{head}"

    def fn(view: View) -> TermResult:
        features = view[source]
        episodes = features.reshape(-1, shape.rows, features.shape[-1])
        labels = jnp.asarray(shape.labels[shape.support :])
        each = [
            prototype_logits(one[: shape.support], one[shape.support :], shape)
            for one in episodes
        ]
        logits = jnp.concatenate(each)
        labels = jnp.tile(labels, len(each))
        loss = smoothed_cross_entropy(logits, labels, 0.0).mean()
        return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}

    return Term(name="cross_entropy", fn=fn, reads=(source,))
