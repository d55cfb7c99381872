"""What stays of earlier tasks: importance of parameters, the model as it was.

`stats["continual"]` holds it, and so does every checkpoint:

    ewc  {"importance", "anchor"}, trees of encoder and heads
    lwf  {"params", "stats"}, the model before this task
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.data import ImageSet
from afterimage.finetune.anchors import fisher_diagonal
from afterimage.finetune.classifier import Classifier
from afterimage.finetune.terms.continual import Outlet
from afterimage.training.sweep import spaced
from afterimage.training.terms import Context

Tree = dict[str, Any]
MOST_FISHER = 256
_PARTS = ("encoder", "heads")


def first_memory(method: str, params: Tree, stats: Tree) -> Tree:
    """The memory before the first task: nothing matters, nothing is known."""
    learned = {name: params[name] for name in _PARTS}
    kept: Tree = {}
    if method == "ewc":
        kept = {"importance": learned, "anchor": learned}
    if method == "lwf":
        kept = {"params": learned, "stats": {name: stats[name] for name in _PARTS}}
    # Shapes of leaves still to be loaded as well.
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), kept)


def remembered(
    method: str,
    classifier: Classifier,
    outlet: Outlet,
    images: ImageSet,
    params: Tree,
    stats: Tree,
) -> Tree:
    """`stats["continual"]` after a task, whose classes are told apart at `outlet`."""
    learned = {name: params[name] for name in _PARTS}
    if method == "ewc":
        found = task_fisher(classifier, outlet, images, learned, stats)
        kept = stats["continual"]
        importance, anchor = consolidated(
            kept["importance"], kept["anchor"], found, learned
        )
        return {"importance": importance, "anchor": anchor}
    previous = {"params": learned, "stats": {name: stats[name] for name in _PARTS}}
    # Copies: the state is donated, and one buffer cannot be donated twice.
    return jax.tree.map(jnp.copy, previous)


def task_fisher(
    classifier: Classifier, outlet: Outlet, images: ImageSet, params: Tree, stats: Tree
) -> Tree:
    """The Fisher information of encoder and heads, on at most 256 of the images.

    In evaluation mode, exact over the outlet's classes, each weighted by the model's
    own prediction; see `afterimage.finetune.anchors.fisher_diagonal`.
    """

    def log_probabilities(params: Tree, image: Array) -> Array:
        logits = classifier.predict(params, stats, image[None], outlet.head)
        return jax.nn.log_softmax(outlet.of(logits))[0]

    some = spaced(images, MOST_FISHER)
    each = (jnp.asarray(some.gather([i])[0]) for i in range(len(some)))
    return fisher_diagonal(log_probabilities, params, each)


def consolidated(
    importance: Tree, anchor: Tree, fisher: Tree, params: Tree
) -> tuple[Tree, Tree]:
    """(F, θ*) with one task more: F' = F + F_t, θ*' = θ* + F_t / F' (θ_t − θ*).

    Σ_t F_t (θ − θ_t)² and F' (θ − θ*')² differ by a constant: one penalty has the
    gradient of one for each task, and its memory does not grow. Where F' = 0 the
    anchor is the newest parameter.
    """
    both = jax.tree.map(jnp.add, importance, fisher)

    def moved(anchor: Array, total: Array, new: Array, now: Array) -> Array:
        share = jnp.where(total > 0, new / jnp.where(total > 0, total, 1.0), 1.0)
        return anchor + share * (now - anchor)

    return both, jax.tree.map(moved, anchor, both, fisher, params)


def memory_rules(
    classifier: Classifier, method: str, kept: Tree
) -> dict[str, Callable[[Context], Any]]:
    """`ewc/importance` and `ewc/anchor`, or `previous/logits/HEAD` of the images of
    the stream `train`, by the model as it was, in evaluation mode."""
    if method == "ewc":
        return {
            "ewc/importance": lambda _: kept["importance"],
            "ewc/anchor": lambda _: kept["anchor"],
        }
    if method != "lwf":
        return {}
    params, stats = kept["params"], kept["stats"]

    def logits(head: str) -> Callable[[Context], Any]:
        return lambda ctx: classifier.logits(params, stats, ctx["previous/maps"], head)

    return {
        "previous/maps": lambda ctx: classifier.maps(params, stats, ctx["train/image"])[
            0
        ],
        **{f"previous/logits/{head}": logits(head) for head in classifier.heads},
    }
