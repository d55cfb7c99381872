"""Variational autoencoding: a code that is a distribution, near a standard normal one.

Kingma & Welling, "Auto-Encoding Variational Bayes" (2014), section 3 and appendix B.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.models import Autoencoder, ModelConfig, Network, layers
from afterimage.models.decoders import Encoded
from afterimage.models.layers import Context
from afterimage.pretrain.plain import Pass, Plain, Tree

# Beyond these the exponential leaves float32, or the sample is all noise.
_LOG_VARIANCE = (-20.0, 10.0)
_ACTIVE = 0.01


class VariationalAutoencoder(Autoencoder):
    """Mean and log variance are linear in the code: site by site, or of the vector."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        width = code_width(self)
        self.posterior = layers.Dense(
            width, 2 * width, init=layers.trunc_normal, rngs=rngs
        )

    def sampled(
        self, images: Float[Array, "b h w c"], key: Array, *, train: bool = False
    ) -> tuple[Array, Array, Array]:
        """(reconstruction from a sample of the posterior, its mean, its log variance).

        Both are [b, d], or [b, h, w, d] where the code is a map.
        """
        context = Context(train=train)
        encoded = self.encode(images, context)
        mean, log_variance = jnp.split(self.posterior(encoded.code), 2, axis=-1)
        log_variance = jnp.clip(log_variance, *_LOG_VARIANCE)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        code = mean + jnp.exp(0.5 * log_variance) * noise
        output = self.decoder(encoded.with_code(code), context)
        return output, mean, log_variance

    def from_prior(
        self, key: Array, count: int, *, train: bool = False
    ) -> Float[Array, "b h w c"]:
        """So many images decoded from standard normal codes."""
        config, last = self.encoder.config, self.encoder.feature_info[-1]
        sides = tuple(-(-n // last.stride) for n in config.image_size)
        shape = (config.bottleneck,) if config.bottleneck else (*sides, last.channels)
        code = jax.random.normal(key, (count, *shape))
        encoded = Encoded(code, [], [], config.image_size)
        return self.decoder(encoded, Context(train=train))


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
    """`kl`, but `free` where a channel's mean over the batch is below it.

    Its mean is max(free, mean kl), channel by channel: Kingma et al., "Improved
    Variational Inference with Inverse Autoregressive Flow" (2016), appendix C.8.
    """
    below = jnp.mean(kl, axis=0, keepdims=True) < free
    return jnp.where(below, free, kl)


class Variational(Plain):
    """Reconstruction + beta * KL / values of an image: Higgins et al. 2017, section 2.

    Both terms are of one value of the image. With `loss="bce"` and beta 1 the loss is
    the negative evidence bound; with `mse` beta 1 stands for a Gaussian of half the
    data's variance.
    """

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return VariationalAutoencoder(self.model, rngs=rngs)

    def beta(self, step: Array | None) -> Array | float:
        """The KL's weight: up from zero over `beta_warmup` steps, then `beta`."""
        steps = self.config.beta_warmup
        if step is None or not steps:
            return self.config.beta
        return self.config.beta * jnp.minimum(1.0, step / steps)

    def forward(
        self,
        network: Network,
        params: Tree,
        stats: Tree,
        inputs: Float[Array, "b h w c"],
        key: Array,
        step: Array | None,
    ) -> Pass:
        """One pass; free bits in training only, so a validation loss is a bound."""
        (output, mean, log_variance), stats = network.apply(
            params, stats, inputs, key, train=step is not None, method="sampled"
        )
        kl = divergence(mean, log_variance)
        paid = kl if step is None else freed(kl, self.config.free_bits)
        penalty = self.beta(step) * jnp.sum(paid, -1) / math.prod(inputs.shape[1:])
        sites = tuple(range(1, mean.ndim - 1))
        measures = {
            "kl": kl,
            "mean": jnp.mean(mean, sites),
            "square": jnp.mean(jnp.square(mean), sites),
        }
        return Pass(output, stats, penalty=penalty, measures=measures)

    def summarise(self, means: Tree) -> dict[str, Any]:
        """KL in nats an image, in all and of single channels; active channels.

        A channel is active where its posterior mean varies over the images by more
        than 0.01: Burda et al., "Importance Weighted Autoencoders" (2016), section 5.
        """
        kl = means["kl"]
        variance = means["square"] - means["mean"] ** 2
        return {
            "kl": kl.sum(),
            "kl_channel_max": kl.max(),
            "kl_channel_median": jnp.median(kl),
            "active_channels": (variance > _ACTIVE).sum(),
        }

    def samples(
        self, network: Network, params: Tree, stats: Tree, key: Array, count: int
    ) -> Array | None:
        """Outputs of codes from the prior; none where unpooling needs an image."""
        if self.model.decoder == "unpool":
            return None
        return network.apply(params, stats, key, count, method="from_prior")[0]
