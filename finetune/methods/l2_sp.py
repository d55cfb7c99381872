"""L2-SP: keeps weights near those of the source model.

w · ½ Σ_j F_j (θ_j − θ⁰_j)² over the encoder's parameters, θ⁰ their initial values, and
v · ½ Σ_j θ_j² over the heads, which are new and have no source values (Li et al. 2018,
"Explicit inductive bias for transfer learning with convolutional networks", there
α = w and β = v). F = 1, or the diagonal Fisher information of the source model (their
L2-SP-Fisher).

AdamW divides a penalty in the loss by the gradient's running size, like every other
part of the gradient.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.trees import flatten
from afterimage.errors import UserError
from afterimage.fields import at_least_0
from afterimage.finetune.method import METHODS, Method
from afterimage.finetune.methods._fisher import fisher_of, quadratic
from afterimage.finetune.source import SOURCE_HEAD
from afterimage.training.stage import Term, TermResult, View

ENCODER = "^encoder/"
HEADS = "^heads/"


@METHODS.add("l2-sp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class L2SP(Method):
    """Keeps weights near those of the source (L2-SP)."""

    needs_source: ClassVar[bool] = True
    acts_on_encoder: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = False

    weight: float = 0.01
    """Weight of half the squared distance of the encoder's parameters from their
    initial values. Needs --weight-decay 0."""

    head: float = 0.0
    """Weight of half the squared norm of the heads; 0.01 is common."""

    fisher: bool = False
    """Weight each parameter by its Fisher information. The source must have a
    classifier (an earlier fine-tuning run)."""

    @property
    def needs_source_head(self) -> bool:
        return self.fisher

    def problems(self, config):
        found = at_least_0(self, "weight", "head")
        if self.fisher and not self.weight:
            found.append(
                "fisher has no effect, as it scales the distance, whose weight is 0"
            )
        if self.fisher and config.task.reading is not None:
            found.append(f"fisher needs classes, which task {config.task.name} lacks")
        return found

    def state(self, setup):
        if self.fisher:
            params = setup.stats["source"]["params"]["encoder"]
            return {"fisher": jax.tree.map(jnp.zeros_like, params)}
        return None

    def measure(self, setup, model, say):
        """The source's Fisher information on the labelled images."""
        if not self.fisher:
            return None
        source = model[1]["source"]

        def logits(encoder: Any, images: Array) -> Array:
            params = {**source["params"], "encoder": encoder}
            read = setup.classifier
            return read.predict(params, source["stats"], images, SOURCE_HEAD)

        params = source["params"]["encoder"]
        return {"fisher": scaled(fisher_of(logits, params, setup.data.labels.train))}

    def providers(self, setup, known, now):
        if not self.fisher:
            return {}
        return {"source/fisher": lambda _: now.stats[self.name]["fisher"]}

    def terms(self, setup, phase=0):
        found = [l2_sp(self.weight, fisher=self.fisher)] if self.weight else []
        return [*found, *([l2(self.head)] if self.head else [])]


def scaled(fisher: Any) -> Any:
    """The information divided by its mean over all parameters.

    The weight of L2-SP then has the same meaning with and without it. Raises
    CheckpointError if the mean is zero or not finite.
    """
    leaves = jax.tree.leaves(fisher)
    mean = sum(float(leaf.sum()) for leaf in leaves) / sum(leaf.size for leaf in leaves)
    if not 0 < mean < float("inf"):
        raise CheckpointError(
            f"the source's Fisher information has mean {mean}: its classifier does "
            "not depend on its encoder, or is not finite"
        )
    return jax.tree.map(lambda leaf: leaf / mean, fisher)


def l2_sp(weight: float, *, fisher: bool = False) -> Term:
    """w · ½ Σ_j F_j (θ_j − θ⁰_j)² over the encoder, F from `source/fisher` or 1.

    Raises UserError, listing all leaves, for a source of another shape.
    """

    def fn(view: View) -> TermResult:
        now = {"encoder": view["params"]["encoder"]}
        start = {"encoder": view["source/params"]["encoder"]}
        _check_shapes(flatten(now), flatten(start))
        importance = {"encoder": view["source/fisher"]} if fisher else None
        return quadratic(now, start, importance), {}

    reads = ("params", "source/params", *(("source/fisher",) if fisher else ()))
    return Term(
        name="l2_sp",
        fn=fn,
        reads=reads,
        weight=weight,
        penalises=ENCODER,
        encoder_only=True,
    )


def _check_shapes(now: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    wrong = [
        f"{path} is {leaf.shape}, in the source it "
        + (f"is {start[path].shape}" if path in start else "is missing")
        for path, leaf in now.items()
        if path not in start or start[path].shape != leaf.shape
    ]
    if wrong:
        raise UserError(
            "l2-sp does not fit this model: "
            + "; ".join(wrong)
            + ". Keep the source's image size and channels, or leave l2-sp out"
        )


def l2(weight: float) -> Term:
    """w · ½ Σ_j θ_j² over the heads."""

    def fn(view: View) -> TermResult:
        leaves = jax.tree.leaves(view["params"]["heads"])
        total = sum((jnp.sum(jnp.square(x)) for x in leaves), jnp.zeros(()))
        return 0.5 * total, {}

    return Term(
        name="l2_head", fn=fn, reads=("params",), weight=weight, penalises=HEADS
    )
