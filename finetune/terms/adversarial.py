"""Terms with an adversary: a discriminator tells two streams apart, and the encoder
learns, through a reversed gradient, that it cannot.

The discriminator has two classes, source 0 and target 1, and two logits under one
softmax. (One unit under a softmax is always 1: such an adversary learns nothing.)
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import layers
from afterimage.models.encoder import Network
from afterimage.training.terms import Term, TermResult, View

HIDDEN = 128
MOST_JOINT = 4096
RANDOM_WIDTH = 1024


@jax.custom_jvp
def reverse_gradient(x: Array, scale: Array) -> Array:
    """x; its derivative is −scale · dx (Ganin et al. 2016, gradient reversal)."""
    del scale
    return x


@reverse_gradient.defjvp
def _reversed(primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, scale = primals
    # Linear in the tangent, so that it transposes: grad, jvp and vmap all work.
    return x, -scale * tangents[0]


def ramp(progress: Array) -> Array:
    """λ = 2 / (1 + e^(−10p)) − 1 in [0, 1), p in [0, 1] (Ganin et al. 2016).

    What the reversed gradient is multiplied by; the discriminator learns at full rate.
    """
    return 2.0 / (1.0 + jnp.exp(-10.0 * progress)) - 1.0


class Discriminator(nnx.Module):
    """Two hidden layers, two logits: source 0, target 1. Starts at log 2."""

    def __init__(self, width: int, hidden: int = HIDDEN, *, rngs: nnx.Rngs):
        self.first = layers.Dense(width, hidden, rngs=rngs)
        self.second = layers.Dense(hidden, hidden, rngs=rngs)
        self.last = layers.Dense(hidden, 2, init=layers.trunc_normal, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b d"], *, train: bool = False
    ) -> Float[Array, "b 2"]:
        """Logits."""
        del train
        return self.last(jax.nn.relu(self.second(jax.nn.relu(self.first(x)))))


def against(logits: Array, target: bool) -> Array:
    """Cross-entropy [B] of the domain."""
    return -jax.nn.log_softmax(logits)[:, int(target)]


def _right(source: Array, target: Array) -> Array:
    """Share of examples whose domain the discriminator tells; 0.5 is none."""
    told = (source.argmax(-1) == 0).mean() + (target.argmax(-1) == 1).mean()
    return told / 2


def adversary(
    name: str,
    fn: Callable[[View], TermResult],
    reads: Iterable[str],
    params: Mapping[str, Any],
    *,
    of: str,
    weight: float = 1.0,
) -> Term:
    """A term that tells the stream `of` from the labelled one, λ growing by `ramp`."""
    return Term(
        name=name,
        fn=fn,
        reads=tuple(dict.fromkeys(("params", "progress", *reads))),
        weight=weight,
        params=params,
        adversary_of=of,
        encoder_only=True,
    )


def dann(
    width: int,
    weight: float = 1.0,
    *,
    head: str,
    seed: int = 0,
    hidden: int = HIDDEN,
    target: str = "target",
) -> Term:
    """DANN: ½ (mean −log D_0(R_λ f_s) + mean −log D_1(R_λ f_t)).

    D is a `Discriminator` on what the head reads (`width` features), R_λ the reversal
    with λ by `ramp` over the phase, so that the encoder climbs what D descends (Ganin
    et al. 2016, "Domain-adversarial training of neural networks"). At chance the value
    is log 2, and the metric `dann_told` (the share of domains it tells) 0.5.
    """
    name = "dann"
    network, params, _ = Network.create(
        Discriminator(width, hidden, rngs=nnx.Rngs(seed))
    )
    reads = (f"train/features/{head}", f"{target}/features/{head}")

    def fn(view: View) -> TermResult:
        own, scale = view["params"]["terms"][name], ramp(view["progress"])
        both = jnp.concatenate([view[read] for read in reads])
        logits, _ = network.apply(own, {}, reverse_gradient(both, scale))
        source, other = jnp.split(logits, [len(view[reads[0]])])
        value = against(source, False).mean() + against(other, True).mean()
        return value / 2, {f"{name}_told": _right(source, other)}

    return adversary(name, fn, reads, params, of=target, weight=weight)


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
    head: str,
    by_entropy: bool = False,
    seed: int = 0,
    hidden: int = HIDDEN,
    target: str = "target",
) -> Term:
    """CDAN, and CDAN+E with `by_entropy`: D sees features and predictions together.

    As `dann` with D(R_λ T(f, g)), T = f ⊗ softmax(z), g detached; above 4096 products T
    is the random map of 1024 (`multilinear`). +E weighs each example by 1 + e^(−H(g)),
    normalised in each domain separately, H's gradient reversed as well (Long et al.
    2018, "Conditional adversarial domain adaptation", and the authors' code).
    """
    name = "cdan_e" if by_entropy else "cdan"
    rngs = nnx.Rngs(seed)
    random = width * classes > MOST_JOINT
    joint = RANDOM_WIDTH if random else width * classes
    network, params, _ = Network.create(Discriminator(joint, hidden, rngs=rngs))
    if random:
        params["fixed"] = _random_maps(width, classes, seed)
    streams = ("train", target)
    reads = tuple(
        f"{s}/{what}/{head}" for what in ("features", "logits") for s in streams
    )

    def fn(view: View) -> TermResult:
        own, scale = dict(view["params"]["terms"][name]), ramp(view["progress"])
        fixed = own.pop("fixed", None)
        features, logits = (
            jnp.concatenate([view[f"{s}/{what}/{head}"] for s in streams])
            for what in ("features", "logits")
        )
        g = jax.nn.softmax(jax.lax.stop_gradient(logits))
        joint = reverse_gradient(multilinear(features, g, fixed), scale)
        found, _ = network.apply(own, {}, joint)
        sure = jnp.ones(len(logits))
        if by_entropy:
            sure = 1.0 + jnp.exp(-reverse_gradient(entropy(logits), scale))
        n = len(view[reads[0]])
        (source, other), (of_source, of_other) = (
            jnp.split(found, [n]),
            jnp.split(sure, [n]),
        )
        value = _mean(against(source, False), of_source)
        value = value + _mean(against(other, True), of_other)
        return value / 2, {f"{name}_told": _right(source, other)}

    return adversary(name, fn, reads, params, of=target, weight=weight)


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
