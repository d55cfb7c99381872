"""Terms that hold a model near the one it came from: weights, outputs, features.

The source model is an anchor: a copy that never learns, kept in `stats/anchors` and so
in every checkpoint. Each term names its source; none is invariant to the optimiser's
scaling: under AdamW a penalty in the loss is divided by the gradient's running size as
every other part of the gradient is.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.checkpoints.trees import flatten
from afterimage.errors import UserError
from afterimage.training.terms import Term, TermResult, View

ENCODER = "^encoder/"
HEADS = "^heads/"


def l2_sp(weight: float, *, fisher: bool = False) -> Term:
    """L2-SP: w · ½ Σ_j F_j (θ_j − θ⁰_j)² over the encoder's parameters.

    F = 1 (Li et al. 2018, "Explicit inductive bias", there α = w), or, with
    `fisher`, the diagonal Fisher information of the source model (their
    L2-SP-Fisher), read from `anchors/fisher`. New parameters have no starting point:
    they take `l2`, the paper's β. Raises UserError, with all leaves, for an anchor of
    another shape.
    """

    def fn(view: View) -> TermResult:
        now = {"encoder": view["params"]["encoder"]}
        start = {"encoder": view["anchors/source"]["encoder"]}
        _check_anchor(flatten(now), flatten(start))
        importance = {"encoder": view["anchors/fisher"]} if fisher else None
        return quadratic(now, start, importance), {}

    reads = ("params", "anchors/source", *(("anchors/fisher",) if fisher else ()))
    return Term(
        name="l2_sp",
        fn=fn,
        reads=reads,
        weight=weight,
        penalises=ENCODER,
        encoder_only=True,
    )


def quadratic(now: Any, start: Any, importance: Any | None = None) -> Array:
    """½ Σ_j F_j (θ_j − θ⁰_j)² over trees of one structure; F = 1 where not given."""
    squares = jax.tree.map(lambda x, y: jnp.square(x - y), now, start)
    if importance is not None:
        squares = jax.tree.map(jnp.multiply, importance, squares)
    return 0.5 * sum((jnp.sum(x) for x in jax.tree.leaves(squares)), jnp.zeros(()))


def _check_anchor(now: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    wrong = [
        f"{path} is {leaf.shape} and its anchor "
        + (f"is {start[path].shape}" if path in start else "is not there")
        for path, leaf in now.items()
        if path not in start or start[path].shape != leaf.shape
    ]
    if wrong:
        raise UserError(
            "the source model cannot be the anchor of this one: "
            + "; ".join(wrong)
            + ". Keep the source's image size and channels, or leave --l2-sp out"
        )


def l2(weight: float) -> Term:
    """w · ½ Σ_j θ_j² over the heads: β of L2-SP (Li et al. 2018)."""

    def fn(view: View) -> TermResult:
        leaves = jax.tree.leaves(view["params"]["heads"])
        total = sum((jnp.sum(jnp.square(x)) for x in leaves), jnp.zeros(()))
        return 0.5 * total, {}

    return Term(
        name="l2_head", fn=fn, reads=("params",), weight=weight, penalises=HEADS
    )


def kl_to_source(
    weight: float, *, temperature: float = 2.0, stream: str = "train"
) -> Term:
    """KL(p° ‖ p) of the source's own head, before and now, each softened by T.

    ℓ(i) = T² Σ_c p°_c (log p°_c − log p_c), p = softmax(z / T); p° from the source
    model, p from the copy of its head that learns on with the encoder (Li & Hoiem 2016,
    "Learning without forgetting"; T² keeps the gradient's size, Hinton et al. 2015).
    Nats, ≥ 0, and zero before the first step.
    """
    before, now = f"source/{stream}/logits", f"{stream}/logits/source"

    def fn(view: View) -> TermResult:
        return soft_kl(view[before], view[now], temperature), {}

    return Term(
        name="kl_to_source",
        fn=fn,
        reads=(before, now),
        weight=weight,
        encoder_only=True,
    )


def soft_kl(
    teacher: Float[Array, "b c"], student: Float[Array, "b c"], temperature: float
) -> Float[Array, " b"]:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), none to the first."""
    target = jax.nn.log_softmax(jax.lax.stop_gradient(teacher) / temperature)
    found = jax.nn.log_softmax(student / temperature)
    return temperature**2 * jnp.sum(jnp.exp(target) * (target - found), -1)


def delta(weight: float, *, stream: str = "train") -> Term:
    """w · Σ_l ½ mean_{h,w,c} (M_l − M°_l)² over the encoder's feature maps.

    DELTA's behavioural regulariser (Li et al. 2019, "DELTA") with all channels
    weighing the same: its supervised attention over channels is left out. A mean over
    positions and channels, where the paper sums, so that w does not depend on the size
    of the images.
    """
    before, now = f"source/{stream}/maps", f"{stream}/maps"

    def fn(view: View) -> TermResult:
        pairs = zip(view[now], view[before], strict=True)
        parts = [
            0.5 * jnp.mean(jnp.square(x - jax.lax.stop_gradient(y)), (1, 2, 3))
            for x, y in pairs
        ]
        return sum(parts[1:], parts[0]), {}

    return Term(
        name="delta", fn=fn, reads=(before, now), weight=weight, encoder_only=True
    )
