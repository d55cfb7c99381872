"""What docs/guide/extending.md shows: one thing of each kind, from another package."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from afterimage.data import Source
from afterimage.fields import at_least_0
from afterimage.finetune.method import Method
from afterimage.models import build_encoder
from afterimage.models.encoder import EncoderNetwork, make_feature_info
from afterimage.models.layers import Patchify
from afterimage.plugins import (
    AUGMENTATIONS,
    ENCODERS,
    METHODS,
    OBJECTIVES,
    SOURCES,
)
from afterimage.pretrain.objective import Objective
from afterimage.training.stage import Term


# [encoder]
@ENCODERS.add("two-patches")
class TwoPatches(EncoderNetwork):
    """two patchify layers and nothing else"""

    widths, depths, stems = (16, 32), (0, 0), (2, 4)

    def build(self, config, rngs):
        self.stages = nnx.List([])
        channels, stride = config.channels, config.stem_stride
        for width in config.widths:
            self.stages.append(Patchify(channels, width, stride, rngs=rngs))
            channels, stride = width, 2
        self.feature_info = make_feature_info(config, config.stem_stride, config.widths)

    def encode(self, images, context):
        maps, x = [], images
        for stage in self.stages:
            x = jax.nn.relu(stage(x, context))
            maps.append(context.hide(x))
        return maps, []  # no switches: there is no max-pooling


# [objective]
class Embedding(nnx.Module):
    def __init__(self, model, *, rngs):
        self.encoder = build_encoder(model, rngs=rngs)

    def __call__(self, images, *, train=False):
        return self.encoder.features(images, train=train)


@OBJECTIVES.add("same-place")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SamePlace(Objective):
    """Make two views of an image alike, and the features of a batch uncorrelated."""

    views = ("view", "other")
    weight: float = 0.1
    """Weight of the correlation."""

    def problems(self, config, model):
        return at_least_0(self, "weight")

    def build(self, model, rngs):
        return Embedding(model, rngs=rngs)

    def rules(self, forward):
        def features(name):
            scale = forward.setup.preprocessing.normalise
            return lambda ctx: forward(scale(ctx[f"train/{name}"]))[0]

        own = {f"train/features/{name}": features(name) for name in self.views}
        return super().rules(forward) | own

    def terms(self, setup):
        first, second = names = tuple(f"train/features/{n}" for n in self.views)
        alike = lambda view: (jnp.square(view[first] - view[second]).mean(-1), {})  # noqa: E731
        spread = lambda view: (correlation(view[first]), {})  # noqa: E731
        return (
            Term(name="alike", fn=alike, reads=names),
            Term(name="spread", fn=spread, reads=(first,), weight=self.weight),
        )

    def measure(self, forward, pixels):
        z, _ = forward(forward.setup.preprocessing.normalise(pixels))
        return {"loss": jnp.square(z).mean(-1)}, ()


# [objective: its loss]
def correlation(z):
    z = z - z.mean(0, keepdims=True)
    return jnp.square(z.T @ z / len(z) - jnp.eye(z.shape[1])).mean()


# [method]
@METHODS.add("short-features")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortFeatures(Method):
    """Features stay near zero."""

    weight: float = 0.01
    """Weight of the mean squared feature."""

    def problems(self, config):
        return at_least_0(self, "weight")

    def terms(self, setup, phase=0):
        def short(view):
            return jnp.square(view["train/features"]).mean(-1), {}

        reads = ("train/features",)
        return [Term(name="short", fn=short, reads=reads, weight=self.weight)]


# [augmentation]
@AUGMENTATIONS.add("upside-down")
def upside_down(key, images):
    """Half of the images turned by 180 degrees."""
    turned = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(turned, images[:, ::-1, ::-1], images)


# [source]
class Frames:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        image = np.zeros((16, 16, 1), np.uint8)
        image[row % 16] = 255
        return {"image": image, "label": "low" if row % 16 < 8 else "high"}


@SOURCES.add("bars")
class Bars(Source):
    """Frames of a moving bar, with its half of the image as the label."""

    form = "COUNT"

    def open(self, rest, request):
        return {"train": Frames(int(rest)), "test": Frames(16)}


# [end]
