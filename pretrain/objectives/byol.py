"""BYOL: from one view's embedding, predict a teacher's embedding of the other view.

loss = Σ over both directions of |q/|q| - t/|t||², with q the predictor's output for one
view and t the teacher's embedding of the other, without gradient. The teacher is a
running mean of encoder and projector; its decay rises to 1 along a cosine over the run:
1 - (1 - τ) (cos(π progress) + 1) / 2. Nothing pushes images apart, so a low loss may
also be a collapse: watch `uniformity` and the probes. Grill et al., "Bootstrap Your Own
Latent" (2020), sections 3.1 and 3.2.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import ModelConfig
from afterimage.models.layers import PassInfo
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.embedding import (
    Embedded,
    EmbeddingNetwork,
    Embeddings,
    JointEmbedding,
    Projector,
    unit,
)
from afterimage.pretrain.objective import Forward, Tree

_TAUGHT = ("encoder", "projector")


class BYOLNetwork(EmbeddingNetwork):
    """With a predictor of the teacher's embeddings."""

    def __init__(self, config: ModelConfig, settings: "BYOL", *, rngs: nnx.Rngs):
        super().__init__(config, settings, rngs=rngs)
        length = settings.projection
        hidden = settings.hidden or 2 * self.encoder.num_features
        self.predictor = Projector(length, hidden, length, rngs=rngs)

    def predict(self, z: Embeddings, *, train: bool = False) -> Embeddings:
        """Predictions of the teacher's embeddings of the other views."""
        rows = z.reshape(-1, z.shape[-1])
        return self.predictor(rows, PassInfo(train=train)).reshape(z.shape)


def byol_losses(q: Embeddings, t: Embeddings) -> Float[Array, " b"]:
    """The sum of both directions for each image, 0 to 8; t gets no gradient."""
    others = jax.lax.stop_gradient(unit(t))[:, ::-1]
    return jnp.square(unit(q) - others).sum((1, 2))


@OBJECTIVES.add("byol")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOL(JointEmbedding):
    """Predict a teacher's embedding of the other augmented view."""

    teacher_decay: float = 0.99
    """Decay of the running mean that is the teacher, at the start; it rises to 1 over
    the run. The authors' code has 0.97 for 40 passes over ImageNet, 0.99 for 100 and
    300, 0.996 for 1000."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = super().problems(config, model)
        if not 0 <= self.teacher_decay <= 1:
            found.append(f"teacher_decay={self.teacher_decay}: must be between 0 and 1")
        return found

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> EmbeddingNetwork:
        return BYOLNetwork(model, self, rngs=rngs)

    def start(self, params: Tree, stats: Tree) -> Tree:
        """The teacher starts as a copy of the encoder and its projector."""
        copied = {"params": _taught(params), "stats": _taught(stats)}
        return {**stats, "teacher": jax.tree.map(np.array, copied)}

    def embed(self, forward: Forward, views: Float[Array, "b 2 h w c"]) -> Embedded:
        """Like the network, the teacher normalises by moments of the batch in training,
        and has running moments of its own."""
        rest = dict(forward.stats)
        teacher = rest.pop("teacher")
        student = dataclasses.replace(forward, stats=rest)
        (z, output), after = self.passed(student, views)
        student = dataclasses.replace(forward, stats=after)
        q, after = student(z, method="predict")
        t, teacher = self._teach(forward, teacher, rest, views)
        return Embedded(z, byol_losses(q, t), after, output, {"teacher": teacher})

    def follow(self, params: Tree, stats: Tree, step: Array, progress: Array) -> Tree:
        """The teacher moves towards the network, once a step."""
        del step
        share = (1 - self.teacher_decay) * (jnp.cos(jnp.pi * progress) + 1) / 2
        teacher = stats["teacher"]
        mean = jax.tree.map(
            lambda t, s: t + share * (s - t), teacher["params"], _taught(params)
        )
        return {**stats, "teacher": {**teacher, "params": mean}}

    def _teach(
        self, forward: Forward, teacher: Tree, stats: Tree, views: Array
    ) -> tuple[Embeddings, Tree]:
        """The teacher's embeddings, and the teacher with its statistics afterwards."""
        forward = dataclasses.replace(
            forward,
            params={**forward.params, **teacher["params"]},
            stats={**stats, **teacher["stats"]},
        )
        (t, _), after = forward(views, method="embed")
        kept = {**teacher, "stats": _taught(after)}
        return jax.lax.stop_gradient((t, kept))


def _taught(tree: Tree) -> dict[str, Any]:
    """The parts of parameters or statistics that a teacher has."""
    return {name: dict(tree[name]) for name in _TAUGHT if name in tree}
