"""The pretrained encoder: images in, feature vectors out."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

import afterimage
from afterimage.checkpoints.errors import CheckpointError, TransferError
from afterimage.checkpoints.names import printable, shortened
from afterimage.checkpoints.schemas import in_lines
from afterimage.checkpoints.trees import flatten, transfer
from afterimage.checkpoints.weights import read_encoder, write_encoder
from afterimage.console import ProgressBar
from afterimage.data import Preprocessing
from afterimage.data.preprocessing import Batch, image_batches, prepare
from afterimage.errors import UserError
from afterimage.evaluation.text import probe_lines
from afterimage.models import (
    FeatureInfo,
    ModelConfig,
    Network,
    abstract_encoder,
    build_encoder,
    pool_features,
)
from afterimage.models.dictionary import PatchDictionary, reduced
from afterimage.models.encoder import MIN_IMAGE_SIZE
from afterimage.models.heads import POOLS, mean_over_views
from afterimage.models.vector import STATS, VectorRecipe, moments_of
from afterimage.runtime import jit
from afterimage.storage.reading import local

# Batches sent to the device before waiting for the first result: one computes, one is
# queued behind it, and meanwhile the host prepares the next.
_IN_FLIGHT = 2
VECTORS = ("vector", *POOLS)
"""Kinds of feature vector: the encoder's own, or pooled feature maps."""


