"""The feature vector: feature maps pooled, then standardised or whitened if that helps;
often joined with a dictionary of image patches and with HOG.

The statistics and the dictionary are of training images and are stored with the
encoder, as `stats["vector"]`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afterimage.errors import UserError
from afterimage.models.dictionary import PatchDictionary
from afterimage.models.encoder import FeatureInfo
from afterimage.models.heads import POOLS, pool_features
from afterimage.models.hog import joined_hog, joined_hog_size

if TYPE_CHECKING:
    from afterimage.evaluation.spectrum import Moments

STATS = "vector"
"""The key of the statistics beside the network's own; no layer can have this name."""
TRANSFORMS = ("none", "standardise", "whiten")
CANDIDATES = ("last", "grid", "pyramid-grid")
"""Poolings that are compared at the end of a run."""
WIDEST = 2048
"""Poolings with more numbers than this are not chosen."""
WHITENED = 64
"""Most numbers of a whitened vector; fewer if there are not eight images for each."""

_POOLED = {
    "last": "mean of the last map",
    "pyramid": "means of all maps",
    "grid": "2x2 grid of the last map",
    "grid-3": "3x3 grid of the last map",
    "pyramid-grid": "2x2 grids of all maps",
}
_FITTED = {"none": (), "standardise": ("mean", "scale"), "whiten": ("mean", "axes")}
_DICTIONARY = tuple(field.name for field in dataclasses.fields(PatchDictionary))

Parts = Mapping[str, Any]
"""{name: vectors [b, d]}, by the names of `VectorRecipe.joins`."""


