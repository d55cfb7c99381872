"""Encoder and decoder together: images to images."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from afterimage.errors import UserError
from afterimage.models.config import ModelConfig
from afterimage.models.decoders import Decoder, Encoded, UnpoolDecoder, UpDecoder
from afterimage.models.encoders import Encoder, build_encoder
from afterimage.models.filling import BlockDecoder, HierarchicalDecoder
from afterimage.models.layers import Context

_DECODERS = {
    "unpool": UnpoolDecoder,
    "hierarchical": HierarchicalDecoder,
    "block": BlockDecoder,
}


class Autoencoder(nnx.Module):
    """Encoder, optional bottleneck, decoder: images to images of the same shape."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.encoder: Encoder = build_encoder(config, rngs=rngs)
        kind = _DECODERS.get(config.decoder, UpDecoder)
        self.decoder: Decoder = kind(self.encoder, rngs=rngs)

    def encode(self, images: Float[Array, "b h w c"], context: Context) -> Encoded:
        """The code, and what else a decoder may use."""
        maps, switches = self.encoder.encode(images, context)
        code = maps[-1]
        stride = self.encoder.feature_info[-1].stride
        if code.shape[1:3] != tuple(-(-n // stride) for n in images.shape[1:3]):
            raise UserError(
                f"images of {images.shape[1:3]} px: {self.encoder.config.name} drops"
                f" the pixels beyond multiples of {stride}, which no decoder can give"
                " back; resize the images"
            )
        if self.encoder.bottleneck is not None:
            code = self.encoder.vector(code)
        _, height, width, _ = images.shape
        return Encoded(code, maps, switches, (height, width))

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        mask: Bool[Array, "b h w"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """The reconstruction, in the input's own scale; masked pixels are not seen.

        Raises:
            UserError: the encoder drops pixels at this size (VGG).
        """
        context = Context(train=train, mask=mask)
        return self.decoder(self.encode(images, context), context)


def build_autoencoder(config: ModelConfig, *, rngs: nnx.Rngs) -> Autoencoder:
    """The autoencoder a config names, freshly initialised."""
    return Autoencoder(config, rngs=rngs)
