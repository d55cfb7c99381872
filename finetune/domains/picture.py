"""Pictures of two domains: in the space that the head reads, and composed."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afterimage.data import ImageSet
from afterimage.evaluation.embedding import draw_embedding, embed
from afterimage.finetune.domains.composing import COMPOSERS
from afterimage.finetune.scoring import Scorer
from afterimage.pictures import draw_rows
from afterimage.runs import write_png
from afterimage.training.sweep import spaced

_IMAGES = 400  # of each domain
_COMPOSED = 10


def domain_picture(
    scorer: Scorer,
    model: tuple[Any, Any],
    source: ImageSet,
    target: ImageSet,
    path: pathlib.Path | None,
) -> tuple[str, pathlib.Path] | None:
    """(caption, PNG): features of both domains on their first two principal axes.

    Where they are alike, the two colours cannot be told apart. `path` None (a process
    that does not write) computes its share of the features and draws nothing.
    """
    some = [spaced(images, _IMAGES) for images in (source, target)]
    features = np.concatenate([scorer.features(*model, images) for images in some])
    if path is None:
        return None
    pixels = np.concatenate([s.gather(np.arange(len(s))) for s in some])
    domain = np.repeat([0, 1], [len(images) for images in some])
    # Neither domain lies on top of the other.
    order = np.random.default_rng(0).permutation(len(domain))
    places, how = embed(features[order])
    names = ("source", "target")
    picture = draw_embedding(places, pixels[order], domain[order], names, caption=how)
    caption = f"{len(some[0])} images of {source.name}, {len(some[1])} of {target.name}"
    return f"{caption}: {how}", write_png(picture, path)


def composed_picture(
    name: str, source: ImageSet, target: ImageSet, path: pathlib.Path, *, seed: int
) -> tuple[str, pathlib.Path]:
    """(caption, PNG): labelled images, target images, and what the composer called
    `name` makes of the two at its full strength; the augmentation is left out."""
    pixels = []
    for images in (source, target):
        some = spaced(images, _COMPOSED)
        pixels.append(some.gather(np.arange(len(some))))
    count = min(map(len, pixels))
    labelled, others = (jnp.asarray(p[:count], jnp.float32) / 255 for p in pixels)
    composed = jax.jit(COMPOSERS[name])(jax.random.key(seed), labelled, others)
    rows = {"labelled": labelled, "target": others, name: composed}
    picture = draw_rows({label: np.asarray(row) for label, row in rows.items()})
    caption = "can a person still read the labelled figure in the last row?"
    return caption, write_png(picture, path)