class Encoder:
    """A pretrained encoder with its preprocessing; `load_encoder` returns one.

    `features` and `feature_maps` take uint8 or float images in [0, 1]: NHWC, one HWC
    image, or a list of HWC images of any sizes. For use inside your own `jax.jit`,
    `apply` and `apply_maps` are pure functions of (params, images).

    An encoder never changes after construction, so threads may share it.
    """

    params: dict[str, Any]
    """Parameters, a nested dict of float32 arrays on the default device."""
    stats: dict[str, Any]
    """State that is not learned by gradient (BatchNorm's moments); often empty."""
    manifest: dict[str, Any]
    """The artefact's metadata: model, data, how it was trained."""
    config: ModelConfig
    """The configuration the network is built from."""
    preprocessing: Preprocessing
    """Trained size, channels, mean and standard deviation."""
    network: Network
    """The network as a pure function of (params, stats, normalised images)."""
    feature_info: tuple[FeatureInfo, ...]
    """Name, channels and stride of each feature map, finest first."""
    vector: VectorRecipe | None
    """How the maps become the feature vector; None if the network itself says so, by a
    bottleneck or a norm of its own."""
    num_features: int
    """Length D of a feature vector."""

    def __init__(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        manifest: Mapping[str, Any],
        *,
        dtype: str = "float32",
    ):
        """Raises CheckpointError if the arrays do not fit manifest["model"].

        `dtype="bfloat16"` is faster on accelerators, with about three digits.
        float32 means full float32, even where a device would round products (TF32).
        """
        self.manifest = dict(manifest)
        self.config = stored_model(manifest)
        self.preprocessing = stored_preprocessing(manifest)
        # Only shapes: random initial values would be overwritten at once.
        module = abstract_encoder(self.config)
        self.feature_info = module.feature_info
        stats = dict(stats)
        fitted = stats.pop(STATS, {})
        self.vector = _recipe(self.config, self.feature_info, manifest, fitted)
        size = self.config.image_size
        self.num_features = (
            module.num_features
            if self.vector is None
            else self.vector.size(self.feature_info, size)
        )
        self.network, *wanted = Network.create(module, dtype=dtype)
        _check_leaves(wanted, [params, stats], self.config.name)
        self.params, self.stats = jax.device_put((dict(params), dict(stats)))
        self._features = {("vector", "none"): jit(self.apply)}
        self._maps = jit(self.apply_maps)

    def __repr__(self) -> str:
        """Architecture, input, features, training data and probes, in a few lines."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        height, width = self.preprocessing.image_size
        trained, data = self.manifest["trained"], self.manifest["data"]["name"]
        # A choice with settings is stored as a mapping with its name.
        chosen = (trained.get(key) for key in ("objective", "mode"))
        how = [str(c["name"] if isinstance(c, dict) else c) for c in chosen if c]
        how += [f"{trained['steps']} steps"] if "steps" in trained else []
        lines = [
            f"Encoder {self.config.name}: {count:,} parameters",
            f"{height} x {width} px, {self.preprocessing.channels} channels -> "
            f"{self.num_features} features ({self.vector or self._own}), "
            f"{len(self.feature_info)} maps",
            f"trained on {data or 'unknown images'}"
            + (f" ({', '.join(how)})" if how else ""),
            *probe_lines(self.manifest.get("probes")),
        ]
        return printable("\n  ".join(lines), keep="\n")

    @property
    def _own(self) -> str:
        """What the network's own vector is."""
        bottleneck = self.config.bottleneck is not None
        return "the bottleneck" if bottleneck else "normed mean of the last map"

    def apply(
        self, params: Mapping[str, Any], images: Num[Array, "n h w c"]
    ) -> Float[Array, "n d"]:
        """Feature vectors: pure and traceable, for use inside jit, grad, vmap or scan.

        `images` is uint8 or float in [0, 1], with a size and channels the network
        takes. It is normalised here, but neither resized nor checked. The vector is
        what `vector` says: pooled feature maps, perhaps joined with a dictionary of
        patches and HOG, and standardised or whitened by statistics of the training
        images. If it is None, the vector is the network's own.
        """
        if self.vector is None:
            return self._run(params, images, "features")
        maps = self.apply_maps(params, images)
        with self._precise():
            return self.vector(maps, self.preprocessing.normalise(images))

    def apply_maps(
        self, params: Mapping[str, Any], images: Num[Array, "n h w c"]
    ) -> list[Float[Array, "n _h _w _c"]]:
        """Like `apply`, but every feature map, finest first, as `feature_info` says."""
        return self._run(params, images, None)

    def _run(self, params: Mapping[str, Any], images: Any, method: str | None) -> Any:
        with self._precise():
            images = self.preprocessing.normalise(images)
            return self.network.apply(params, self.stats, images, method=method)[0]

    def _precise(self) -> contextlib.AbstractContextManager[None]:
        """float32 means full float32, even where a device would round products."""
        wanted = "highest" if self.network.dtype == "float32" else None
        return jax.default_matmul_precision(wanted)

    def features(
        self,
        images: Any,
        *,
        pool: str = "vector",
        views: str = "none",
        batch_size: int = 256,
        resize: bool = True,
        progress: bool = False,
    ) -> Float[np.ndarray, "n d"]:
        """Feature vectors of any number of images.

        `images` is uint8 or float in [0, 1], [N, H, W, C] or one [H, W, C] (NumPy or
        JAX), or a list of [H, W, C] of different sizes. Grey becomes RGB, and RGB grey,
        as the encoder needs. Other sizes are scaled and centre-cropped to the trained
        one; with `resize=False` images keep their size.

        `pool` is `vector`, the encoder's own, chosen at the end of its training (see
        `vector`); or one of POOLS, the plain pooled maps (`pool_features`).
        `views` (one of VIEWS: flip, shift, shift-flip) averages the vector over 2, 9 or
        18 views of each image and takes 2, 9 or 18 times as long.

        Compiles once per image shape and `batch_size`: a partial last batch is padded,
        and fewer images than a batch are padded to a power of two. Batching does not
        change the result (to 1e-5).

        Raises UserError for any other input: rank, channels, type, range, NaN, or sizes
        that the network cannot take.
        """
        batches, total = image_batches(images, batch_size)
        function = self._vectors(pool, views)
        parts = self._stream(function, batches, batch_size, resize)
        return joined(shown(parts, total) if progress else parts, total)

    def feature_maps(
        self, images: Any, *, batch_size: int = 256, resize: bool = True
    ) -> list[Float[np.ndarray, "n _h _w _c"]]:
        """Every feature map, finest first: [N, ceil(H / stride), ceil(W / stride), C].

        `feature_info` names them in the same order. Arguments as for `features`.
        """
        batches, total = image_batches(images, batch_size)
        parts = self._stream(self._maps, batches, batch_size, resize)
        return joined(parts, total)

    def stream(
        self,
        batches: Iterable[Batch],
        *,
        pool: str = "vector",
        views: str = "none",
        batch_size: int = 256,
        resize: bool = True,
        function: Callable[..., Any] | None = None,
    ) -> Iterator[Any]:
        """Feature vectors of each batch in turn, for data larger than memory.

        A batch is an array [b, H, W, C] or a list of [H, W, C], b ≤ `batch_size`; the
        next ones are read while the device computes. `function`, a jitted function of
        (params, images), replaces pool and views; its results, an array or a tree of
        arrays with one row per image, are returned as NumPy. Otherwise as `features`.
        """
        function = function or self._vectors(pool, views)
        return self._stream(function, batches, batch_size, resize)

    def vector_size(self, pool: str = "vector") -> int:
        """Length of the vectors `features` returns for images of the trained size."""
        shape = (1, *self.preprocessing.image_size, self.preprocessing.channels)
        function, image = self._vectors(pool, "none"), np.zeros(shape, np.uint8)
        return jax.eval_shape(function, self.params, image).shape[1]

    def _vectors(self, pool: str, views: str) -> Callable[..., Any]:
        """The jitted function of (params, images), compiled once for each choice."""
        if pool not in VECTORS:
            raise UserError(f"pool={pool!r} must be one of {', '.join(VECTORS)}")

        def vectors(params: Any, images: Any) -> Array:
            if pool == "vector":
                return self.apply(params, images)
            return pool_features(self.apply_maps(params, images), pool)

        key = pool, views
        if key not in self._features:
            self._features.setdefault(key, jit(mean_over_views(vectors, views)))
        return self._features[key]

    def _stream(
        self,
        function: Callable[..., Any],
        batches: Iterable[Batch],
        batch_size: int,
        resize: bool,
    ) -> Iterator[Any]:
        run = functools.partial(function, self.params)
        return stream(run, self.preprocessing, batches, batch_size, resize=resize)

    def untrained(self, seed: int = 0) -> "Encoder":
        """The same network freshly initialised, as a baseline for the trained one."""
        module = build_encoder(self.config, rngs=nnx.Rngs(seed))
        _, params, stats = Network.create(module)
        rest = {k: v for k, v in self.manifest.items() if k != "probes"}
        rest["trained"] = {"steps": 0, "seed": seed}
        if self.vector is not None:  # the statistics are not of this network
            rest["vector"] = {"pool": self.vector.pool, "transform": "none"}
        return Encoder(params, stats, rest, dtype=self.network.dtype)

    def with_vector(
        self,
        pool: str,
        transform: str = "none",
        images: Any = None,
        *,
        patches: bool = False,
        hog: bool = False,
    ) -> "Encoder":
        """The same encoder with another feature vector.

        `pool` is one of POOLS. `transform` is none, standardise or whiten, by the
        statistics of `images`, which are what `features` takes. `patches` joins a
        dictionary of the patches of these images, and `hog` their histograms of
        oriented gradients.

        Raises UserError for another name, an encoder with a bottleneck, or a transform
        or patches without images.
        """
        if self.config.bottleneck is not None:
            raise UserError("the feature vector of this encoder is its bottleneck")
        if images is None and (patches or transform != "none"):
            given = "patches=True" if patches else f"transform={transform!r}"
            raise UserError(f"{given} needs images to measure")
        vector, moments = VectorRecipe(pool, hog=hog), None
        if patches:
            batches, total = image_batches(images, 256)
            shown = self._stream(self._reduced, batches, 256, True)
            dictionary = PatchDictionary.fit(joined(shown, total))
            vector = VectorRecipe(pool, dictionary=dictionary, hog=hog)
        if transform != "none":
            moments = moments_of(self._with(vector, 0).features(images))
            vector = VectorRecipe.fit(
                pool, transform, moments, vector.dictionary, hog=hog
            )
        return self._with(vector, moments.count if moments else 0)

    def _reduced(self, params: Any, images: Any) -> Array:
        """Normalised images, as small as a dictionary of patches takes them."""
        del params
        return reduced(self.preprocessing.normalise(images))

    def _with(self, vector: VectorRecipe, images: int) -> "Encoder":
        rest = {k: v for k, v in self.manifest.items() if k != "probes"}
        rest["vector"] = vector_entry(vector, images)
        stats = with_statistics(self.stats, vector)
        return Encoder(self.params, stats, rest, dtype=self.network.dtype)

    def save(self, path: str | Path) -> None:
        """Write a bare encoder folder that `load_encoder` reads."""
        stats = with_statistics(self.stats, self.vector)
        write_encoder(Path(path), self.params, stats, self.manifest)


