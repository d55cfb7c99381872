"""Compose: combines labelled images with pixels of target images, on the device.

Augmentation cannot imitate every domain shift, such as the clutter of photos. Target
images bring it into the labelled ones, and need no labels to do so. Images are composed
after both have been augmented.
"""

import dataclasses
import zlib
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afterimage.finetune.method import METHODS, Method
from afterimage.pictures import draw_rows
from afterimage.runs import write_png
from afterimage.training.batches import subsample
from afterimage.training.stage import Context

_DRAWN = 10
MIXED = 0.7
"""Largest share of the target image in `mixup`."""
_FULL_AT = 0.5


def strength(progress: Float[Array, ""] | float) -> Array:
    """How strongly images are composed at this share of a phase: 0 to 1 at half of it.

    Images that are hard from the first step on are not learned at all.
    """
    return jnp.minimum(1.0, jnp.asarray(progress, jnp.float32) / _FULL_AT)


def mixup(
    key: Array,
    images: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    most: Float[Array, ""] | float = 1.0,
) -> Float[Array, "b h w c"]:
    """(1 - m) s + m t of a labelled image s and a target image t, with the label of s.

    m is uniform in [0, 0.7 · `most`]. The pixel mixing of Xu et al. 2020, "Adversarial
    domain adaptation with domain mixup", where an adversary also predicts the share.
    """
    share = jax.random.uniform(key, (len(images), 1, 1, 1), images.dtype)
    return images + MIXED * most * share * (target - images)


def ink(
    key: Array,
    images: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    most: Float[Array, ""] | float = 1.0,
) -> Float[Array, "b h w c"]:
    """g + (f - g) s: a labelled image s in [0, 1] blends figure f and ground g.

    Both f and g are (1 - u) colour + u · target image (two different images), with
    random colours and u uniform in [0, a]; with probability 1 - a the colours are white
    and black. Each image has its own a = `most` · √uniform, so that easy images remain
    among the hard ones; `most` = 0 leaves the images unchanged. After Jaderberg et al.
    2014, "Synthetic data and artificial neural networks for natural scene text
    recognition", §2: layers of a drawn word are coloured and blended with crops of the
    images in which words are to be recognised.
    """
    far, which, *keys = jax.random.split(key, 6)
    one = (len(images), 1, 1, 1)
    most = most * jnp.sqrt(jax.random.uniform(far, one, images.dtype))
    coloured = jax.random.bernoulli(which, most)

    def layer(keys: tuple[Array, Array], pixels: Array, plain: float) -> Array:
        colour = jax.random.uniform(keys[0], (*one[:3], images.shape[-1]), images.dtype)
        share = most * jax.random.uniform(keys[1], one, images.dtype)
        return (1 - share) * jnp.where(coloured, colour, plain) + share * pixels

    ground = layer((keys[0], keys[1]), target, 0.0)
    figure = layer((keys[2], keys[3]), jnp.roll(target, 1, axis=0), 1.0)
    return ground + (figure - ground) * images


COMPOSERS: dict[str, Callable[..., Array]] = {"mixup": mixup, "ink": ink}


@METHODS.add("compose", group="target")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Compose(Method):
    """Combines labelled images with pixels of target images."""

    target_in_batch: ClassVar[bool] = True

    kind: Literal["mixup", "ink"] = "mixup"
    """How labelled and target images are combined; the strength grows until half of the
    phase. mixup: a blend with a target image. ink: for bright letters, signs and
    drawings on dark: the bright parts get a colour and the texture of a target image,
    the dark parts another image."""

    def providers(self, setup, known, now):
        own = jax.random.fold_in(now.key, zlib.crc32(b"composing"))
        augmented = known["train/view"]

        def view(ctx: Context) -> Array:
            most = strength(ctx["progress"])
            draw = COMPOSERS[self.kind]
            return draw(own, augmented(ctx), ctx["target/view"], most)

        return {"train/view": view}

    def pictures(self, setup, model, folder):
        """Labelled images, target images, and both combined at full strength.

        Without augmentation.
        """
        if folder is None:
            return {}
        pixels = []
        for images in (setup.data.labels.train, setup.data.target_images):
            some = subsample(images, _DRAWN)
            pixels.append(some.gather(np.arange(len(some))))
        count = min(map(len, pixels))
        labelled, others = (jnp.asarray(p[:count], jnp.float32) / 255 for p in pixels)
        key = jax.random.key(setup.config.seed)
        composed = jax.jit(COMPOSERS[self.kind])(key, labelled, others)
        rows = {"labelled": labelled, "target": others, self.kind: composed}
        picture = draw_rows({label: np.asarray(row) for label, row in rows.items()})
        caption = "can you still recognise the labelled object in the last row?"
        path = write_png(picture, folder / "composed.png")
        return {"Labelled images combined with target images": (caption, path)}
