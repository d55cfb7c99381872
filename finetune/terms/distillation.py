"""Learning from a teacher: its predictions, its features, relations between images.

The teacher's values (`teacher/logits`, `teacher/features`) are of the same augmented
images, in evaluation mode, and carry no gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.finetune.terms.anchored import soft_kl
from afterimage.finetune.terms.discrepancy import square_distances
from afterimage.training.terms import Term, TermResult, View

ANGLE = 2.0
"""Weight of the angles beside the distances, the paper's ratio."""


def distil_logits(weight: float, temperature: float, *, head: str) -> Term:
    """w · T² KL(softmax(t / T) ‖ softmax(z / T)), t the teacher's logits, z one's own.

    Hinton et al. 2015, "Distilling the knowledge in a neural network": T² keeps the
    gradient's size as T grows, so that w need not follow it. Nats, ≥ 0.
    """
    own = f"train/logits/{head}"

    def fn(view: View) -> TermResult:
        teacher, student = view["teacher/logits"], view[own]
        agree = (teacher.argmax(-1) == student.argmax(-1)).mean()
        return soft_kl(teacher, student, temperature), {"agreement": agree}

    return Term(
        name="distil_logits", fn=fn, reads=("teacher/logits", own), weight=weight
    )


def distil_features(
    width: int, teacher_width: int, weight: float, *, head: str, seed: int
) -> Term:
    """w · ½ mean_d (f A + b − t)_d², A and b learned, f and t standardised features.

    The hint of FitNets (Romero et al. 2015), whose regressor lifts the narrower student
    to the teacher's width, on what the heads read; a mean over d, where the paper sums,
    so that w does not depend on the teacher's width.
    """
    own = f"train/features/{head}"
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (width, teacher_width)) / jnp.sqrt(width)

    def fn(view: View) -> TermResult:
        lift = view["params"]["terms"]["distil_features"]
        lifted = view[own] @ lift["kernel"] + lift["bias"][None]
        teacher = jax.lax.stop_gradient(view["teacher/features"])
        return 0.5 * jnp.mean(jnp.square(lifted - teacher), -1), {}

    return Term(
        name="distil_features",
        fn=fn,
        reads=("params", "teacher/features", own),
        weight=weight,
        params={"kernel": kernel, "bias": jnp.zeros(teacher_width)},
        encoder_only=True,
    )


def distil_relations(weight: float, *, head: str) -> Term:
    """w · (RKD-D + 2 RKD-A) between what the heads read; see `relations`."""
    own = f"train/features/{head}"

    def fn(view: View) -> TermResult:
        teacher = jax.lax.stop_gradient(view["teacher/features"])
        distance, angle = relations(teacher, view[own])
        extra = {"distil_distance": distance, "distil_angle": angle}
        return distance + ANGLE * angle, extra

    return Term(
        name="distil_relations",
        fn=fn,
        reads=("teacher/features", own),
        weight=weight,
        encoder_only=True,
    )


def relations(
    teacher: Float[Array, "n d"], student: Float[Array, "n e"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(distance, angle) losses of relational distillation (Park et al. 2019, RKD).

    distance: mean_{i≠j} h(‖t_i − t_j‖ / μ_t, ‖s_i − s_j‖ / μ_s), μ the mean distance;
    angle: mean over i, j, k, all different, of h(cos ∠ t_i t_j t_k, cos ∠ s_i s_j s_k);
    h is Huber's loss with δ = 1. Zero for spaces that differ by a rotation and a scale.
    """
    n = len(teacher)
    pairs = 1.0 - jnp.eye(n)
    distance = _huber(_distances(student, pairs) - _distances(teacher, pairs))
    apart = pairs[:, :, None] * pairs[:, None, :] * pairs[None]
    angle = _huber(_angles(student) - _angles(teacher))
    return (
        jnp.sum(distance * pairs) / pairs.sum(),
        jnp.sum(angle * apart) / jnp.maximum(apart.sum(), 1.0),
    )


def _huber(x: Array) -> Array:
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * x**2, size - 0.5)


def _distances(x: Array, pairs: Array) -> Array:
    """‖x_i − x_j‖ over its mean; the floor keeps the root's gradient finite."""
    found = jnp.sqrt(jnp.maximum(square_distances(x, x), 1e-12)) * pairs
    return found * pairs.sum() / jnp.maximum(found.sum(), 1e-12)


def _angles(x: Array) -> Array:
    """[j, i, k]: the cosine of the angle at x_j between x_i and x_k."""
    apart = x[None, :] - x[:, None]
    length = jnp.sqrt(jnp.maximum(jnp.sum(apart**2, -1, keepdims=True), 1e-12))
    unit = apart / length
    return jnp.einsum("jid,jkd->jik", unit, unit)
