"""Sparse autoencoding: few channels of the code are active at a time.

loss = reconstruction + weight * mean |code|; or, with `k`, only the k largest channels
at each site reach the decoder: Makhzani & Frey, "k-Sparse Autoencoders" (2013), section
2.1. Scaling the code down and the decoder up would lower the penalty of the first form;
weight decay of the decoder counteracts that. The saved encoder does not cut its code:
its features are dense, as in Makhzani & Frey.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.fields import at_least_0, at_least_1
from afterimage.models import Autoencoder, ModelConfig, abstract_encoder
from afterimage.models.layers import PassInfo
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.objective import Autoencoding, Forward, Pass, Tree

_SILENT = 1e-6
_WEIGHT = 0.01


def keep_largest(code: Float[Array, "*n d"], k: int) -> Float[Array, "*n d"]:
    """The k largest channels at each site; the others are zero. Ties are kept."""
    least = jax.lax.top_k(code, k)[0][..., -1:]
    return jnp.where(code >= jax.lax.stop_gradient(least), code, 0)


class SparseAutoencoder(Autoencoder):
    """An autoencoder that returns its code; with `k`, cut to the k largest channels."""

    def __init__(self, config: ModelConfig, k: int | None, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.k = k

    def coded(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Array, Array]:
        """(reconstruction, code)."""
        context = PassInfo(train=train)
        encoded = self.encode(images, context)
        code = encoded.code if self.k is None else keep_largest(encoded.code, self.k)
        return self.decoder(encoded.with_code(code), context), code


@OBJECTIVES.add("sparse")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparse(Autoencoding):
    """Reconstruct from a code in which few channels are active."""

    weight: float | None = None
    """Weight of the mean absolute value of the code. Default: 0.01, or 0 with k."""

    k: int | None = None
    """Keep only this number of channels, the largest, at each site. Default: all."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = super().problems(config, model)
        return found + at_least_0(self, "weight") + at_least_1(self, "k")

    def data_problems(self, model: ModelConfig) -> list[str]:
        width = abstract_encoder(model).num_features
        if self.k is None or self.k <= width:
            return []
        return [f"k={self.k}: the code has only {width} channels; use a smaller k"]

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return SparseAutoencoder(model, self.k, rngs=rngs)

    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        (output, code), stats = forward(inputs, method="coded")
        size = jnp.abs(code)
        weight = self.weight
        if weight is None:
            weight = _WEIGHT if self.k is None else 0.0
        penalty = None
        if weight:
            others = tuple(range(1, code.ndim))
            penalty = weight * jnp.mean(size, others)
        sites = tuple(range(1, code.ndim - 1))
        share = jnp.mean(size > _SILENT, sites, dtype=jnp.float32)
        return Pass(output, stats, penalty=penalty, measures={"share": share})

    def diagnose(self, means: Tree) -> dict[str, Any]:
        """The non-zero share of the code, and how many channels are always zero."""
        share = means["share"]
        return {"active_share": share.mean(), "dead_channels": (share == 0).sum()}
