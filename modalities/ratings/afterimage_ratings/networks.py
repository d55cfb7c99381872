"""AutoRec and Mult-VAE: from a row of ratings to a score for every item.

Parameters are nested dicts: `items` has the layers with a row for each item, `inner`
the rest, which fits any items.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """Which network, and how it reads ratings."""

    name: str
    """mult-vae or autorec."""
    width: int
    latent: int
    like: float | None
    """The lowest rating that means liking; None: every one."""
    mean: float = 0.0
    std: float = 1.0
    """Of the training ratings, for autorec."""

    def fresh(self, items: int, seed: int) -> Params:
        """Random parameters, Glorot's kernels."""
        rng = np.random.default_rng(seed)

        def kernel(*shape: int) -> np.ndarray:
            limit = np.sqrt(6 / sum(shape))
            return rng.uniform(-limit, limit, shape).astype(np.float32)

        def bias(size: int) -> np.ndarray:
            return np.zeros(size, np.float32)

        width, latent = self.width, self.latent
        inner: Params = {"hidden": {"bias": bias(width)}}
        if self.name == "mult-vae":
            inner["code"] = {
                "kernel": kernel(width, 2 * latent),
                "bias": bias(2 * latent),
            }
            inner["decoder"] = {"kernel": kernel(latent, width), "bias": bias(width)}
        return {
            "items": {
                "input": {"kernel": kernel(items, width)},
                # An item is a row here too, for moving it.
                "output": {"kernel": kernel(items, width), "bias": bias(items)},
            },
            "inner": inner,
        }

    def liked(self, ratings: Float[Array, "b n"]) -> Bool[Array, "b n"]:
        """Which items each user likes; NaN means no rating."""
        if self.like is None:
            return ~jnp.isnan(ratings)
        return ratings >= self.like  # False for NaN

    def scores(
        self, params: Params, ratings: Float[Array, "b n"]
    ) -> Float[Array, "b n"]:
        """mult-vae: log-probabilities of items; autorec: predicted ratings."""
        if self.name == "mult-vae":
            return self._variational(params, ratings, None, 0.0)[0]
        return self._predicted(params, ratings) * self.std + self.mean

    def losses(
        self, params: Params, ratings: Float[Array, "b n"], key: Array, dropout: float
    ) -> dict[str, Array]:
        """mult-vae: {nll, kl} of each user, in nats; autorec: {squared_error}.

        With x the items that a user likes, nll = -Σ_i x_i log p_i and kl = KL(N(μ, σ²)
        || N(0, 1)). The squared error is the mean over the known ratings of the batch.
        """
        if self.name == "mult-vae":
            logs, kl = self._variational(params, ratings, key, dropout)
            return {"nll": -(self.liked(ratings) * logs).sum(1), "kl": kl}
        known = ~jnp.isnan(ratings)
        wrong = jnp.where(known, ratings - self.mean, 0) / self.std
        wrong = jnp.where(known, wrong - self._predicted(params, ratings), 0)
        return {"squared_error": jnp.square(wrong).sum() / jnp.maximum(known.sum(), 1)}

    def _variational(
        self, params: Params, ratings: Array, key: Array | None, dropout: float
    ) -> tuple[Float[Array, "b n"], Float[Array, " b"]]:
        """(log-probabilities, KL); without a key the code is its mean."""
        x = self.liked(ratings).astype(jnp.float32)
        x = x / jnp.sqrt(jnp.maximum(x.sum(1, keepdims=True), 1))
        keys = None if key is None else jax.random.split(key)
        if keys is not None:
            keep = jax.random.bernoulli(keys[0], 1 - dropout, x.shape)
            x = jnp.where(keep, x / (1 - dropout), 0)
        inner = params["inner"]
        hidden = jnp.tanh(_input(params, x))
        mean, log_variance = jnp.split(_dense(inner["code"], hidden), 2, 1)
        kl = (jnp.exp(log_variance) + jnp.square(mean) - 1 - log_variance).sum(1) / 2
        code = mean
        if keys is not None:
            noise = jax.random.normal(keys[1], mean.shape)
            code = mean + jnp.exp(log_variance / 2) * noise
        hidden = jnp.tanh(_dense(inner["decoder"], code))
        return jax.nn.log_softmax(_output(params, hidden)), kl

    def _predicted(self, params: Params, ratings: Array) -> Float[Array, "b n"]:
        """Standardised ratings of all items."""
        x = jnp.where(jnp.isnan(ratings), 0, (ratings - self.mean) / self.std)
        return _output(params, jax.nn.sigmoid(_input(params, x)))


def _dense(layer: Mapping[str, Array], x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"][None]


def _input(params: Params, x: Array) -> Array:
    hidden = x @ params["items"]["input"]["kernel"]
    return hidden + params["inner"]["hidden"]["bias"][None]


def _output(params: Params, hidden: Array) -> Array:
    layer = params["items"]["output"]
    return hidden @ layer["kernel"].T + layer["bias"][None]


def moved(
    params: Params, known: Sequence[str], items: Sequence[str]
) -> tuple[Params, int]:
    """(parameters for other items, how many of them were known).

    The inner layers are kept. An item with the same id keeps its rows; another one
    starts with the mean of all known rows, so as an average item. Known items that are
    not among `items` are left out.
    """
    place = {name: row for row, name in enumerate(known)}
    pairs = [(new, place[name]) for new, name in enumerate(items) if name in place]
    new, old = np.array(pairs, np.int64).reshape(-1, 2).T

    def rows(stored: np.ndarray) -> np.ndarray:
        made = np.repeat(stored.mean(0, keepdims=True), len(items), 0)
        made[new] = stored[old]
        return made

    layers = jax.tree.map(rows, params["items"])
    return {"items": layers, "inner": params["inner"]}, len(new)
