"""A dictionary of image patches: features without a network, fitted in seconds.

Coates, Lee & Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature
Learning" (2011): patches are contrast-normalised and whitened, and a dictionary of
directions is learned from them by k-means; an image is described by how strongly each
direction responds in each quarter. Joined to the features of an encoder it fills in
what a short training has not learned yet.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from afterimage.errors import UserError
from afterimage.models import ops
from afterimage.models.encoders.patches import (
    CONTRAST_FLOOR,
    THRESHOLD,
    WHITENING_FLOOR,
    inverse_contrast,
)
from afterimage.models.heads import pool_features

FILTERS = 256
"""Filters of a dictionary; a vector has four numbers for each."""
_PATCHES, _ROUNDS = 40_000, 10
_LARGEST = 32  # larger images are reduced to this side: patches stay cheap
_SIDE = 6


@dataclasses.dataclass(frozen=True)
class PatchDictionary:
    """Filters for small patches; called with normalised images, it gives vectors.

    With p a patch of k x k pixels, the vector holds for each filter f and each quarter
    of the image the mean of

        max(0, (p - mean p) . f / sqrt(var p + 0.0025) + shift)

    over its patches. Whitening is a part of `filters` and `shift`. Images whose shorter
    side is above 32 px are reduced to it first.
    """

    filters: np.ndarray
    """float32 [k, k, channels, n]; the mean of each is 0."""
    shift: np.ndarray
    """float32 [n]"""

    def __post_init__(self) -> None:
        sides, shift = np.shape(self.filters), np.shape(self.shift)
        square = len(sides) == 4 and 0 < sides[0] == sides[1]
        if not square or shift != sides[3:]:
            raise UserError(
                f"filters {sides} and shifts {shift} are not those of a dictionary of "
                "patches: [k, k, channels, n] and [n]"
            )

    @classmethod
    def fit(cls, images: Float[np.ndarray, "n h w c"], seed: int = 0):
        """The dictionary of normalised images: k-means of the directions of patches.

        To save memory, large images may be given as `reduced` gives them.
        """
        rng = np.random.default_rng(seed)
        small = np.asarray(reduced(jnp.asarray(images)))
        k = min(_SIDE, max(2, min(small.shape[1:3]) // 2))
        patches = _random_patches(small, k, rng)
        patches -= patches.mean(1, keepdims=True)
        patches /= np.sqrt(patches.var(1, keepdims=True) + CONTRAST_FLOOR)
        mean = patches.mean(0)
        energy, basis = np.linalg.eigh(np.cov(patches.T, bias=True))
        scale = 1 / np.sqrt(np.maximum(energy, 0) + WHITENING_FLOOR)
        whitening = ((basis * scale) @ basis.T).astype(np.float32)
        kernel = whitening @ _directions((patches - mean) @ whitening, rng).T
        shift = -(mean @ kernel) - THRESHOLD
        kernel -= kernel.mean(0)  # instead of from every patch
        return cls(
            kernel.reshape(k, k, images.shape[-1], -1).astype(np.float32),
            shift.astype(np.float32),
        )

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        """The vectors of normalised images; traceable."""
        one = jax.checkpoint(lambda image: self._vectors(image[None])[0])
        # On CPU one image at a time stays within the caches.
        by_one = functools.partial(lax.map, one)
        return ops.by_platform(by_one, self._vectors, reduced(images))

    @property
    def size(self) -> int:
        """Length of a vector of images of at least twice the patches' side."""
        return 4 * self.filters.shape[-1]

    def _vectors(self, x: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        k = self.filters.shape[0]
        if min(x.shape[1:3]) < k:
            raise UserError(
                f"images of {x.shape[1]} x {x.shape[2]} px are too small for patches "
                f"of {k} x {k}; scale them (resize=True)"
            )
        found = lax.conv_general_dilated(
            x.astype(jnp.float32),
            jnp.asarray(self.filters),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        found = jax.nn.relu(
            found * inverse_contrast(x, k) + self.shift[None, None, None]
        )
        return pool_features([found], "grid")


def reduced(images: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
    """Images as a dictionary takes them: with a shorter side of at most 32 px."""
    return ops.reduced(images, _LARGEST)


def _random_patches(
    images: Float[np.ndarray, "n h w c"], k: int, rng: np.random.Generator
) -> Float[np.ndarray, "m d"]:
    n, h, w, c = images.shape
    # About fifty of each image, and always several for each filter.
    count = min(_PATCHES, max(8 * FILTERS, 50 * n))
    rows, tops, lefts = (
        rng.integers(most, size=count) for most in (n, h - k + 1, w - k + 1)
    )
    patches = np.empty((count, k, k, c), np.float32)
    for y in range(k):
        for x in range(k):
            patches[:, y, x] = images[rows, tops + y, lefts + x]
    return patches.reshape(count, -1)


def _directions(
    white: Float[np.ndarray, "n d"], rng: np.random.Generator
) -> Float[np.ndarray, "o d"]:
    """Unit vectors by k-means of directions: each becomes the sum of the patches that
    it describes best, times their projection ("Learning Feature Representations with
    K-means" (2012), section 2)."""
    from scipy.sparse import csr_array

    n, number = len(white), np.arange(len(white))
    found = white[rng.permutation(n)[:FILTERS]]
    found /= np.linalg.norm(found, axis=1, keepdims=True) + 1e-6
    for _ in range(_ROUNDS):
        answers = white @ found.T
        best = np.abs(answers).argmax(1)
        share = csr_array((answers[number, best], (best, number)), (len(found), n))
        sums = share @ white
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        # A direction that describes no patch starts again from one.
        sums = np.where(length > 1e-6, sums, white[rng.permutation(n)[: len(found)]])
        found = sums / (np.linalg.norm(sums, axis=1, keepdims=True) + 1e-6)
    return found
