"""LwF: keeps the earlier model's predictions on the new task's images.

w · Σ_h T² KL(p°_h ‖ p_h), h the slices of the heads that predict earlier tasks, p° from
the model before this task (Li & Hoiem 2016, "Learning without forgetting", T = 2).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from afterimage.fields import above_0
from afterimage.finetune.losses import soft_kl
from afterimage.finetune.method import METHODS, Method
from afterimage.finetune.tasks.continual import HeadSlice
from afterimage.training.stage import Context, Term, TermResult, View

_PARTS = ("encoder", "heads")


@METHODS.add("lwf", group="continual")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LwF(Method):
    """Keeps the earlier model's predictions (learning without forgetting)."""

    weight: float = 1.0
    """Weight relative to the loss of the labels."""

    temperature: float = 2.0
    """Temperature that softens both predictions."""

    @property
    def trains_earlier_heads(self) -> bool:
        return True

    def problems(self, config):
        return above_0(self, "weight", "temperature")

    def state(self, setup):
        kept = _model(setup.params, setup.stats)
        # Leaves yet to be loaded are only shapes.
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), kept)

    def remember(self, setup, state, phase):
        """The current model."""
        # Copies: the state is donated, and one buffer cannot be donated twice.
        return jax.tree.map(jnp.copy, _model(state["params"], state["stats"]))

    def providers(self, setup, known, now):
        """`previous/logits/HEAD` of the training images.

        They come from the remembered model in evaluation mode.
        """
        read, kept = setup.classifier, now.stats[self.name]
        params, stats = kept["params"], kept["stats"]

        def maps(ctx: Context) -> Any:
            return read.maps(params, stats, ctx["train/image"])[0]

        def logits(head: str) -> Callable[[Context], Any]:
            return lambda ctx: read.logits(params, stats, ctx["previous/maps"], head)

        return {
            "previous/maps": maps,
            **{f"previous/logits/{head}": logits(head) for head in read.heads},
        }

    def terms(self, setup, phase=0):
        if not phase:
            return []
        old = setup.plan.old_slices(phase)
        return [without_forgetting(old, self.weight, temperature=self.temperature)]


def _model(params: Any, stats: Any) -> dict[str, Any]:
    both = {"params": params, "stats": stats}
    return {what: {name: tree[name] for name in _PARTS} for what, tree in both.items()}


def without_forgetting(
    slices: Sequence[HeadSlice], weight: float, *, temperature: float = 2.0
) -> Term:
    """w · Σ_h T² KL(p°_h ‖ p_h), h the old `slices`."""

    def fn(view: View) -> TermResult:
        each = [
            soft_kl(
                piece.of(view[f"previous/logits/{piece.head}"]),
                piece.of(view[f"train/logits/{piece.head}"]),
                temperature,
            )
            for piece in slices
        ]
        return jnp.sum(jnp.stack(each), 0), {}

    heads = dict.fromkeys(piece.head for piece in slices)
    reads = tuple(f"{who}/logits/{h}" for who in ("previous", "train") for h in heads)
    return Term(name="lwf", fn=fn, reads=reads, weight=weight)
