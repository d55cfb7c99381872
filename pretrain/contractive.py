"""Contractive autoencoding: a code that moves little where the image does."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import Autoencoder, Network
from afterimage.models.layers import Context
from afterimage.pretrain.plain import Pass, Plain, Tree

EXACT = 32
"""Up to so many numbers in a code the norm is exact: one backward pass for each."""

Encode = Callable[[Array], Array]


class ContractiveAutoencoder(Autoencoder):
    """An autoencoder whose code can be had alone, to be differentiated."""

    def code(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b ..."]:
        """The last map, or the vector where there is a bottleneck."""
        return self.encode(images, Context(train=train)).code


def jacobian_norm(encode: Encode, images: Float[Array, "b h w c"], key: Array) -> Array:
    """|d code / d image|^2, squared Frobenius norm, of each image; [b], ≥ 0.

    Codes of up to `EXACT` numbers: exact. Longer ones: |v^T J|^2 for one vector v of
    random signs an image, whose expectation is the norm (Hutchinson 1990). The code of
    an image must depend on no other image.
    """
    code, pull = jax.vjp(encode, images)
    size = math.prod(code.shape[1:])
    if size > EXACT:
        signs = jax.random.rademacher(key, code.shape, code.dtype)
        return jnp.square(pull(signs)[0]).sum((1, 2, 3))
    rows = jnp.eye(size, dtype=code.dtype).reshape(size, 1, *code.shape[1:])
    rows = jnp.broadcast_to(rows, (size, *code.shape))
    return jnp.square(jax.vmap(pull)(rows)[0]).sum((0, 2, 3, 4))


class Contractive(Plain):
    """Reconstruction + contraction * |J|^2 / numbers of the code.

    Rifai et al., "Contractive Auto-Encoders" (2011), section 3, with the Jacobian of
    the whole encoder, by automatic differentiation. The images are standardised. A
    smaller code with a larger decoder would pay less: weight decay stands against it.
    """

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return ContractiveAutoencoder(self.model, rngs=rngs)

    def forward(
        self,
        network: Network,
        params: Tree,
        stats: Tree,
        inputs: Float[Array, "b h w c"],
        key: Array,
        step: Array | None,
    ) -> Pass:
        """One pass; moments of BatchNorm stand still in the Jacobian."""

        def encode(images: Array) -> Array:
            return network.apply(params, stats, images, method="code")[0]

        size = math.prod(jax.eval_shape(encode, inputs).shape[1:])
        norm = jacobian_norm(encode, inputs, key) / size
        train = step is not None
        output, moved = network.apply(params, stats, inputs, train=train)
        penalty = self.config.contraction * norm
        return Pass(output, moved, penalty=penalty, measures={"jacobian": norm})
