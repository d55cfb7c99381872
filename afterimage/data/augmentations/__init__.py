"""Augmentations on the device, inside jit: (key, images in [0, 1]) -> images.

Each image draws its own random numbers from the key. To add an augmentation, register
a function: `@AUGMENTATIONS.add("my-augmentation")`.
"""

from collections.abc import Callable

from jaxtyping import Array, Float

from afterimage.plugins import AUGMENTATIONS

Augment = Callable[[Array, Float[Array, "b h w c"]], Float[Array, "b h w c"]]


def make_augment(name: str) -> Augment:
    """The augmentation of this name; UserError for an unknown one."""
    return AUGMENTATIONS.get(name)
