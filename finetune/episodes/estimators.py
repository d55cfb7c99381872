"""Gradients over episodes: MAML, its first-order form, ANIL, Reptile.

Each replaces the gradient of a training step and leaves everything else of it as it
is: groups, optimiser, schedule, skipped steps. With the loss L, a start θ and an
episode (S, Q) of support and queries, φ(θ) is θ after `steps` steps of gradient descent
on L(·; S), and the mean over a batch's episodes is taken of

    maml              ∇_θ L(φ(θ); Q)                         (Finn et al. 2017)
    maml-first-order  ∇_φ L(φ; Q) at φ = φ(θ)                (the same)
    anil              as maml; only the head moves to φ      (Raghu et al. 2020)
    proto-maml        as maml; the head begins as the nearest mean of S, as a function
                      of the encoder                         (Triantafillou et al. 2020)
    reptile           θ − φ(θ), φ on S and Q together        (Nichol et al. 2018)

θ has a layer for each class of an episode; the numbers of the classes are drawn at
random for each episode, as in Finn's code. With `tied_head` maml, maml-first-order and
anil begin with the same layer for every class, their mean (`one_for_all`; Ye & Chao
2022, "How to Train Your MAML to Excel in Few-Shot Classification", §5). The first step
then moves the head alone: the gradients that it sends back to the encoder sum to zero.
The inner steps are unrolled: a convolution's gradient in a scan is slow on a CPU.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.finetune.episodes.sampler import Shape
from afterimage.training.step import Estimator

Leaves = dict[str, Array]
Loss = Callable[..., tuple[Array, Any]]
"""loss(leaves, stats, batch, key) -> (value, (metrics, stats))"""
Start = Callable[[Leaves, Any, Any], Leaves]
"""start(leaves, stats, support) -> leaves: where an episode's descent begins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Gradient descent on a support: φ ← φ − lr ∇L(φ; S), `steps` times.

    Only leaves whose path begins with `only` move. `first_order` takes the steps'
    gradients as constants. With `start` the descent begins where that leads, and is
    differentiated through it.
    """

    steps: int
    lr: float
    first_order: bool = False
    only: str = ""
    start: Start | None = None

    def __call__(
        self, loss: Loss, leaves: Leaves, stats: Any, support: Any, key: Array
    ) -> Leaves:
        if self.start is not None:
            leaves = self.start(leaves, stats, support)
        moving = {p: leaf for p, leaf in leaves.items() if p.startswith(self.only)}
        still = {p: leaf for p, leaf in leaves.items() if p not in moving}

        def inner(moving: Leaves, key: Array) -> Array:
            return loss({**still, **moving}, stats, support, key)[0]

        for number in range(self.steps):
            slope = jax.grad(inner)(moving, jax.random.fold_in(key, number))
            if self.first_order:
                slope = jax.lax.stop_gradient(slope)
            moving = jax.tree.map(lambda x, g: x - self.lr * g, moving, slope)
        return {**still, **moving}


def one_for_all(leaves: Leaves, layer: str) -> Leaves:
    """The leaves with the mean over the classes in place of each class's own `kernel`
    and `bias` below the path `layer`; differentiated, the mean is what learns."""
    own = {name: leaves[f"{layer}/{name}"] for name in ("kernel", "bias")}
    means = {
        f"{layer}/{name}": jnp.broadcast_to(x.mean(-1, keepdims=True), x.shape)
        for name, x in own.items()
    }
    return {**leaves, **means}


def adapted_gradient(
    shape: Shape, adaptation: Adaptation, *, vectorised: bool | None = None
) -> Estimator:
    """The gradient of the queries' loss after the adaptation: MAML and its kin.

    `vectorised` runs the episodes side by side (vmap) in place of one after the other;
    by default on accelerators only. Every episode then has kernels of its own, which
    makes grouped convolutions: on a CPU four episodes of 80 images took 2.1 times as
    long as one after the other (conv, 28 px, two cores, both interleaved).
    """

    def estimator(loss: Loss) -> Callable[..., Any]:
        def one(leaves, stats, episode, key):
            support, queries = _split(episode, shape)
            inner_key, outer_key = jax.random.split(key)

            def outer(leaves):
                adapted = adaptation(loss, leaves, stats, support, inner_key)
                value, (metrics, _) = loss(adapted, stats, queries, outer_key)
                return value, (metrics, stats)

            return jax.value_and_grad(outer, has_aux=True)(leaves)

        return _over_episodes(one, shape, vectorised)

    return estimator


def reptile_gradient(
    shape: Shape, adaptation: Adaptation, *, vectorised: bool | None = None
) -> Estimator:
    """θ − φ(θ), φ adapted to all images of the episode; the value is L(φ; all)."""

    def estimator(loss: Loss) -> Callable[..., Any]:
        def one(leaves, stats, episode, key):
            adapted = adaptation(loss, leaves, stats, episode, key)
            value, (metrics, _) = loss(adapted, stats, episode, key)
            back = jax.tree.map(jnp.subtract, leaves, adapted)
            return (value, (metrics, stats)), back

        return _over_episodes(one, shape, vectorised)

    return estimator


def _split(episode: Mapping[str, Array], shape: Shape) -> tuple[Any, Any]:
    """(support, queries) of one episode's rows."""
    first = {name: rows[: shape.support] for name, rows in episode.items()}
    rest = {name: rows[shape.support :] for name, rows in episode.items()}
    return first, rest


def _over_episodes(
    one: Callable[..., Any], shape: Shape, vectorised: bool | None
) -> Callable[..., Any]:
    """The mean of `one(leaves, stats, episode, key)` over a batch's episodes; the
    statistics are left as they are."""
    if vectorised is None:
        vectorised = jax.default_backend() != "cpu"

    def gradient(leaves, stats, batch, key):
        count = len(batch["label"]) // shape.rows
        episodes = {
            name: rows.reshape(count, shape.rows, *rows.shape[1:])
            for name, rows in batch.items()
        }
        keys = jax.random.split(key, count)

        def plain(episode, key):
            (value, (metrics, _)), slope = one(leaves, stats, episode, key)
            return value, metrics, slope

        if vectorised:
            found = jax.vmap(plain)(episodes, keys)
        else:
            each = [
                plain({name: rows[i] for name, rows in episodes.items()}, keys[i])
                for i in range(count)
            ]
            found = jax.tree.map(lambda *parts: jnp.stack(parts), *each)
        value, metrics, slope = jax.tree.map(lambda x: x.mean(0), found)
        return (value, (metrics, stats)), slope

    return gradient
