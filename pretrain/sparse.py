"""Sparse autoencoding: few channels of the code speak at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import Autoencoder, ModelConfig, Network, abstract_encoder
from afterimage.models.layers import Context
from afterimage.pretrain.plain import Pass, Plain, Tree

_SILENT = 1e-6


def keep_largest(code: Float[Array, "*n d"], k: int) -> Float[Array, "*n d"]:
    """The k largest channels at each site; the others are zero.

    Makhzani & Frey, "k-Sparse Autoencoders" (2013), section 2.1. Of equal values all
    are kept.
    """
    least = jax.lax.top_k(code, k)[0][..., -1:]
    return jnp.where(code >= jax.lax.stop_gradient(least), code, 0)


class SparseAutoencoder(Autoencoder):
    """An autoencoder that shows its code; with `k`, cut to the k largest channels."""

    def __init__(self, config: ModelConfig, k: int | None, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.k = k

    def coded(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Array, Array]:
        """(reconstruction, code)."""
        context = Context(train=train)
        encoded = self.encode(images, context)
        code = encoded.code if self.k is None else keep_largest(encoded.code, self.k)
        return self.decoder(encoded.with_code(code), context), code


class Sparse(Plain):
    """L1: reconstruction + weight * mean |code|; top-k: the code itself is cut.

    The L1 term alone could be paid less by a smaller code and a larger decoder: the
    weight decay of the decoder stands against that. What is kept as the encoder does
    not cut: its features are dense, as Makhzani & Frey use them.
    """

    @property
    def k(self) -> int | None:
        return self.config.sparsity_k if self.config.sparsity == "top-k" else None

    def mistakes(self) -> list[str]:
        width = abstract_encoder(self.model).num_features
        if self.k is None or self.k <= width:
            return []
        return [
            f"sparsity_k={self.k}: the code has {width} channels; keep fewer of them"
        ]

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return SparseAutoencoder(self.model, self.k, rngs=rngs)

    def forward(
        self,
        network: Network,
        params: Tree,
        stats: Tree,
        inputs: Float[Array, "b h w c"],
        key: Array,
        step: Array | None,
    ) -> Pass:
        """One pass."""
        (output, code), stats = network.apply(
            params, stats, inputs, train=step is not None, method="coded"
        )
        size = jnp.abs(code)
        penalty = None
        if self.config.sparsity == "l1":
            others = tuple(range(1, code.ndim))
            penalty = self.config.sparsity_weight * jnp.mean(size, others)
        sites = tuple(range(1, code.ndim - 1))
        share = jnp.mean(size > _SILENT, sites, dtype=jnp.float32)
        return Pass(output, stats, penalty=penalty, measures={"share": share})

    def summarise(self, means: Tree) -> dict[str, Any]:
        """The share of the code that is not zero, and channels that always are."""
        share = means["share"]
        return {"active_share": share.mean(), "dead_channels": (share == 0).sum()}
