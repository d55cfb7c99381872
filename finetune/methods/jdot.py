"""DeepJDOT: optimal transport between both domains, of features and labels together.

(1/n) Σ_i C[i, π(i)], C from `joint_cost`, π its cheapest assignment. π is found without
gradient, then C is minimised along it: the features of an image and its partner move
together, and the partner learns the label (Damodaran et al. 2018, "Deep joint
distribution optimal transport for unsupervised domain adaptation", eq. 6). Both streams
have the same number of images per step. Two batches never have the same number of every
class, so pairing all images would pair different classes: of n images only the cheapest
share `mass`, in (0, 1], is transported (Nguyen et al. 2022, "Improving mini-batch
optimal transport via partial transportation"). If the share is too small, it may
contain a single class, and others are then drawn to it. Metric `jdot_matched`: the
share of transported images whose label the head already predicts for the partner.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from afterimage.finetune.method import METHODS
from afterimage.finetune.methods._alignment import FEATURES, LOGITS, Alignment
from afterimage.finetune.methods._discrepancy import square_distances
from afterimage.training.stage import Term, TermResult, View


@METHODS.add("jdot", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class JDOT(Alignment):
    """The cost of transporting one domain, with its labels, to the other (DeepJDOT)."""

    mass: float = 0.75
    """Share of a batch that is transported, in (0, 1]. The most costly images are left
    out, as two batches rarely have the same number of images of each class. Use 0.5 if
    class frequencies differ between the domains; if the share is too small, it may
    contain a single class."""

    def problems(self, config):
        found = super().problems(config)
        if not 0 < self.mass <= 1:
            found.append(f"mass={self.mass}: must be greater than 0 and at most 1")
        return found

    def terms(self, setup, phase=0):
        return [jdot_term(self.weight, self.mass)]


def assignment(cost: Float[Array, "n n"], apart: int = 0) -> Int[Array, " n"]:
    """The column π(i) of each row that minimises Σ_i cost[i, π(i)], or n for none.

    Between two samples of equal size with equal weights, this is an exact optimal
    transport plan (Optax's Hungarian algorithm: n³, row by row). `apart` rows, and as
    many columns, have no partner: those that save the most cost. This is exact partial
    transport, by adding that many rows and columns of zero cost (Chapel et al. 2020,
    "Partial optimal transport", proposition 1).
    """
    n = len(cost)
    if apart:
        never = n * (jnp.abs(cost).max() + 1.0)
        cost = jnp.pad(cost, (0, apart)).at[n:, n:].set(never)
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    partner = jnp.zeros(len(cost), columns.dtype).at[rows].set(columns)
    return jnp.minimum(partner[:n], n)


def joint_cost(
    source: Float[Array, "n d"],
    labels: Int[Array, " n"],
    target: Float[Array, "n d"],
    logits: Float[Array, "n c"],
    feature_weight: float = 1.0,
) -> Float[Array, "n n"]:
    """a · ‖s_i − t_j‖² / d + (−log p_j(y_i)); for an unlabelled i (−1) only the first.

    A mean over the d features, where DeepJDOT has a sum, so that one `a` suits vectors
    of any length.
    """
    distance = square_distances(source, target) / source.shape[1]
    surprise = -jax.nn.log_softmax(logits)[:, labels.clip(0)].T
    return feature_weight * distance + jnp.where(labels[:, None] >= 0, surprise, 0.0)


def jdot_term(weight: float = 1.0, mass: float = 0.75) -> Term:
    """The term of DeepJDOT, which transports the share `mass` of a batch."""
    reads = (FEATURES[0], "train/label", FEATURES[1], LOGITS[1])

    def fn(view: View) -> TermResult:
        labels, logits = view[reads[1]], view[reads[3]]
        n = len(labels)
        cost = joint_cost(*(view[name] for name in reads))
        apart = min(n - 1, round((1.0 - mass) * n))
        partner = assignment(jax.lax.stop_gradient(cost), apart)
        carried = partner < n
        partner = jnp.where(carried, partner, 0)
        paired = jnp.take_along_axis(cost, partner[:, None], axis=1)[:, 0]
        matched = carried & (logits.argmax(-1)[partner] == labels)
        share = matched.sum() / (n - apart)
        return jnp.where(carried, paired, 0.0).mean(), {"jdot_matched": share}

    return Term(name="jdot", fn=fn, reads=reads, weight=weight, encoder_only=True)
