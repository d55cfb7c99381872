"""Several tasks at once: how their losses, or their gradients, are weighed."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.training.terms import Term, TermResult, View


def uncertain(term: Term) -> Term:
    """e^(−s) ℓ + s / 2 with a learned s = log σ², from 0 (Kendall et al. 2018,
    "Multi-task learning using uncertainty to weigh losses", its classification form).

    At its optimum s = log 2ℓ, so that a task weighs 1 / 2ℓ: one that stays hard weighs
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
        # Without a label there is no loss: nothing to be uncertain of.
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

    `rows` are [1 + T, ...] by path: the gradient of what belongs to no task, then one a
    task. On the encoder, for each task i and every other task j in random order, where
    ⟨g_i, g_j⟩ < 0, g_i ← g_i − ⟨g_i, g_j⟩ / ‖g_j‖² g_j with the g_j that j began with;
    then all are summed (Yu et al. 2020, "Gradient surgery for multi-task learning",
    algorithm 1). Other parameters take the plain sum: a head has one task's gradient.
    The metric `conflicts` is the share of pairs with ⟨g_i, g_j⟩ < 0.
    """
    shared = {path: row for path, row in rows.items() if path.startswith("encoder/")}
    tasks = next(iter(rows.values())).shape[0] - 1
    gram = jnp.zeros((tasks, tasks))
    for row in shared.values():
        flat = row[1:].reshape(tasks, -1).astype(jnp.float32)
        gram = gram + flat @ flat.T
    # All that happens lies in the span of the rows: their coefficients suffice.
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
