"""CDAN and CDAN+E: an adversary on features and predictions together.

Like DANN, with D(R_λ T(f, g)), T = f ⊗ g, g the predicted probabilities without
gradient; above 4096 products T is a random map to 1024 (`multilinear`). +E weights each
example by 1 + e^(−H(g)), normalised in each domain separately; H's gradient is reversed
as well (Long et al. 2018, "Conditional adversarial domain adaptation", and the authors'
code).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._adversarial import (
    HIDDEN,
    Discriminator,
    adversary,
    against,
    ramp,
    reverse_gradient,
    told_apart,
)
from afterimage.finetune.methods._alignment import FEATURES, LOGITS, Alignment
from afterimage.models.classifier import HEAD
from afterimage.models.encoder import Network
from afterimage.training.stage import Term, TermResult, View

MOST_JOINT = 4096
RANDOM_WIDTH = 1024


@METHODS.add("cdan", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CDAN(Alignment):
    """An adversary sees features and predictions together (CDAN, CDAN+E)."""

    entropy: bool = False
    """Give confident predictions more weight (CDAN+E)."""

    def terms(self, setup, phase=0):
        classes, seed = setup.heads[HEAD].classes, setup.config.seed
        settings: dict[str, Any] = {"by_entropy": self.entropy, "seed": seed}
        return [cdan(setup.width, classes, self.weight, **settings)]


def multilinear(features: Float[Array, "b d"], g: Float[Array, "b c"], fixed: Any):
    """f ⊗ g, flat; or, with `fixed`, (f R_f) ⊙ (g R_g) / √D (Long et al. 2018, CDAN).

    The products keep their expectation: E⟨T, T'⟩ = ⟨f, f'⟩⟨g, g'⟩ for R of independent
    standard normals.
    """
    if not fixed:
        return (features[:, :, None] * g[:, None, :]).reshape(len(features), -1)
    f, g = features @ fixed["features"], g @ fixed["classes"]
    return f * g / np.sqrt(f.shape[-1])


def entropy(logits: Float[Array, "b c"]) -> Float[Array, " b"]:
    """H = −Σ_c p_c log p_c of the softmax, nats."""
    logp = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(logp) * logp, -1)


def cdan(
    width: int,
    classes: int,
    weight: float = 1.0,
    *,
    by_entropy: bool = False,
    seed: int = 0,
    hidden: int = HIDDEN,
) -> Term:
    """The term of CDAN on `width` features, or of CDAN+E with `by_entropy`."""
    name = "cdan_e" if by_entropy else "cdan"
    rngs = nnx.Rngs(seed)
    random = width * classes > MOST_JOINT
    joint = RANDOM_WIDTH if random else width * classes
    network, params, _ = Network.create(Discriminator(joint, hidden, rngs=rngs))
    if random:
        params["fixed"] = _random_maps(width, classes, seed)

    def fn(view: View) -> TermResult:
        own, scale = dict(view["params"]["terms"][name]), ramp(view["progress"])
        fixed = own.pop("fixed", None)
        features, logits = (
            jnp.concatenate([view[name] for name in pair])
            for pair in (FEATURES, LOGITS)
        )
        g = jax.nn.softmax(jax.lax.stop_gradient(logits))
        joint = reverse_gradient(multilinear(features, g, fixed), scale)
        found, _ = network.apply(own, {}, joint)
        sure = jnp.ones(len(logits))
        if by_entropy:
            sure = 1.0 + jnp.exp(-reverse_gradient(entropy(logits), scale))
        n = len(view[FEATURES[0]])
        (source, other), (of_source, of_other) = (
            jnp.split(found, [n]),
            jnp.split(sure, [n]),
        )
        value = _mean(against(source, False), of_source)
        value = value + _mean(against(other, True), of_other)
        return value / 2, {f"{name}_told": told_apart(source, other)}

    return adversary(name, fn, (*FEATURES, *LOGITS), params, weight=weight)


def _mean(values: Array, weights: Array) -> Array:
    """Σ w v / Σ w, the sum of weights without gradient."""
    return jnp.sum(weights * values) / jax.lax.stop_gradient(jnp.sum(weights))


def _random_maps(width: int, classes: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    drawn = {"features": (width, RANDOM_WIDTH), "classes": (classes, RANDOM_WIDTH)}
    return {
        name: jnp.asarray(rng.standard_normal(shape, np.float32))
        for name, shape in drawn.items()
    }
