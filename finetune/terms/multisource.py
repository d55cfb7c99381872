"""An adversary for each of several labelled sources."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from afterimage.finetune.terms.adversarial import (
    HIDDEN,
    Discriminator,
    adversary,
    against,
    ramp,
    reverse_gradient,
)
from afterimage.models.encoder import Network, Tree
from afterimage.training.terms import Term, TermResult, View

MDAN_WEIGHT = 0.01
"""μ of the authors' code (hanzhaoml/MDAN, main_amazon.py: --mu, with γ = 10)."""


def mdan(
    labelled: Term,
    width: int,
    sources: int,
    weight: float = MDAN_WEIGHT,
    *,
    head: str,
    gamma: float = 10.0,
    seed: int = 0,
    hidden: int = HIDDEN,
    target: str = "target",
) -> Term:
    """MDAN: one discriminator for each of K sources; the hardest source counts most.

    ε_k is the mean of the term `labelled` over source k, d_k = mean −log D_k0(R_λ f_k)
    + mean −log D_k1(R_λ f_t). Beside `labelled`, whose mean ε over the batch it takes
    away, the sum is the paper's smoothed bound

        (1/γ) log (1/K) Σ_k exp γ (ε_k + μ d_k),   μ = `weight`

    (Zhao et al. 2018, "Adversarial multiple source domain adaptation", and the authors'
    code; the constant 1/K makes it the mean for γ → 0). A source without an image in
    the batch counts nothing. `train/label/source` says where an image comes from.
    """
    name = "mdan"
    share = labelled.weight
    assert not callable(share)
    rngs = nnx.Rngs(seed)
    made = [
        Network.create(Discriminator(width, hidden, rngs=rngs)) for _ in range(sources)
    ]
    reads = (
        f"train/features/{head}",
        f"{target}/features/{head}",
        "train/label/source",
    )
    more = (labelled.examples,) if labelled.examples is not None else ()

    def fn(view: View) -> TermResult:
        own, scale = view["params"]["terms"][name], ramp(view["progress"])
        features, others, number = (view[read] for read in reads)
        each = labelled.fn(view)[0] * share
        if labelled.examples is not None:
            each = each * view[labelled.examples]
        both = reverse_gradient(jnp.concatenate([features, others]), scale)
        totals, told, there = [], [], []
        for k, (network, _, _) in enumerate(made):
            mine = (number == k).astype(each.dtype)
            value, right = _domain(network, own[str(k)], both, mine)
            totals.append(_over(each, mine) + weight * value)
            told.append(right)
            there.append(mine.any())
        present = jnp.stack(there)
        hard = jnp.where(present, gamma * jnp.stack(totals), -jnp.inf)
        bound = (jax.nn.logsumexp(hard) - jnp.log(present.sum())) / gamma
        mean_told = (jnp.stack(told) * present).sum() / present.sum()
        return bound - each.mean(), {f"{name}_told": mean_told}

    params = {str(k): params for k, (_, params, _) in enumerate(made)}
    needed = (*reads, *labelled.reads, *more)
    return adversary(name, fn, needed, params, of=target)


def _domain(
    network: Network, own: Tree, both: Array, mine: Array
) -> tuple[Array, Array]:
    """(d_k, share of domains it tells); `mine` marks the images of source k."""
    found, _ = network.apply(own, {}, both)
    source, other = jnp.split(found, [len(mine)])
    value = _over(against(source, False), mine) + against(other, True).mean()
    right = _over((source.argmax(-1) == 0).astype(mine.dtype), mine)
    return value, (right + (other.argmax(-1) == 1).mean()) / 2


def _over(values: Array, mine: Array) -> Array:
    """The mean over the examples that `mine` marks; 0 where there is none."""
    return jnp.sum(values * mine) / jnp.maximum(mine.sum(), 1.0)
