"""Contractive autoencoding: a code that changes little when the image does.

loss = reconstruction + weight * |J|² / numbers of the code: Rifai et al., "Contractive
Auto-Encoders" (2011), section 3, with the Jacobian J of the whole encoder, by automatic
differentiation. The images are standardised. Scaling the code down and the decoder up
would lower the penalty; weight decay counteracts that.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.fields import at_least_0
from afterimage.models import Autoencoder, ModelConfig
from afterimage.models.layers import PassInfo
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.objective import Autoencoding, Forward, Pass

EXACT = 32
"""Codes of at most this size get an exact norm, with one backward pass per number."""

Encode = Callable[[Array], Array]


class ContractiveAutoencoder(Autoencoder):
    """An autoencoder that can return its code alone, for differentiation."""

    def code(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b ..."]:
        """The last map, or the vector if there is a bottleneck."""
        return self.encode(images, PassInfo(train=train)).code


def jacobian_norm(encode: Encode, images: Float[Array, "b h w c"], key: Array) -> Array:
    """|d code / d image|^2, the squared Frobenius norm for each image; [b], ≥ 0.

    Codes of at most `EXACT` numbers: exact. Longer ones: |v^T J|^2 for one vector v of
    random signs per image, whose expectation is the norm (Hutchinson 1990). The code of
    an image must not depend on other images.
    """
    code, pull = jax.vjp(encode, images)
    size = math.prod(code.shape[1:])
    if size > EXACT:
        signs = jax.random.rademacher(key, code.shape, code.dtype)
        return jnp.square(pull(signs)[0]).sum((1, 2, 3))
    rows = jnp.eye(size, dtype=code.dtype).reshape(size, 1, *code.shape[1:])
    rows = jnp.broadcast_to(rows, (size, *code.shape))
    return jnp.square(jax.vmap(pull)(rows)[0]).sum((0, 2, 3, 4))


@OBJECTIVES.add("contractive")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contractive(Autoencoding):
    """Reconstruct from a code that changes little when the image does."""

    weight: float = 0.1
    """Weight of the squared norm of the code's derivative by the image."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        return super().problems(config, model) + at_least_0(self, "weight")

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return ContractiveAutoencoder(model, rngs=rngs)

    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        # BatchNorm uses its running moments in the Jacobian.
        still = dataclasses.replace(forward, step=None)

        def encode(images: Array) -> Array:
            return still(images, method="code")[0]

        size = math.prod(jax.eval_shape(encode, inputs).shape[1:])
        norm = jacobian_norm(encode, inputs, forward.key) / size
        output, stats = forward(inputs)
        penalty = self.weight * norm
        return Pass(output, stats, penalty=penalty, measures={"jacobian": norm})
