"""Reconstruct the image; a denoising autoencoder if the input is corrupted.

loss = ℓ(decoder(encoder(c(x))), x), with c the corruption and ℓ the loss: Vincent et
al., "Extracting and Composing Robust Features with Denoising Autoencoders" (2008),
section 2.3.
"""

import dataclasses

from jaxtyping import Array, Float

from afterimage.plugins import OBJECTIVES
from afterimage.pretrain.objective import Autoencoding, Forward, Pass


@OBJECTIVES.add("plain")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(Autoencoding):
    """Reconstruct the image, from a corrupted one if `corruption` is set."""

    def forward(self, forward: Forward, inputs: Float[Array, "b h w c"]) -> Pass:
        return Pass(*forward(inputs))
