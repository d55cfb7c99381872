"""Learning one task after another: what is lost on new images, what holds the old."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from afterimage.finetune.terms.anchored import quadratic, soft_kl
from afterimage.finetune.terms.classification import smoothed_cross_entropy
from afterimage.training.terms import Term, TermResult, View

LEARNED = "^(encoder|heads)/"


@dataclasses.dataclass(frozen=True)
class Outlet:
    """Where classes are told apart: a head, and which of its outputs they are."""

    head: str
    columns: tuple[int, ...]
    classes: tuple[int, ...]
    """The classes' numbers in the data, in the order of `columns`."""

    def of(self, logits: Array) -> Array:
        """[b, columns] of the head's logits."""
        return logits[:, np.asarray(self.columns)]

    def local(self, labels: Array) -> Array:
        """Labels as positions in `columns`, −1 for classes of other outlets."""
        places = jnp.argmax(labels[:, None] == np.asarray(self.classes)[None], -1)
        known = (labels[:, None] == np.asarray(self.classes)[None]).any(-1)
        return jnp.where(known, places, -1)


def task_loss(
    outlets: Sequence[Outlet], *, stream: str, name: str, weight: float
) -> Term:
    """ℓ(i) = −log softmax(z_h[columns])[y_i], h the outlet of the class y_i.

    One outlet of all classes seen so far is the class-incremental loss, one a task the
    task-incremental one (van de Ven et al. 2022, "Three types of incremental
    learning"): classes of other tasks do not compete.
    """
    names = {outlet: f"{stream}/logits/{outlet.head}" for outlet in outlets}

    def fn(view: View) -> TermResult:
        labels = view[f"{stream}/label"]
        total, correct = jnp.zeros(labels.shape), jnp.zeros(labels.shape, bool)
        for outlet, source in names.items():
            logits, local = outlet.of(view[source]), outlet.local(labels)
            each = smoothed_cross_entropy(logits, local, 0.0)
            total = total + jnp.where(local >= 0, each, 0.0)
            correct = correct | (logits.argmax(-1) == local)
        key = "accuracy" if stream == "train" else f"{stream}_accuracy"
        return total, {key: correct.mean()}

    reads = (f"{stream}/label", *dict.fromkeys(names.values()))
    return Term(name=name, fn=fn, reads=reads, weight=weight)


def elastic(weight: float) -> Term:
    """EWC: w · ½ Σ_j F_j (θ_j − θ*_j)² over encoder and heads.

    F is the Fisher information summed over the earlier tasks and θ* its weighted mean
    of their parameters, so that the gradient is that of a penalty for each task
    (Kirkpatrick et al. 2017; see `afterimage.finetune.continual.memory.consolidated`).
    """

    def fn(view: View) -> TermResult:
        now = {name: view["params"][name] for name in ("encoder", "heads")}
        return quadratic(now, view["ewc/anchor"], view["ewc/importance"]), {}

    return Term(
        name="ewc",
        fn=fn,
        reads=("params", "ewc/anchor", "ewc/importance"),
        weight=weight,
        penalises=LEARNED,
    )


def without_forgetting(
    outlets: Sequence[Outlet], weight: float, *, temperature: float = 2.0
) -> Term:
    """LwF: w · Σ_h T² KL(p°_h ‖ p_h) on the new task's images, h the old outlets.

    p° from the model as it was before this task (Li & Hoiem 2016, "Learning without
    forgetting", T = 2). T² keeps the gradient's size (Hinton et al. 2015).
    """

    def fn(view: View) -> TermResult:
        each = [
            soft_kl(
                outlet.of(view[f"previous/logits/{outlet.head}"]),
                outlet.of(view[f"train/logits/{outlet.head}"]),
                temperature,
            )
            for outlet in outlets
        ]
        return jnp.sum(jnp.stack(each), 0), {}

    heads = dict.fromkeys(outlet.head for outlet in outlets)
    reads = tuple(f"{who}/logits/{h}" for who in ("previous", "train") for h in heads)
    return Term(name="lwf", fn=fn, reads=reads, weight=weight)
