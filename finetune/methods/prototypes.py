"""Prototypes: a class is represented by the mean of its few images in feature space.

The loss is −log softmax(−‖f(x) − c‖²)_y, c_k the mean of the support of class k, on the
features a head would read; no head is used (Snell et al. 2017, "Prototypical networks
for few-shot learning").
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.finetune.losses import smoothed_cross_entropy
from afterimage.finetune.method import METHODS, Model
from afterimage.finetune.methods._discrepancy import square_distances
from afterimage.finetune.methods._episodes import EpisodeMethod, Score
from afterimage.finetune.tasks._sampler import Sampler, Shape, by_prototype
from afterimage.models.classifier import HEAD
from afterimage.training.stage import Term, TermResult, View


@METHODS.add("prototypes", group="episodes")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prototypes(EpisodeMethod):
    """The nearest class mean in feature space (prototypical networks)."""

    trains_head: ClassVar[bool] = False

    def term(self, setup):
        return prototypical(setup.plan.shape)

    def scorer(self, setup):
        def scored(sampler: Sampler, model: Model) -> Score:
            features = setup.scorer.features(*model, sampler.images)
            return lambda n: by_prototype(features[sampler.episode(n)], sampler.shape)

        return scored


def prototype_logits(
    support: Float[Array, "s d"], queries: Float[Array, "q d"], shape: Shape
) -> Float[Array, "q ways"]:
    """−‖f(x) − c_k‖², c_k the mean of the support of class k (Snell et al. 2017).

    The support's rows are sorted by class, as in an episode.
    """
    return -square_distances(queries, class_means(support, shape))


def class_means(support: Float[Array, "s d"], shape: Shape) -> Float[Array, "ways d"]:
    """The mean feature vector of each class of an episode's support."""
    return support.reshape(shape.ways, shape.shots, -1).mean(1)


def prototypical(shape: Shape) -> Term:
    """−log softmax(−‖f(x) − c‖²)_y, the mean over the queries of a batch's episodes.

    The loss of prototypical networks (Snell et al. 2017), on the features a head would
    read; no head is used.
    """
    source = f"train/features/{HEAD}"

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