def stream(
    function: Callable[[Any], Any],
    preprocessing: Preprocessing,
    batches: Iterable[Batch],
    batch_size: int,
    *,
    resize: bool = True,
) -> Iterator[Any]:
    """`function` of each batch in turn, as NumPy; the next are read meanwhile.

    Its results are an array or a tree of arrays with one row per image. Batches are
    prepared as `preprocessing` says, and padded to few sizes, so that `function`, which
    is jitted, compiles for few. Raises UserError for images that cannot be used.
    """
    pending: collections.deque[tuple[Any, int]] = collections.deque()
    size = 0
    for batch in batches:
        ready = prepare(batch, preprocessing, resize=resize)
        if min(ready.shape[1:3]) < MIN_IMAGE_SIZE:
            raise UserError(
                f"images of {ready.shape[1:3]} px; the network needs at least "
                f"{MIN_IMAGE_SIZE} px (resize=True scales them to "
                f"{preprocessing.image_size})."
            )
        # Never smaller than the previous batch: a partial last one is padded.
        fewest = 1 << max(0, len(ready) - 1).bit_length()
        size = max(size, min(batch_size, fewest))
        padding = [(0, size - len(ready)), (0, 0), (0, 0), (0, 0)]
        full = ready if len(ready) == size else np.pad(ready, padding)
        out = function(full)
        for leaf in jax.tree.leaves(out):
            leaf.copy_to_host_async()
        pending.append((out, len(ready)))
        if len(pending) > _IN_FLIGHT:
            yield _on_host(*pending.popleft())
    for out, count in pending:
        yield _on_host(out, count)


