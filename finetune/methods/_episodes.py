"""Shared by methods of meta-learning: gradient descent within an episode.

With the loss L, initial weights θ and an episode (S, Q) of support and queries, φ(θ) is
θ after some steps of gradient descent on L(·; S). The head of θ has one output for each
class of an episode; classes are numbered at random in each episode, as in Finn's code.
The inner steps are unrolled: a convolution's gradient in a scan is slow on a CPU.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.fields import above_0, at_least_1
from afterimage.finetune.losses import cross_entropy, smoothed_cross_entropy
from afterimage.finetune.method import Method, Model
from afterimage.finetune.setup import RunSetup
from afterimage.finetune.tasks._sampler import Sampler, Shape
from afterimage.models.classifier import HEAD
from afterimage.models.ops import by_platform
from afterimage.training.stage import Term
from afterimage.training.step import Estimator, plain_gradient

LAST = f"heads/{HEAD}/linear"
Leaves = dict[str, Array]
Loss = Callable[..., tuple[Array, Any]]
"""loss(leaves, stats, batch, key) -> (value, (metrics, stats))"""
Start = Callable[[Leaves, Any, Any], Leaves]
"""start(leaves, stats, support) -> leaves: where an episode's descent starts."""
Score = Callable[[int], float]
"""score(number) -> accuracy on the episode with this number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeMethod(Method):
    """Learns from episodes; `setup.plan` is the sampler of training episodes."""

    trains_head: ClassVar[bool] = True

    def term(self, setup: RunSetup) -> Term:
        """The loss of the images of an episode."""
        return cross_entropy(setup.plan.shape.ways, head=HEAD)

    def gradient(self, setup: RunSetup) -> Estimator:
        """How a step's gradient is computed from its episodes."""
        return plain_gradient

    def scorer(self, setup: RunSetup) -> Callable[[Sampler, Model], Score]:
        """scorer(setup)(sampler, model) scores episodes; jitted only once."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerSteps(EpisodeMethod):
    """Takes a few steps of gradient descent within each episode."""

    inner_steps: int = 2
    """Steps of gradient descent within an episode. If every class starts with the same
    head weights, the first step changes only the head; with a single step, the encoder
    therefore learns only between episodes."""

    inner_lr: float = 0.01
    """Learning rate of the inner steps."""

    test_inner_steps: int | None = None
    """Number of inner steps for scoring held-out episodes. Default: inner_steps."""

    def problems(self, config):
        found = at_least_1(self, "inner_steps", "test_inner_steps")
        return found + above_0(self, "inner_lr")

    def adaptation(self, setup: RunSetup) -> "Adaptation":
        """The gradient descent within an episode."""
        return Adaptation(steps=self.inner_steps, lr=self.inner_lr)

    def scorer(self, setup):
        steps = self.test_inner_steps or self.inner_steps
        adaptation = dataclasses.replace(self.adaptation(setup), steps=steps)
        shape: Shape = setup.plan.shape
        of_support = jnp.asarray(shape.labels[: shape.support])
        of_queries = shape.labels[shape.support :]

        def logits(leaves: Leaves, stats: Any, images: Any) -> Any:
            return setup.classifier.predict(unflatten(leaves), stats, images, HEAD)

        def loss(leaves: Leaves, stats: Any, given: Any, key: Any) -> Any:
            found = logits(leaves, stats, given["image"])
            return smoothed_cross_entropy(found, of_support, 0.0).mean(), None

        def predict(leaves: Leaves, stats: Any, images: Any) -> Any:
            """Classes of an episode's queries, after adapting to its support."""
            key = jax.random.key(0)  # evaluation uses no randomness
            given = {"image": images[: shape.support]}
            adapted = adaptation(loss, leaves, stats, given, key)
            return logits(adapted, stats, images[shape.support :]).argmax(-1)

        predicted = setup.runner.jit(predict)

        def scored(sampler: Sampler, model: Model) -> Score:
            params, stats = model
            leaves = flatten({name: params[name] for name in ("encoder", "heads")})

            def score(number: int) -> float:
                images = sampler.images.gather(sampler.episode(number))
                return float((predicted(leaves, stats, images) == of_queries).mean())

            return score

        return scored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Gradient descent on a support: φ ← φ − lr ∇L(φ; S), `steps` times.

    Only leaves whose path begins with `only` change. `first_order` treats the steps'
    gradients as constants. With `start`, the descent starts from its result, and is
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


def adapted_gradient(
    shape: Shape, adaptation: Adaptation, *, vectorised: bool | None = None
) -> Estimator:
    """The gradient of the queries' loss after the adaptation: MAML and its variants.

    `vectorised` runs the episodes in parallel (vmap), not one after another; by default
    where the program is lowered for an accelerator. Every episode then has its own
    kernels, which makes the convolutions grouped: on a CPU four episodes of 80 images
    took 2.1 times as long as one after another (conv, 28 px, two cores, both
    interleaved).
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

        return over_episodes(one, shape, vectorised)

    return estimator


def _split(episode: Mapping[str, Array], shape: Shape) -> tuple[Any, Any]:
    """(support, queries) of one episode's rows."""
    first = {name: rows[: shape.support] for name, rows in episode.items()}
    rest = {name: rows[shape.support :] for name, rows in episode.items()}
    return first, rest


def over_episodes(
    one: Callable[..., Any], shape: Shape, vectorised: bool | None
) -> Callable[..., Any]:
    """The mean of `one(leaves, stats, episode, key)` over a batch's episodes.

    The statistics do not change.
    """

    def gradient(leaves, stats, batch, key):
        count = len(batch["label"]) // shape.rows
        episodes = {
            name: rows.reshape(count, shape.rows, *rows.shape[1:])
            for name, rows in batch.items()
        }

        def plain(episode, key):
            (value, (metrics, _)), slope = one(leaves, stats, episode, key)
            return value, metrics, slope

        def in_turn(episodes, keys):
            each = [
                plain({name: rows[i] for name, rows in episodes.items()}, keys[i])
                for i in range(count)
            ]
            return jax.tree.map(lambda *parts: jnp.stack(parts), *each)

        together, given = jax.vmap(plain), (episodes, jax.random.split(key, count))
        if vectorised is None:
            found = by_platform(in_turn, together, *given)
        else:
            found = (together if vectorised else in_turn)(*given)
        value, metrics, slope = jax.tree.map(lambda x: x.mean(0), found)
        return (value, (metrics, stats)), slope

    return gradient
