"""Vector-quantised autoencoding: each site of the code is one of K vectors.

loss = reconstruction + commitment * mean (code - vector)²: van den Oord et al., "Neural
Discrete Representation Learning" (2017), section 3.2, equation 3, whose middle term is
replaced here by a running mean for the codebook.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from afterimage.fields import at_least_0
from afterimage.models import Autoencoder, ModelConfig
from afterimage.models.layers import PassInfo, constant
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.objective import Autoencoding, Forward, Pass, Tree

DECAY = 0.99
# Codes used less than this share of the mean use are dead.
_DEAD = 0.1


class Codebook(nnx.Module):
    """K vectors, each the running mean of the inputs nearest to it.

    It is learned without a gradient, so it is stored with the statistics: van den Oord
    et al. 2017, appendix A.1. A code whose running count falls under a tenth of the
    mean is set to a vector of the batch (Dhariwal et al., "Jukebox" (2020), section
    3.1), as are all codes in the first step, when nothing has been counted yet.
    """

    def __init__(self, codes: int, width: int):
        self.vectors = nnx.BatchStat(constant(0.0, codes, width))
        self.counts = nnx.BatchStat(constant(0.0, codes))
        self.sums = nnx.BatchStat(constant(0.0, codes, width))

    def nearest(self, rows: Float[Array, "n d"]) -> Int32[Array, " n"]:
        """The index of the vector nearest to each row."""
        vectors = self.vectors[...]
        # |row|^2 is the same for every vector.
        distance = jnp.square(vectors).sum(-1)[None] - 2 * rows @ vectors.T
        return jnp.argmin(distance, -1).astype(jnp.int32)

    def restart(self, rows: Float[Array, "n d"], key: Array) -> None:
        """Dead codes become random rows, and their count is set to the mean."""
        codes, share = len(self.counts[...]), len(rows) / len(self.counts[...])
        dead = (self.counts[...] < _DEAD * share)[:, None]
        drawn = rows[jax.random.randint(key, (codes,), 0, len(rows))]
        self.vectors[...] = jnp.where(dead, drawn, self.vectors[...])
        self.counts[...] = jnp.where(dead[:, 0], share, self.counts[...])
        self.sums[...] = jnp.where(dead, share * drawn, self.sums[...])

    def follow(self, rows: Float[Array, "n d"], index: Int32[Array, " n"]) -> None:
        """Add the rows to the running counts and sums; vectors are their quotients."""
        chosen = jax.nn.one_hot(index, len(self.counts[...]), dtype=rows.dtype)
        counts, sums = chosen.sum(0), chosen.T @ rows
        self.counts[...] = DECAY * self.counts[...] + (1 - DECAY) * counts
        self.sums[...] = DECAY * self.sums[...] + (1 - DECAY) * sums
        self.vectors[...] = self.sums[...] / self.counts[...][:, None]


class QuantisedAutoencoder(Autoencoder):
    """The decoder gets the nearest vectors; the encoder gets the decoder's gradient."""

    def __init__(self, config: ModelConfig, codes: int, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.codebook = Codebook(codes, self.encoder.num_features)

    def quantised(
        self, images: Float[Array, "b h w c"], key: Array, *, train: bool = False
    ) -> tuple[Array, Array, Array]:
        """(reconstruction, commitment [b], index [b, sites]).

        Commitment: the mean square of code - vector, with the vector held fixed.
        """
        context = PassInfo(train=train)
        encoded = self.encode(images, context)
        code = encoded.code.astype(jnp.float32)
        rows = jax.lax.stop_gradient(code.reshape(-1, code.shape[-1]))
        if train:
            self.codebook.restart(rows, key)
        index = self.codebook.nearest(rows)
        vectors = jax.lax.stop_gradient(
            self.codebook.vectors[...][index].reshape(code.shape)
        )
        if train:
            self.codebook.follow(rows, index)
        commitment = jnp.mean(jnp.square(code - vectors), tuple(range(1, code.ndim)))
        straight = code + jax.lax.stop_gradient(vectors - code)
        straight = straight.astype(encoded.code.dtype)
        output = self.decoder(encoded.with_code(straight), context)
        return output, commitment, index.reshape(len(images), -1)


@OBJECTIVES.add("vq")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised(Autoencoding):
    """Reconstruct from vectors of a learned codebook."""

    codes: int = 512
    """Number of vectors in the codebook."""

    commitment: float = 0.25
    """Weight of the squared distance between the code and its vectors."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        found = super().problems(config, model) + at_least_0(self, "commitment")
        return found + (
            [f"codes={self.codes}: must be at least 2"] if self.codes < 2 else []
        )

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return QuantisedAutoencoder(model, self.codes, rngs=rngs)

    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        """The codebook is updated in training only."""
        (output, commitment, index), stats = forward(
            inputs, forward.key, method="quantised"
        )
        use = jax.nn.one_hot(index, self.codes).mean(1)
        penalty = self.commitment * commitment
        measures = {"use": use, "commitment": commitment}
        return Pass(output, stats, penalty=penalty, measures=measures)

    def diagnose(self, means: Tree) -> dict[str, Any]:
        """Perplexity of code use (at most the number of codes), and unused codes."""
        use = means["use"]
        logs = jnp.log(jnp.maximum(use, 1e-12))
        return {
            "commitment": means["commitment"],
            "perplexity": jnp.exp(-(use * logs).sum()),
            "dead_codes": (use == 0).sum(),
        }
