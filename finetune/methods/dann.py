"""DANN: an adversary on the features.

½ (mean −log D_0(R_λ f_s) + mean −log D_1(R_λ f_t)), D a discriminator on the head's
features, R_λ the reversed gradient with λ growing by `ramp` over the phase, so that the
encoder maximises what D minimises (Ganin et al. 2016, "Domain-adversarial training of
neural networks"). At chance the value is log 2, and the metric `dann_told`, the share
of domains that D recognises, is 0.5.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

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
from afterimage.finetune.methods._alignment import FEATURES, Alignment
from afterimage.models.encoder import Network
from afterimage.training.stage import Term, TermResult, View


@METHODS.add("dann", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DANN(Alignment):
    """An adversary tells the features of both domains apart (DANN)."""

    def terms(self, setup, phase=0):
        return [dann(setup.width, self.weight, seed=setup.config.seed)]


def dann(
    width: int, weight: float = 1.0, *, seed: int = 0, hidden: int = HIDDEN
) -> Term:
    """The term of DANN on `width` features."""
    name = "dann"
    network, params, _ = Network.create(
        Discriminator(width, hidden, rngs=nnx.Rngs(seed))
    )

    def fn(view: View) -> TermResult:
        own, scale = view["params"]["terms"][name], ramp(view["progress"])
        both = jnp.concatenate([view[read] for read in FEATURES])
        logits, _ = network.apply(own, {}, reverse_gradient(both, scale))
        source, other = jnp.split(logits, [len(view[FEATURES[0]])])
        value = against(source, False).mean() + against(other, True).mean()
        return value / 2, {f"{name}_told": told_apart(source, other)}

    return adversary(name, fn, FEATURES, params, weight=weight)