def load_encoder(path: str | Path, *, dtype: str = "float32") -> Encoder:
    """Load an encoder from a run folder, a `checkpoints/STEP` or an encoder folder.

    Every file is compared with the checksums in its manifest, and none is run as code.
    `dtype` is the network's compute type, see `Encoder`.

    Raises UserError if there is no such folder, CheckpointError if it holds no encoder
    or only damaged ones, naming each.
    """
    place = local(path)
    if not place.is_dir():
        raise UserError(
            f"{path} does not exist; give a run folder, one of its checkpoints/STEP, "
            "or an encoder/ folder."
        )
    return Encoder(*read_encoder(place), dtype=dtype)


def with_statistics(
    stats: Mapping[str, Any], vector: VectorRecipe | None
) -> dict[str, Any]:
    """The statistics of an artefact: the network's, and those of the feature vector."""
    arrays = vector.arrays if vector is not None else {}
    return {**stats, **({STATS: arrays} if arrays else {})}


def vector_entry(vector: VectorRecipe, images: int, **chosen: Any) -> dict[str, Any]:
    """The feature vector in a manifest; `images` gave its statistics."""
    entry = {"pool": vector.pool, "transform": vector.transform, "images": images}
    if vector.dictionary is not None:
        entry["filters"] = vector.dictionary.shift.size
    if vector.hog:
        entry["hog"] = True
    return entry | chosen


def _recipe(
    config: ModelConfig,
    info: Sequence[FeatureInfo],
    manifest: Mapping[str, Any],
    fitted: Mapping[str, Any],
) -> VectorRecipe | None:
    """The feature vector that an artefact has; CheckpointError if it cannot be one.

    An artefact without an entry has the mean of the last map, or that of its norm.
    """
    entry = manifest.get("vector") or {}
    if config.bottleneck is not None or (config.encoder.pooled_norm and not entry):
        return None
    with _manifest_of("the artefact"):
        arrays = {name: np.asarray(array) for name, array in fitted.items()}
        recipe = VectorRecipe.of(
            entry.get("pool", "last"),
            entry.get("transform", "none"),
            arrays,
            hog=entry.get("hog", False),
        )
        patches = recipe.dictionary
        if patches is not None and patches.filters.shape[2] != config.channels:
            raise UserError(
                f"the dictionary of patches has {patches.filters.shape[2]} channels, "
                f"and the encoder {config.channels}"
            )
        plain = VectorRecipe(recipe.pool, dictionary=patches, hog=recipe.hog)
        size = plain.size(info, config.image_size)
        if recipe.fitted and len(recipe.fitted["mean"]) != size:
            raise UserError(
                f"{len(recipe.fitted['mean'])} statistics of the feature vector, and "
                f"it has {size} numbers before them"
            )
    return recipe