@dataclasses.dataclass(frozen=True)
class VectorRecipe:
    """How feature maps become a feature vector: a pool, then a linear transform.

    With x the pooled maps of an image, followed by its vector by the dictionary and
    its HOG if they are joined, and m, s and C their mean, deviation and covariance over
    training images:

        none         x
        standardise  (x - m) / s; a constant number is only centred
        whiten       (x - m) V L^(-1/2), with the k largest eigenvalues L and their
                     eigenvectors V of C: k numbers without correlation, of variance 1

    Raises UserError for an unknown name, or arrays that do not belong to the transform.
    """

    pool: str = "last"
    """One of POOLS (`pool_features`)."""
    transform: str = "none"
    """One of TRANSFORMS."""
    fitted: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """`mean` [d], and `scale` [d] or `axes` [d, k]: float32."""
    dictionary: PatchDictionary | None = None
    """Patches that are joined to the pooled maps."""
    hog: bool = False
    """Whether histograms of oriented gradients are joined (`joined_hog`)."""

    def __post_init__(self) -> None:
        for name, known in (("pool", POOLS), ("transform", TRANSFORMS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}"
                )
        shapes = {name: np.shape(array) for name, array in self.fitted.items()}
        mean = shapes.get("mean", ())
        if (
            set(shapes) != set(_FITTED[self.transform])
            or (shapes and len(mean) != 1)
            or shapes.get("scale", mean) != mean
            or ("axes" in shapes and shapes["axes"][:-1] != mean)
        ):
            raise UserError(
                f"the arrays {shapes} are not those of {self.transform!r}: "
                f"{', '.join(_FITTED[self.transform]) or 'none'}"
            )
        if not np.all(np.asarray(self.fitted.get("scale", 1)) > 0):
            raise UserError("the scale of the feature vector is not above 0")

    @classmethod
    def of(
        cls,
        pool: str,
        transform: str,
        arrays: Mapping[str, np.ndarray],
        *,
        hog: bool = False,
    ) -> "VectorRecipe":
        """The recipe with stored `arrays` (see `arrays`)."""
        patches = {name: arrays[name] for name in _DICTIONARY if name in arrays}
        if patches and len(patches) < len(_DICTIONARY):
            raise UserError(f"a dictionary of patches needs {', '.join(_DICTIONARY)}")
        fitted = {name: a for name, a in arrays.items() if name not in patches}
        dictionary = PatchDictionary(**patches) if patches else None
        return cls(pool, transform, fitted, dictionary, hog)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, by name: those of the transform and of the dictionary."""
        patches = self.dictionary
        parts = {} if patches is None else {n: getattr(patches, n) for n in _DICTIONARY}
        return {**self.fitted, **parts}

    @classmethod
    def fit(
        cls,
        pool: str,
        transform: str,
        moments: "Moments | None",
        dictionary: PatchDictionary | None = None,
        *,
        hog: bool = False,
    ) -> "VectorRecipe":
        """The recipe with the statistics of pooled maps of training images.

        With a dictionary or HOG, the moments are of pooled maps joined with their
        vectors. `moments` is not read if the transform is none.
        """
        if transform == "none":
            return cls(pool, dictionary=dictionary, hog=hog)
        assert moments is not None
        mean = moments.mean.astype(np.float32)
        if transform == "standardise":
            from afterimage.evaluation.probes import usable_scale

            scale = usable_scale(moments.mean, moments.deviation).astype(np.float32)
            fitted = {"mean": mean, "scale": scale}
            return cls(pool, transform, fitted, dictionary, hog)
        energy, axes = principal_axes(moments, min(WHITENED, moments.count // 8))
        energy = np.maximum(energy, 1e-12)
        # Below this, a variance is rounding error beside the largest.
        keep = energy >= 1e-7 * energy[0]
        axes = (axes / np.sqrt(energy)[None])[:, keep].astype(np.float32)
        return cls(pool, transform, {"mean": mean, "axes": axes}, dictionary, hog)

    @property
    def joins(self) -> tuple[str, ...]:
        """The names of what follows the pooled maps: patches, hog."""
        there = {"patches": self.dictionary is not None, "hog": self.hog}
        return tuple(name for name, is_there in there.items() if is_there)

    def __call__(
        self,
        maps: list[Float[Array, "b _h _w _c"]],
        images: Float[Array, "b h w c"],
    ) -> Float[Array, "b d"]:
        """The vectors of normalised images with these maps, finest first; traceable."""
        found = [pool_features(maps, self.pool)]
        if self.dictionary is not None:
            found.append(self.dictionary(images))
        if self.hog:
            found.append(joined_hog(images))
        return self.transformed(jnp.concatenate(found, -1))

    def joined(
        self, pooled: Float[np.ndarray, "b _p"], parts: Parts
    ) -> Float[np.ndarray, "b _d"]:
        """Pooled maps, followed by those of the parts that this vector joins."""
        return np.concatenate([pooled, *(parts[name] for name in self.joins)], axis=1)

    def transformed(self, pooled: Any) -> Any:
        """The vectors of pooled maps [b, d], of JAX or NumPy."""
        if not self.fitted:
            return pooled
        mean = self.fitted["mean"]
        if pooled.shape[1] != len(mean):
            raise UserError(
                f"images of this size give {pooled.shape[1]} numbers, and the feature "
                f"vector of this encoder has statistics of {len(mean)}; scale them to "
                f"its size (resize=True), or take pool={self.pool!r}"
            )
        centred = pooled - mean[None]
        if self.transform == "standardise":
            return centred / self.fitted["scale"][None]
        return centred @ self.fitted["axes"]

    def size(self, info: Sequence[FeatureInfo], image_size: tuple[int, int]) -> int:
        """Length of the vector for images of this size."""
        if "axes" in self.fitted:
            return int(self.fitted["axes"].shape[1])
        joined = 0 if self.dictionary is None else self.dictionary.size
        joined += joined_hog_size(image_size) if self.hog else 0
        return pooled_size(info, image_size, self.pool) + joined

    def __str__(self) -> str:
        """`2x2 grid of the last map, standardised`."""
        done = {"standardise": ", standardised"}
        if "axes" in self.fitted:
            done["whiten"] = f", whitened to {self.fitted['axes'].shape[1]} numbers"
        joined = []
        if self.dictionary is not None:
            joined.append(f"{self.dictionary.shift.size} patch filters")
        joined += ["HOG"] if self.hog else []
        with_ = f" with {' and '.join(joined)}" if joined else ""
        return _POOLED[self.pool] + with_ + done.get(self.transform, "")


def principal_axes(
    moments: "Moments", most: int
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "d k"]]:
    """(variances, directions) of the `most` largest principal components, at least one.

    Each direction is signed so that its largest entry is positive.
    """
    from scipy.linalg import eigh

    covariance = moments.scatter / max(moments.count, 1)
    d = len(covariance)
    kept = max(1, min(most, d))
    energy, axes = eigh(covariance, subset_by_index=[d - kept, d - 1])
    energy, axes = np.maximum(energy[::-1], 0), axes[:, ::-1]
    return energy, axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(kept)])[None]


def pooled_size(
    info: Sequence[FeatureInfo], image_size: tuple[int, int], pool: str
) -> int:
    """Length of `pool_features` for images of this size."""
    cells = (3 if pool == "grid-3" else 2) if "grid" in pool else 1

    def size(level: FeatureInfo) -> int:
        down, across = (min(cells, level.sites(n)) for n in image_size)
        return down * across * level.channels

    chosen = info if pool.startswith("pyramid") else info[-1:]
    return sum(map(size, chosen))


def moments_of(pooled: Float[np.ndarray, "n d"]) -> "Moments":
    """Count, mean and scatter of pooled maps."""
    from afterimage.evaluation.spectrum import Moments

    moments = Moments(pooled.shape[1])
    moments.add(pooled)
    return moments


def candidates(
    info: Sequence[FeatureInfo], image_size: tuple[int, int]
) -> tuple[str, ...]:
    """The poolings worth comparing: no two alike, and none too wide.

    The mean of the last map is always one of them.
    """
    sizes: dict[int, str] = {}
    for pool in CANDIDATES:
        # Equal sizes are equal vectors: a grid of one site, or of the only map.
        sizes.setdefault(pooled_size(info, image_size, pool), pool)
    return tuple(p for n, p in sizes.items() if p == "last" or n <= WIDEST)


def usual_pool(
    pool: str, info: Sequence[FeatureInfo], image_size: tuple[int, int]
) -> str:
    """`pool`, or a simpler name for the same vector; `last` if it is too wide.

    Raises UserError for an unknown name.
    """
    VectorRecipe(pool)
    wanted = pooled_size(info, image_size, pool)
    for candidate in candidates(info, image_size):
        if pooled_size(info, image_size, candidate) == wanted:
            return candidate
    return pool if wanted <= WIDEST else "last"
