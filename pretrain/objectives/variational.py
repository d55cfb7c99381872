"""Variational autoencoding: the code is a distribution close to a standard normal.

loss = reconstruction + beta * KL / values of an image: Kingma & Welling, "Auto-Encoding
Variational Bayes" (2014), section 3 and appendix B; beta: Higgins et al. 2017, section
2. Both terms are per value of the image. With `loss="bce"` and beta 1 the loss is the
negative evidence lower bound; with `mse`, beta 1 corresponds to a Gaussian of half the
data's variance.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.fields import at_least_0
from afterimage.models import Autoencoder, ModelConfig, layers
from afterimage.models.decoders import Encoded
from afterimage.models.layers import PassInfo
from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.losses import ReconstructionLoss
from afterimage.pretrain.objective import Autoencoding, Forward, Pass, Tree

# Beyond these limits the exponential leaves float32, or the sample is pure noise.
_LOG_VARIANCE = (-20.0, 10.0)
_ACTIVE = 0.01


class VariationalAutoencoder(Autoencoder):
    """Mean and log variance are linear in the code, per site or of the vector."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        width = code_width(self)
        self.posterior = layers.Dense(
            width, 2 * width, init=layers.trunc_normal, rngs=rngs
        )

    def sampled(
        self, images: Float[Array, "b h w c"], key: Array | None, *, train: bool = False
    ) -> tuple[Array, Array, Array]:
        """(reconstruction from a sample of the posterior, its mean, its log variance).

        Without a key it is from the mean. Mean and log variance are [b, d], or [b, h,
        w, d] if the code is a map.
        """
        context = PassInfo(train=train)
        encoded = self.encode(images, context)
        mean, log_variance = jnp.split(self.posterior(encoded.code), 2, axis=-1)
        log_variance = jnp.clip(log_variance, *_LOG_VARIANCE)
        code = mean
        if key is not None:
            noise = jax.random.normal(key, mean.shape, mean.dtype)
            code = mean + jnp.exp(0.5 * log_variance) * noise
        output = self.decoder(encoded.with_code(code), context)
        return output, mean, log_variance

    def from_prior(
        self, key: Array, count: int, *, train: bool = False
    ) -> Float[Array, "b h w c"]:
        """`count` images decoded from standard normal codes."""
        config, last = self.encoder.config, self.encoder.feature_info[-1]
        sides = tuple(map(last.sites, config.image_size))
        shape = (config.bottleneck,) if config.bottleneck else (*sides, last.channels)
        code = jax.random.normal(key, (count, *shape))
        encoded = Encoded(code, [], [], config.image_size)
        return self.decoder(encoded, PassInfo(train=train))


def code_width(module: Autoencoder) -> int:
    """Channels of the code."""
    return module.encoder.num_features


def divergence(
    mean: Float[Array, "b ..."], log_variance: Float[Array, "b ..."]
) -> Float[Array, "b d"]:
    """KL(N(mean, e^log_variance) || N(0, 1)) of each channel, summed over sites; nats.

    (mean^2 + variance - 1 - log variance) / 2: Kingma & Welling 2014, appendix B.
    """
    terms = jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance
    return 0.5 * jnp.sum(terms, axis=tuple(range(1, mean.ndim - 1)))


def freed(kl: Float[Array, "b d"], free: float) -> Float[Array, "b d"]:
    """`kl`, replaced by `free` where a channel's batch mean is below it.

    Its mean is max(free, mean kl), channel by channel: Kingma et al., "Improved
    Variational Inference with Inverse Autoregressive Flow" (2016), appendix C.8.
    """
    below = jnp.mean(kl, axis=0, keepdims=True) < free
    return jnp.where(below, free, kl)


@OBJECTIVES.add("variational")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variational(Autoencoding):
    """Reconstruct from a noisy code near a standard normal distribution."""

    beta: float = 1.0
    """Weight of the KL divergence; with loss bce, 1 gives the evidence lower bound.
    Lower values keep more of the image in the code."""

    beta_warmup: int = 0
    """Steps over which beta rises from zero."""

    free_bits: float = 0.0
    """Nats of KL per channel without penalty, so that the code stays in use."""

    def problems(self, config: Any, model: ModelConfig) -> list[str]:
        own = at_least_0(self, "beta", "beta_warmup", "free_bits")
        return super().problems(config, model) + own

    def build(self, model: ModelConfig, rngs: nnx.Rngs) -> nnx.Module:
        return VariationalAutoencoder(model, rngs=rngs)

    def beta_at(self, step: Array | None) -> Array | float:
        """The KL weight: rises from zero over `beta_warmup` steps, then `beta`."""
        if step is None or not self.beta_warmup:
            return self.beta
        return self.beta * jnp.minimum(1.0, step / self.beta_warmup)

    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        """Free bits apply in training only, so that the validation loss is a bound."""
        (output, mean, log_variance), stats = forward(
            inputs, forward.key, method="sampled"
        )
        kl = divergence(mean, log_variance)
        paid = freed(kl, self.free_bits) if forward.train else kl
        weight = self.beta_at(forward.step)
        penalty = weight * jnp.sum(paid, -1) / math.prod(inputs.shape[1:])
        sites = tuple(range(1, mean.ndim - 1))
        measures = {
            "kl": kl,
            "mean": jnp.mean(mean, sites),
            "square": jnp.mean(jnp.square(mean), sites),
        }
        return Pass(output, stats, penalty=penalty, measures=measures)

    def errors(
        self, forward: Forward, scores: ReconstructionLoss, pixels: Array
    ) -> Float[Array, "b h w"]:
        """Of the mean code, so that no noise is in the errors."""
        inputs = self.inputs(forward, pixels)
        (output, *_), _ = forward(inputs, None, method="sampled")
        return scores.squared_errors(output, pixels)

    def diagnose(self, means: Tree) -> dict[str, Any]:
        """KL in nats per image, in total and per channel; number of active channels.

        A channel is active if its posterior mean varies over the images by more than
        0.01: Burda et al., "Importance Weighted Autoencoders" (2016), section 5.
        """
        kl = means["kl"]
        variance = means["square"] - means["mean"] ** 2
        return {
            "kl": kl.sum(),
            "kl_channel_max": kl.max(),
            "kl_channel_median": jnp.median(kl),
            "active_channels": (variance > _ACTIVE).sum(),
        }

    def samples(self, forward: Forward, pixels: Array) -> Array | None:
        """Images decoded from the prior; None if unpooling needs an image."""
        if forward.setup.model.decoder == "unpool":
            return None
        output, _ = forward(forward.key, len(pixels), method="from_prior")
        # What the loss does not determine (brightness, contrast) comes from `pixels`.
        return self.scores(forward.setup).pictures(output, pixels)
