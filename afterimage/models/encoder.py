"""What every encoder is: images to feature maps, finest first, and to a vector.

Every encoder takes any input of at least 8 px. A map of stride s is ceil(H / s) high:
patchify pads odd sides at the bottom and right, 3x3 convolutions pad on all sides.
"""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from afterimage.errors import UserError
from afterimage.models import layers
from afterimage.models.config import FeatureInfo, ModelConfig
from afterimage.models.layers import Context

Maps = list[Float[Array, "b _h _w _c"]]
Switches = list[UInt8[Array, "b _h _w _c"]]


class Encoder(nnx.Module):
    """What all encoders share: a stem, stages, and the vector an image becomes.

    A subclass makes its layers in `build`, and says how they run in `encode`.
    """

    feature_info: tuple[FeatureInfo, ...]

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.build(config, rngs)
        last = self.feature_info[-1]
        if config.bottleneck is None:
            self.bottleneck = None
        else:
            h, w = (-(-n // last.stride) for n in config.image_size)
            flat = h * w * last.channels
            self.bottleneck = layers.Dense(flat, config.bottleneck, rngs=rngs)

    def build(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        """Make the layers, and set `feature_info`."""
        raise NotImplementedError

    def encode(self, images: Array, context: Context) -> tuple[Maps, Switches]:
        """Feature maps, and the switches of the max-pooling where there is any.

        With a mask in the context, maps are zero at masked sites.
        """
        raise NotImplementedError

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        mask: Bool[Array, "b h w"] | None = None,
        train: bool = False,
    ) -> Maps:
        """Feature maps, finest first, each ceil(h / stride) x ceil(w / stride).

        What stands at pixels where `mask` is true changes nothing, bit for bit; maps
        are zero at sites of which every pixel is masked.
        """
        return self.encode(images, Context(train=train, mask=mask))[0]

    @property
    def num_features(self) -> int:
        """Length of the feature vector."""
        return self.config.bottleneck or self.feature_info[-1].channels

    def features(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b d"]:
        """The feature vector: the bottleneck if any, else the mean of the last map."""
        return self.vector(self(images, train=train)[-1])

    def vector(
        self, last: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b d"]:
        """The feature vector of the last map.

        Raises:
            UserError: a bottleneck met images of another size than it was built for.
        """
        del train  # a bottleneck has no batch statistics
        if self.bottleneck is None:
            return last.mean((1, 2))
        flat = last.reshape(last.shape[0], -1)
        if flat.shape[1] != self.bottleneck.kernel.shape[0]:
            raise UserError(
                f"this encoder's bottleneck was built for images of"
                f" {self.config.image_size} px, and these give a last map of"
                f" {last.shape[1:]}; resize the images to that size"
            )
        return self.bottleneck(flat)


def make_feature_info(
    config: ModelConfig, first: int, widths: Sequence[int]
) -> tuple[FeatureInfo, ...]:
    """A stage a width, each of twice the stride of the one before."""
    return tuple(
        FeatureInfo(f"stages/{i}", width, first * 2**i)
        for i, width in enumerate(widths)
    )
