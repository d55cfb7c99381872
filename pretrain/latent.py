"""Masked autoencoding with a latent target: features of the image that a teacher saw.

Baevski et al., "data2vec: A General Framework for Self-supervised Learning in Speech,
Vision and Language" (2022): "Teacher parameterization" and "Training targets". There
the targets are the mean of several layers of a Transformer; here they are the last map,
and pixels are predicted besides.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from afterimage.models import Autoencoder, ModelConfig, Network, abstract_encoder
from afterimage.models.blocks import run_blocks
from afterimage.models.decoders import make_block
from afterimage.models.filling import Fill
from afterimage.models.layers import Context, Dense, mean_of
from afterimage.pretrain.masked import Masked
from afterimage.pretrain.masks import draw_mask, patch_size
from afterimage.pretrain.plain import Pass, Tree


class LatentAutoencoder(Autoencoder):
    """A masked autoencoder that predicts a teacher's last map too."""

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
        """(reconstruction, features as the teacher would give them)."""
        context = Context(train=train, mask=mask)
        encoded = self.encode(images, context)
        output = self.decoder(encoded, context)
        x = self.fill(encoded.maps[-1], context)
        remat = self.encoder.config.remat
        x = run_blocks(self.blocks, x, Context(train=train), remat)
        return output, self.guess(x)


def normalised(x: Float[Array, "b i j d"]) -> Float[Array, "b i j d"]:
    """Each site's features with mean 0 and variance 1: a shrinking target is no way."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def latent_error(
    guess: Float[Array, "b i j d"],
    target: Float[Array, "b i j d"],
    mask: Bool[Array, "b h w"],
) -> Float[Array, " b"]:
    """Mean squared error over the masked sites of each image; 0 where none is."""
    visible = Context(mask=mask).visible(target)
    assert visible is not None
    return mean_of(jnp.square(guess - target), (1, 2, 3), ~visible)


class Latent(Masked):
    """Pixels + latent_weight * |guess - teacher's normalised last map|^2, if masked.

    The teacher is the running mean of the encoder, sees the whole image and gets no
    gradient; it is kept with the statistics, so checkpoints have it.
    """

    def mistakes(self) -> list[str]:
        found = super().mistakes()
        stride = abstract_encoder(self.model).feature_info[-1].stride
        patch = patch_size(self.config, self.model.image_size)
        if patch % stride:
            found.append(
                f"mask_patch={patch} with latent_weight: take a multiple of {stride}, "
                "the stride of the last map, so that its sites are masked as a whole"
            )
        return found

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return LatentAutoencoder(self.model, rngs=rngs)

    def start(self, params: Tree, stats: Tree) -> Tree:
        """The teacher begins as the encoder does."""
        return {**stats, "teacher": jax.tree.map(np.array, params["encoder"])}

    def decay(self, step: Array) -> Array:
        """Up in a line over `teacher_warmup` steps, then constant."""
        low, high = self.config.teacher_decay, self.config.teacher_decay_end
        steps = max(self.config.teacher_warmup, 1)
        return low + (high - low) * jnp.minimum(1.0, step / steps)

    def forward(
        self,
        network: Network,
        params: Tree,
        stats: Tree,
        inputs: Float[Array, "b h w c"],
        key: Array,
        step: Array | None,
    ) -> Pass:
        """One pass; the teacher follows in training, after it was asked."""
        batch, height, width, _ = inputs.shape
        mask = draw_mask(key, batch, (height, width), self.config)
        teacher = stats["teacher"]
        target = self.teach(network, teacher, stats, inputs)
        rest = {name: tree for name, tree in stats.items() if name != "teacher"}
        (output, guess), rest = network.apply(
            params, rest, inputs, mask, train=step is not None, method="predicted"
        )
        error = latent_error(guess, target, mask)
        if step is not None:
            teacher = follow(teacher, params["encoder"], self.decay(step))
        return Pass(
            output,
            {**rest, "teacher": teacher},
            mask=mask,
            penalty=self.config.latent_weight * error,
            measures={"latent": error},
        )

    def teach(self, network: Network, teacher: Tree, stats: Tree, inputs: Array):
        """What is to be predicted: [b, i, j, d]."""
        encoder, _, _ = Network.create(
            abstract_encoder(self.model), dtype=network.dtype
        )
        maps, _ = encoder.apply(teacher, stats.get("encoder", {}), inputs)
        return jax.lax.stop_gradient(normalised(maps[-1]))


def follow(teacher: Tree, student: Tree, decay: Array) -> Tree:
    """decay * teacher + (1 - decay) * student, leaf by leaf."""
    return jax.tree.map(
        lambda t, s: decay * t + (1 - decay) * jax.lax.stop_gradient(s),
        dict(teacher),
        dict(student),
    )
