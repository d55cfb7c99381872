"""EWC: keeps parameters that mattered to earlier tasks near their values.

w · ½ Σ_j F_j (θ_j − θ*_j)² over encoder and heads, F the Fisher information summed over
the earlier tasks and θ* the mean of their parameters weighted by it, so that the
gradient equals that of one penalty per task (Kirkpatrick et al. 2017, "Overcoming
catastrophic forgetting in neural networks"; see `consolidated`).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.fields import above_0
from afterimage.finetune.method import METHODS, Method
from afterimage.finetune.methods._fisher import fisher_of, quadratic
from afterimage.training.stage import Term, TermResult, View

Tree = dict[str, Any]
LEARNED = "^(encoder|heads)/"
_PARTS = ("encoder", "heads")


@METHODS.add("ewc", group="continual")
@dataclasses.dataclass(frozen=True, kw_only=True)
class EWC(Method):
    """Keeps parameters that mattered to earlier tasks near their values (EWC)."""

    weight: float = 1e3
    """Weight of the penalty. Needs --weight-decay 0."""

    def problems(self, config):
        return above_0(self, "weight")

    def state(self, setup):
        """Before the first task, no parameter matters."""
        learned = {name: setup.params[name] for name in _PARTS}
        kept = {"importance": learned, "anchor": learned}
        # Leaves yet to be loaded are only shapes.
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), kept)

    def remember(self, setup, state, phase):
        """Adds the task's Fisher information, measured in evaluation mode.

        It is exact over the task's classes, each weighted by the model's prediction.
        """
        plan, stats = setup.plan, state["stats"]
        piece = plan.tasks.slices(range(phase + 1))[-1]
        images = plan.tasks.images(setup.data.labels.train, plan.phases[phase])
        learned = {name: state["params"][name] for name in _PARTS}

        def logits(params: Tree, images: Array) -> Array:
            found = setup.classifier.predict(params, stats, images, piece.head)
            return piece.of(found)

        kept = stats[self.name]
        fisher = fisher_of(logits, learned, images)
        importance, anchor = consolidated(
            kept["importance"], kept["anchor"], fisher, learned
        )
        return {"importance": importance, "anchor": anchor}

    def providers(self, setup, known, now):
        kept = now.stats[self.name]
        return {
            "ewc/importance": lambda _: kept["importance"],
            "ewc/anchor": lambda _: kept["anchor"],
        }

    def terms(self, setup, phase=0):
        return [elastic(self.weight)] if phase else []


def elastic(weight: float) -> Term:
    """w · ½ Σ_j F_j (θ_j − θ*_j)² over encoder and heads."""

    def fn(view: View) -> TermResult:
        now = {name: view["params"][name] for name in _PARTS}
        return quadratic(now, view["ewc/anchor"], view["ewc/importance"]), {}

    return Term(
        name="ewc",
        fn=fn,
        reads=("params", "ewc/anchor", "ewc/importance"),
        weight=weight,
        penalises=LEARNED,
    )


def consolidated(
    importance: Tree, anchor: Tree, fisher: Tree, params: Tree
) -> tuple[Tree, Tree]:
    """(F, θ*) with one more task: F' = F + F_t, θ*' = θ* + F_t / F' (θ_t − θ*).

    Σ_t F_t (θ − θ_t)² and F' (θ − θ*')² differ by a constant, so a single penalty has
    the gradient of one per task, and its memory does not grow. Where F' = 0 the anchor
    is the newest parameter.
    """
    both = jax.tree.map(jnp.add, importance, fisher)

    def moved(anchor: Array, total: Array, new: Array, now: Array) -> Array:
        share = jnp.where(total > 0, new / jnp.where(total > 0, total, 1.0), 1.0)
        return anchor + share * (now - anchor)

    return both, jax.tree.map(moved, anchor, both, fisher, params)
