"""Augmentations on the device, inside jit: (key, images in [0, 1]) -> images.

Each image draws its own numbers from the key. A new one is a function that is
registered: `@AUGMENTATIONS.add("my-augmentation")`.
"""

from collections.abc import Callable

from jaxtyping import Array, Float

from afterimage.plugins import AUGMENTATIONS

Augment = Callable[[Array, Float[Array, "b h w c"]], Float[Array, "b h w c"]]


def make_augment(name: str) -> Augment:
    """The augmentation of this name; UserError for an unknown one."""
    return AUGMENTATIONS.get(name)
