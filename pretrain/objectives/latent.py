"""Masked autoencoding with a latent target: a teacher's features of the whole image.

loss = masked reconstruction + weight * mean (prediction - teacher's normalised last
map)² over the masked sites. The teacher is a running mean of the encoder, sees the
whole image and gets no gradient; it is stored with the statistics, so checkpoints have
it.

Baevski et al., "data2vec: A General Framework for Self-supervised Learning in Speech,
Vision and Language" (2022): "Teacher parameterization" and "Training targets". There
the targets are the mean of several layers of a Transformer; here they are the last map,
and pixels are predicted too.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from afterimage.fields import at_least_0
from afterimage.models import Autoencoder, ModelConfig, Network, abstract_encoder
from afterimage.models.blocks import run_blocks
from afterimage.models.decoders import Fill, make_block
from afterimage.models.layers import Dense, PassInfo, mean_of
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.objective import Forward, ModelSetup, Pass, Tree
from afterimage.pretrain.objectives.masked import Masked


class LatentAutoencoder(Autoencoder):
    """A masked autoencoder that also predicts a teacher's last map."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        width = self.encoder.feature_info[-1].channels
        self.fill = Fill(width, width, config.norm, rngs=rngs)
        self.blocks = nnx.List([make_block(config, width, rngs)])
        self.guess = Dense(width, width, rngs=rngs)

    def predicted(
        self,
        images: Float[Array, "b h w c"],
        mask: Bool[Array, "b h w"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b i j d"]]:
        """(reconstruction, prediction of the teacher's features)."""
        context = PassInfo(train=train, mask=mask)
        encoded = self.encode(images, context)
        output = self.decoder(encoded, context)
        x = self.fill(encoded.maps[-1], context)
        remat = self.encoder.config.remat
        x = run_blocks(self.blocks, x, PassInfo(train=train), remat)
        return output, self.guess(x)


def normalised(x: Float[Array, "b i j d"]) -> Float[Array, "b i j d"]:
    """Each site's features with mean 0 and variance 1, so that shrinking the target
    does not help."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def latent_error(
    guess: Float[Array, "b i j d"],
    target: Float[Array, "b i j d"],
    mask: Bool[Array, "b h w"],
) -> Float[Array, " b"]:
    """Mean squared error over the masked sites of each image; 0 without any."""
    visible = PassInfo(mask=mask).visible(target)
    assert visible is not None
    return mean_of(jnp.square(guess - target), (1, 2, 3), ~visible)


@OBJECTIVES.add("latent")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent(Masked):
    """Like masked, and also predict a teacher's features of the whole image."""

    default_decoder: ClassVar[str] = "hierarchical"

    weight: float = 1.0
    """Weight of the error in predicting the teacher's features at masked sites. The
    teacher is a running mean of the encoder."""

    teacher_decay: float = 0.99
    """Decay of the running mean in the first step."""

    teacher_decay_end: float = 0.999
    """Decay from step teacher_warmup on."""

    teacher_warmup: int = 1000
    """Steps over which the decay rises."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = super().problems(config, model)
        low, high = self.teacher_decay, self.teacher_decay_end
        if not 0 <= low <= high < 1:
            found.append(
                f"teacher_decay={low}, teacher_decay_end={high}: both must be in [0, "
                "1), and the second not smaller"
            )
        return found + at_least_0(self, "weight", "teacher_warmup")

    def data_problems(self, model: ModelConfig) -> list[str]:
        found = super().data_problems(model)
        stride = abstract_encoder(model).feature_info[-1].stride
        patch = self.target_patch(model)
        if patch % stride:
            found.append(
                f"patch={patch}: must be a multiple of {stride}, the stride of the "
                "last map, so that its sites are masked completely"
            )
        return found

    def target_patch(self, model: ModelConfig) -> int:
        """By default as for masked, in whole sites of the last map."""
        usual = super().target_patch(model)
        if self.patch is not None:
            return usual
        stride = abstract_encoder(model).feature_info[-1].stride
        return -(-usual // stride) * stride

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return LatentAutoencoder(model, rngs=rngs)

    def start(self, params: Tree, stats: Tree) -> Tree:
        """The teacher starts as a copy of the encoder."""
        return {**stats, "teacher": jax.tree.map(np.array, params["encoder"])}

    def decay(self, step: Array) -> Array:
        """Rises linearly over `teacher_warmup` steps, then constant."""
        low, high = self.teacher_decay, self.teacher_decay_end
        steps = max(self.teacher_warmup, 1)
        return low + (high - low) * jnp.minimum(1.0, step / steps)

    def follow(self, params: Tree, stats: Tree, step: Array, progress: Array) -> Tree:
        """The teacher moves towards the encoder, once a step."""
        del progress
        teacher = moved(stats["teacher"], params["encoder"], self.decay(step))
        return {**stats, "teacher": teacher}

    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        mask = self.draw(forward, inputs)
        rest = dict(forward.stats)
        teacher = rest.pop("teacher")
        target = teach(forward.setup, teacher, rest, inputs)
        student = dataclasses.replace(forward, stats=rest)
        (output, guess), rest = student(inputs, mask, method="predicted")
        error = latent_error(guess, target, mask)
        return Pass(
            output,
            {**rest, "teacher": teacher},
            mask=mask,
            penalty=self.weight * error,
            measures={"latent": error},
        )


def teach(setup: ModelSetup, teacher: Tree, stats: Tree, inputs: Array) -> Array:
    """The target of the prediction: [b, i, j, d]."""
    encoder, _, _ = Network.create(
        abstract_encoder(setup.model), dtype=setup.network.dtype
    )
    maps, _ = encoder.apply(teacher, stats.get("encoder", {}), inputs)
    return jax.lax.stop_gradient(normalised(maps[-1]))


def moved(teacher: Tree, student: Tree, decay: Array) -> Tree:
    """decay * teacher + (1 - decay) * student, leaf by leaf."""
    return jax.tree.map(
        lambda t, s: decay * t + (1 - decay) * s,
        dict(teacher),
        dict(student),
    )
