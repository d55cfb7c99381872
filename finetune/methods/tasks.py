"""Tasks: several classification tasks on the same images, with one shared encoder.

Each further label column is a task with its own head. The losses are added up, with
fixed weights or learned ones (`uncertain`), or the tasks' gradients on the encoder are
projected where they conflict (`pcgrad`).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.fields import at_least_0
from afterimage.finetune.losses import cross_entropy
from afterimage.finetune.method import METHODS, Method
from afterimage.finetune.setup import example_weights
from afterimage.training.stage import Term, TermResult, View

_RESERVED = ("classes", "source", "train", "target")


@METHODS.add("tasks")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tasks(Method):
    """Further label columns, each a task with its own head."""

    columns: tuple[str, ...] = ()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Columns of a csv file, or label arrays y_train_NAME in an npz file. An image may
    have no label for a task (an empty cell, -1 or NaN)."""

    weighting: Literal["fixed", "uncertainty", "pcgrad"] = "fixed"
    """How tasks are weighted. fixed: the sum of the losses; uncertainty: each task's
    weight is learned, and noisy tasks get less; pcgrad: if the gradients of two tasks
    on the encoder conflict, the conflicting part of each is removed."""

    weights: tuple[float, ...] = ()
    """Weights of the main task and of each of columns. Default: all 1."""

    def problems(self, config):
        found = [] if self.columns else ["columns: give at least one"]
        if self.weights and len(self.weights) != len(self.columns) + 1:
            found.append(
                f"weights={self.weights}: must have {len(self.columns) + 1} numbers, "
                "one for the main task and one for each of columns"
            )
        found += at_least_0(self, "weights")
        if self.weights and self.weighting == "uncertainty":
            found.append(
                "weights: cannot be set with weighting='uncertainty', which learns them"
            )
        if len(set(self.columns)) < len(self.columns):
            found.append(f"columns={self.columns}: give each name only once")
        return found + [
            f"{name!r} cannot be the name of a task; use letters, digits, - and _, "
            f"and none of {', '.join(_RESERVED)}"
            for name in self.columns
            if name in _RESERVED or not re.fullmatch(r"[\w-]+", name)
        ]

    def labelled_terms(self, setup, terms, phase):
        """The main task's loss, weighted, and the cross-entropy of every other task."""
        config, tasks = setup.config, setup.data.labels.train.tasks
        weights = self.weights or (1.0,) * (1 + len(self.columns))
        own = [term.times(weights[0]) for term in terms]
        more = [
            cross_entropy(
                len(tasks[column].class_names),
                head=column,
                task=column,
                weight=weight,
                label_smoothing=config.label_smoothing,
                examples=example_weights(config),
            )
            for column, weight in zip(self.columns, weights[1:], strict=True)
        ]
        if self.weighting == "uncertainty":
            return [uncertain(term) for term in [*own, *more]]
        return [*own, *more]

    def combine(self):
        return pcgrad if self.weighting == "pcgrad" else None


def uncertain(term: Term) -> Term:
    """e^(−s) ℓ + s / 2 with a learned s = log σ², from 0 (Kendall et al. 2018,
    "Multi-task learning using uncertainty to weigh losses", its classification form).

    At its optimum s = log 2ℓ, so a task has weight 1 / 2ℓ: tasks that stay hard weigh
    less. The metric NAME_weight is e^(−s), and NAME_loss the mean of ℓ.
    """

    def fn(view: View) -> TermResult:
        each, metrics = term.fn(view)
        s = view["params"]["terms"][term.name]["log_variance"]
        weight = jnp.exp(-s)
        metrics = {
            **metrics,
            f"{term.name}_weight": weight,
            f"{term.name}_loss": each.mean(),
        }
        # Without labels there is no loss, and s must not change.
        return weight * each + jnp.where((each != 0).any(), s / 2, 0.0), metrics

    return dataclasses.replace(
        term,
        fn=fn,
        reads=("params", *term.reads),
        params={"log_variance": jnp.zeros(())},
    )


def pcgrad(
    rows: Mapping[str, Array], key: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Projected conflicting gradients: (gradients, metrics) of several tasks' rows.

    `rows` are [1 + T, ...] by path: the gradient of terms without a task, then one per
    task. On the encoder, for each task i and every other task j in random order, where
    ⟨g_i, g_j⟩ < 0, g_i ← g_i − ⟨g_i, g_j⟩ / ‖g_j‖² g_j with the original g_j; then all
    are summed (Yu et al. 2020, "Gradient surgery for multi-task learning", algorithm
    1). Other parameters get the plain sum: a head has only its own task's gradient.
    The metric `conflicts` is the share of pairs with ⟨g_i, g_j⟩ < 0.
    """
    shared = {path: row for path, row in rows.items() if path.startswith("encoder/")}
    tasks = next(iter(rows.values())).shape[0] - 1
    gram = jnp.zeros((tasks, tasks))
    for row in shared.values():
        flat = row[1:].reshape(tasks, -1).astype(jnp.float32)
        gram = gram + flat @ flat.T
    # Everything stays in the span of the rows, so their coefficients suffice.
    weights = jnp.zeros(tasks)
    for i in range(tasks):
        mine = jnp.eye(tasks)[i]
        order = jax.random.permutation(jax.random.fold_in(key, i), tasks)
        for j in order:
            inner = mine @ gram[:, j]
            step = jnp.minimum(inner, 0.0) / jnp.maximum(gram[j, j], 1e-30)
            mine = mine.at[j].add(-jnp.where(j == i, 0.0, step))
        weights = weights + mine
    pairs = jnp.triu(gram < 0, 1).sum() / max(tasks * (tasks - 1) // 2, 1)
    found = {
        path: row[0] + jnp.tensordot(weights, row[1:], 1)
        if path in shared
        else row.sum(0)
        for path, row in rows.items()
    }
    return found, {"conflicts": pairs}