def _check_leaves(wanted: list[Any], given: list[Any], model: str) -> None:
    want = {k: v for tree in wanted for k, v in flatten(tree).items()}
    have = {k: v for tree in given for k, v in flatten(tree).items()}
    wrong = [f"missing {path}" for path in sorted(want.keys() - have.keys())]
    unexpected = sorted(have.keys() - want.keys())
    wrong += [f"unexpected {shortened(path)}" for path in unexpected]
    wrong += [
        f"{path} is {have[path].dtype} {have[path].shape}; expected "
        f"{want[path].dtype} {want[path].shape}"
        for path in sorted(want.keys() & have.keys())
        if (have[path].shape, have[path].dtype) != (want[path].shape, want[path].dtype)
    ]
    if wrong:
        raise CheckpointError(
            f"the parameters do not fit the model {model!r} in the manifest:"
            + in_lines(wrong)
        )


def _on_host(out: Any, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], out)


def joined(parts: Iterator[Any], total: int) -> Any:
    """The parts as one array (or a list of arrays), each copied once."""
    first = next(parts)
    whole = jax.tree.map(lambda a: np.empty((total, *a.shape[1:]), a.dtype), first)
    start = 0
    for part in itertools.chain([first], parts):
        for array, piece in zip(jax.tree.leaves(whole), jax.tree.leaves(part)):
            array[start : start + len(piece)] = piece
        start += len(jax.tree.leaves(part)[0])
    return whole


def shown(parts: Iterator[Any], total: int, what: str = "features") -> Iterator[Any]:
    """The parts as they come, counted by a progress bar of `total` images."""
    with ProgressBar(total, what) as progress:
        for part in parts:
            yield part
            progress.add(len(jax.tree.leaves(part)[0]))


def encoder_manifest(
    model: ModelConfig,
    feature_info: Sequence[FeatureInfo],
    preprocessing: Preprocessing,
    data: Mapping[str, str],
    trained: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON-ready manifest of an encoder artefact.

    `data` is `ImageSet.identity` of the training images; the stage supplies `trained`.
    """
    return {
        "model": model.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "feature_info": [dataclasses.asdict(info) for info in feature_info],
        "data": dict(data),
        "trained": {**trained, "afterimage": afterimage.__version__},
    }


def stored_model(
    manifest: Mapping[str, Any], path: str | os.PathLike[str] = "the artefact"
) -> ModelConfig:
    """The model of the artefact in `path`; CheckpointError if it cannot be built."""
    with _manifest_of(path):
        return ModelConfig.from_dict(manifest["model"])


def stored_preprocessing(
    manifest: Mapping[str, Any], path: str | os.PathLike[str] = "the artefact"
) -> Preprocessing:
    """The preprocessing of the artefact in `path`; CheckpointError if invalid."""
    with _manifest_of(path):
        return Preprocessing.from_dict(manifest["preprocessing"])


def placed(
    make: Callable[[], tuple[Any, Any, Any]], params: Any, stats: Any
) -> tuple[Any, Any, Any]:
    """(network, params, stats on the device) of an artefact that was read.

    `make` gives the network with the shapes of its params and stats. Raises
    CheckpointError if it cannot be built, or does not fit.
    """
    try:
        network, *wanted = make()
        params, _ = transfer(params, wanted[0])
        # Empty parts are not in a file.
        empty = {name: {} for name, part in wanted[1].items() if not part}
        stats, _ = transfer({**empty, **stats}, wanted[1])
    except (TransferError, UserError) as error:
        raise CheckpointError(f"it does not match its manifest. {error}") from error
    return network, *jax.device_put((params, stats))


@contextlib.contextmanager
def _manifest_of(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise CheckpointError(f"{path}: its manifest: {error}") from error
