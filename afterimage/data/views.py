"""Two views of each image, augmented as suits what a set of images shows."""

import numpy as np
from jaxtyping import Float, UInt8


def is_writing(images: UInt8[np.ndarray, "n h w c"]) -> bool:
    """Whether images are grey strokes on a plain ground: digits, letters, drawings.

    At 32 pixels: at least 40 % of an image has the ground's tone, and less than 8 % of
    the rest is left after eroding it by a 7x7 square, so that it is thin. (MNIST: 80 %
    and 0; photos of CIFAR-10: 24 % and 16 %.) Means over the images.
    """
    import cv2

    values = images.astype(np.float32)
    grey = values.mean(-1)
    if np.abs(values - grey[..., None]).mean() > 1 or images.shape[-1] not in (1, 3):
        return False
    grounds, left = [], []
    for image in grey:
        small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
        tones = np.bincount((small // 16).astype(int).ravel(), minlength=16)
        ground = 16 * tones.argmax() + 8
        ink = (np.abs(small - ground) > 48).astype(np.uint8)
        if not ink.any():
            continue  # an empty page
        thick = cv2.erode(ink, np.ones((7, 7), np.uint8))
        grounds.append(tones.max() / small.size)
        left.append(thick.sum() / ink.sum())
    return bool(left and np.mean(grounds) >= 0.4 and np.mean(left) < 0.08)


def suited_augment(images: UInt8[np.ndarray, "n h w c"]) -> str:
    """`--augment` for such images: "writing" or "photos"."""
    return "writing" if is_writing(images) else "photos"


def two_views(
    images: UInt8[np.ndarray, "n h w c"], augment: str, seed: int = 0
) -> tuple[UInt8[np.ndarray, "n h w c"], UInt8[np.ndarray, "n h w c"]]:
    """Two augmented views of each image; the same seed, images and `augment` (as in
    `--augment`) give the same views."""
    import jax

    from afterimage.data.augmentations import make_augment

    drawn = jax.jit(make_augment(augment))
    pixels = images.astype(np.float32) / 255
    first, second = (
        np.asarray(drawn(key, pixels)) for key in jax.random.split(jax.random.key(seed))
    )
    return _rounded(first), _rounded(second)


def _rounded(images: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    return np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
