"""MDAN: one adversary for each of K labelled sources; the hardest source counts most.

ε_k is the mean loss of the labels over source k, d_k = mean −log D_k0(R_λ f_k) + mean
−log D_k1(R_λ f_t). The term subtracts ε, the mean loss of the labels over the batch, so
that together with that loss the sum is the paper's smoothed bound

    (1/γ) log (1/K) Σ_k exp γ (ε_k + μ d_k),   μ = `weight`

(Zhao et al. 2018, "Adversarial multiple source domain adaptation", and the authors'
code; the constant 1/K makes it the mean for γ → 0). A source without images in the
batch does not count. The metric `mdan_told` is the share of domains recognised.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from afterimage.fields import above_0
from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._adversarial import (
    HIDDEN,
    Discriminator,
    adversary,
    against,
    ramp,
    reverse_gradient,
)
from afterimage.finetune.methods._alignment import FEATURES, Alignment
from afterimage.finetune.methods.sources import SOURCE
from afterimage.models.encoder import Network, Tree
from afterimage.training.stage import Term, TermResult, View

MDAN_WEIGHT = 0.01
"""μ in the authors' code (hanzhaoml/MDAN, main_amazon.py: --mu, with γ = 10)."""


@METHODS.add("mdan", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MDAN(Alignment):
    """An adversary for each of several labelled sources (MDAN)."""

    weight: float = MDAN_WEIGHT
    """μ: weight of each source's adversary relative to its loss; the default is the
    authors'."""

    gamma: float = 10.0
    """How much the hardest source outweighs the others; 0.1 is close to the mean of
    all."""

    def problems(self, config):
        found = super().problems(config) + above_0(self, "gamma")
        if "sources" not in [method.name for method in config.methods]:
            found.append("needs several sources: add the method sources, or use dann")
        return found

    def terms(self, setup, phase=0):
        count = len(setup.data.labels.train.tasks[SOURCE].class_names)
        settings: dict[str, Any] = {"gamma": self.gamma, "seed": setup.config.seed}
        labelled = setup.labelled[0]
        return [mdan(labelled, setup.width, count, self.weight, **settings)]


def mdan(
    labelled: Term,
    width: int,
    sources: int,
    weight: float = MDAN_WEIGHT,
    *,
    gamma: float = 10.0,
    seed: int = 0,
    hidden: int = HIDDEN,
) -> Term:
    """The term of MDAN, to be added to the term `labelled`.

    `train/label/source` is the number of each image's source.
    """
    name = "mdan"
    share = labelled.weight
    assert not callable(share)
    rngs = nnx.Rngs(seed)
    made = [
        Network.create(Discriminator(width, hidden, rngs=rngs)) for _ in range(sources)
    ]
    reads = (*FEATURES, "train/label/source")
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
    return adversary(name, fn, needed, params)


def _domain(
    network: Network, own: Tree, both: Array, mine: Array
) -> tuple[Array, Array]:
    """(d_k, share of domains it recognises); `mine` marks the images of source k."""
    found, _ = network.apply(own, {}, both)
    source, other = jnp.split(found, [len(mine)])
    value = _over(against(source, False), mine) + against(other, True).mean()
    right = _over((source.argmax(-1) == 0).astype(mine.dtype), mine)
    return value, (right + (other.argmax(-1) == 1).mean()) / 2


def _over(values: Array, mine: Array) -> Array:
    """The mean over the examples that `mine` marks; 0 if there are none."""
    return jnp.sum(values * mine) / jnp.maximum(mine.sum(), 1.0)
