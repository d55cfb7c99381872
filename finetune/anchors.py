"""The source model at hand while another one learns: weights, outputs, importance.

`stats["anchors"]` holds it, and so does every checkpoint: a run continues without the
folder it came from.

    {"params": {"encoder", "heads/source"}, "stats": {"encoder", "heads/source"},
     "fisher": {...}}

with heads where the source has a classifier that is asked for.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage import runtime
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.names import shortened
from afterimage.checkpoints.weights import CLASSIFIER, read_classifier
from afterimage.data import ImageSet
from afterimage.errors import UserError
from afterimage.finetune.classifier import Classifier, HeadConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.labels import HEAD
from afterimage.finetune.source import Source
from afterimage.training.sweep import spaced
from afterimage.training.terms import Context

Tree = dict[str, Any]
SOURCE_HEAD = "source"
_MOST_FISHER = 256


def source_head(config: FinetuneConfig) -> tuple[HeadConfig, Tree, Tree] | None:
    """(its config, parameters, feature statistics) of the source's own head.

    None where nothing asks for it; UserError where the source has none.
    """
    if not config.needs_source_head:
        return None
    try:
        params, stats, manifest = read_classifier(config.from_)
    except CheckpointError as error:
        if (pathlib.Path(config.from_) / CLASSIFIER).is_dir():
            raise  # there is one, and it is damaged
        wanted = " and ".join(config.needs_source_head)
        raise UserError(
            f"from={config.from_} has no classifier, and {wanted} compares with the "
            "source's own predictions: give a finished fine-tuning run, or leave "
            f"{wanted} out (l2_sp and delta need no classifier)"
        ) from error
    if HEAD not in manifest["heads"]:
        heads = ", ".join(map(shortened, manifest["heads"]))
        raise UserError(
            f"from={config.from_} has a classifier without a head {HEAD!r}; it has "
            f"{heads}"
        )
    entry = {k: v for k, v in manifest["heads"][HEAD].items() if k != "class_names"}
    try:
        return HeadConfig(**entry), params["heads"][HEAD], stats["heads"][HEAD]
    except KeyError as error:
        raise CheckpointError(
            f"{config.from_}: its classifier has no weights of the head {HEAD!r}."
        ) from error


def make_anchors(
    config: FinetuneConfig, source: Source, head: tuple[HeadConfig, Tree, Tree] | None
) -> Tree:
    """What `stats["anchors"]` begins as; Fisher information still zero."""
    tree: Tree = {
        "params": {"encoder": source.params},
        "stats": {"encoder": source.stats},
    }
    if head is not None:
        tree["params"]["heads"] = {SOURCE_HEAD: head[1]}
        tree["stats"]["heads"] = {SOURCE_HEAD: head[2]}
    # Copies: the state is donated, and one buffer cannot be donated twice.
    tree = jax.tree.map(jnp.array, tree)
    if config.l2_sp_fisher:
        tree["fisher"] = jax.tree.map(jnp.zeros_like, tree["params"]["encoder"])
    return tree


def anchor_rules(
    classifier: Classifier, anchors: Tree, streams: tuple[str, ...]
) -> dict[str, Callable[[Context], Any]]:
    """`anchors/source`, `anchors/fisher`, and `source/STREAM/maps` and `/logits`: the
    source model in evaluation mode on the same augmented images."""
    params, stats = anchors["params"], anchors["stats"]
    rules: dict[str, Callable[[Context], Any]] = {"anchors/source": lambda _: params}
    if "fisher" in anchors:
        rules["anchors/fisher"] = lambda _: anchors["fisher"]

    def maps(stream: str) -> Callable[[Context], Any]:
        return lambda ctx: classifier.maps(params, stats, ctx[f"{stream}/image"])[0]

    def logits(stream: str) -> Callable[[Context], Any]:
        return lambda ctx: classifier.logits(
            params, stats, ctx[f"source/{stream}/maps"], SOURCE_HEAD
        )

    for stream in streams:
        rules[f"source/{stream}/maps"] = maps(stream)
        if "heads" in params:
            rules[f"source/{stream}/logits"] = logits(stream)
    return rules


def fisher_diagonal(
    log_probabilities: Callable[[Any, Any], Array], params: Any, examples: Any
) -> Any:
    """F_j = (1/N) Σ_i Σ_c p_c(x_i) (∂ log p_c(x_i) / ∂θ_j)², exact over the classes.

    `log_probabilities(params, example)` gives [C] of one example; `examples` is an
    iterable of them. One example at a time: a square of a batch's mean gradient is
    another, much smaller quantity (Kirkpatrick et al. 2017; van de Ven et al. 2022).
    """

    @runtime.jit
    def squares(params, example):
        logp = log_probabilities(params, example)
        rows = jax.jacrev(log_probabilities)(params, example)
        return jax.tree.map(
            lambda row: jnp.tensordot(jnp.exp(logp), jnp.square(row), 1), rows
        )

    total, count = jax.tree.map(jnp.zeros_like, params), 0
    for example in examples:
        total = jax.tree.map(jnp.add, total, squares(params, example))
        count += 1
    return jax.tree.map(lambda leaf: leaf / max(count, 1), total)


def measure_fisher(classifier: Classifier, anchors: Tree, images: ImageSet) -> Tree:
    """The source model's Fisher information on at most 256 training images.

    Divided by its mean over all parameters, so that the weight of L2-SP means the same
    with it and without. Raises CheckpointError where it is zero or not finite.
    """
    params, stats = anchors["params"], anchors["stats"]

    def log_probabilities(encoder: Tree, image: Array) -> Array:
        now = {**params, "encoder": encoder}
        logits = classifier.predict(now, stats, image[None], SOURCE_HEAD)
        return jax.nn.log_softmax(logits)[0]

    some = spaced(images, _MOST_FISHER)
    each = (jnp.asarray(some.gather([i])[0]) for i in range(len(some)))
    found = fisher_diagonal(log_probabilities, params["encoder"], each)
    leaves = jax.tree.leaves(found)
    mean = sum(float(leaf.sum()) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    if not 0 < mean < float("inf"):
        raise CheckpointError(
            f"the source's Fisher information has mean {mean}: its classifier does not "
            "depend on its encoder, or is not finite"
        )
    return jax.tree.map(lambda leaf: leaf / mean, found)
