"""An encoder with named heads, as functions of plain nested parameters, and its files.

    {"encoder": ..., "heads": {"classes": ...}}

A head reads a feature vector: the encoder's own (its bottleneck, or the last map's
mean), or one pooled from the maps. The vector is first standardised, (f − m) / s per
feature. m and s are measured over the training images before the first step and kept
in `stats`, so one learning rate suits the heads of different encoders.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from afterimage import runtime
from afterimage.checkpoints.errors import CheckpointError, TransferError
from afterimage.checkpoints.names import printable
from afterimage.checkpoints.trees import transfer
from afterimage.checkpoints.weights import (
    read_classifier,
    write_classifier,
    write_encoder,
)
from afterimage.data.preprocessing import Preprocessing
from afterimage.encoder import stored_model, stored_preprocessing
from afterimage.errors import UserError
from afterimage.models.encoder import (
    ModelConfig,
    Network,
    abstract_encoder,
    build_encoder,
)
from afterimage.models.heads import Head, pool_features
from afterimage.training.stage import Context

Tree = dict[str, Any]
Maps = list[Array]
HEAD = "classes"
"""The main task's head; each further head has the name of its task."""


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """One head: how many classes, its layers, and the features it reads."""

    classes: int
    kind: str = "linear"
    features: str = "vector"
    keep: int | None = None
    """Number of features it reads; `stats/heads/NAME/kept` lists them."""
    width: int | None = None
    """Units in the hidden layer of an mlp."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `HeadConfig(**values)` restores it."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ClassifierNetwork:
    """Networks split from their parameters, and how images are prepared for them."""

    encoder: Network
    heads: Mapping[str, tuple[HeadConfig, Network]]
    preprocessing: Preprocessing

    @classmethod
    def create(
        cls,
        model: ModelConfig,
        heads: Mapping[str, HeadConfig],
        preprocessing: Preprocessing,
        *,
        seed: int = 0,
        dtype: str = "float32",
        fresh: bool = True,
    ) -> tuple["ClassifierNetwork", Tree, Tree]:
        """(classifier, params, stats), initialised from `seed`.

        With `fresh=False` the encoder's leaves are only shapes, to be loaded later:
        random initialisation is slow for deep encoders and would be overwritten.
        """
        if model.bottleneck and preprocessing.image_size != model.image_size:
            raise UserError(
                f"image_size={preprocessing.image_size}: this encoder's bottleneck "
                f"was built for {model.image_size} px; leave --image-size out"
            )
        rngs = nnx.Rngs(seed)
        module = build_encoder(model, rngs=rngs) if fresh else abstract_encoder(model)
        encoder, params, stats = Network.create(module, dtype=dtype)
        empty = cls(encoder, {}, preprocessing)
        built, head_params, head_stats = {}, {}, {}
        for name, config in heads.items():
            width = empty.feature_width(params, stats, config.features)
            if config.keep is not None and config.keep > width:
                raise UserError(
                    f"feature-selection.keep={config.keep}: this encoder has only "
                    f"{width} features of the kind {config.features!r}; keep fewer"
                )
            read = config.keep or width
            head = Head(read, config.classes, config.kind, config.width, rngs=rngs)
            # Heads always compute in float32: they cost next to nothing.
            network, head_params[name], _ = Network.create(head)
            built[name] = (config, network)
            head_stats[name] = {"mean": jnp.zeros(width), "std": jnp.ones(width)}
            if config.keep is not None:
                head_stats[name]["kept"] = jnp.arange(config.keep, dtype=jnp.int32)
        return (
            dataclasses.replace(empty, heads=built),
            {"encoder": params, "heads": head_params},
            {"encoder": stats, "heads": head_stats},
        )

    def feature_width(self, params: Tree, stats: Tree, kind: str) -> int:
        """Length of the feature vector of this kind."""
        shape = (1, *self.preprocessing.image_size, self.preprocessing.channels)

        def run(params, stats, images):
            tree, kept = {"encoder": params}, {"encoder": stats}
            maps, _ = self.maps(tree, kept, images)
            return self.features(tree, kept, maps, kind)

        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.eval_shape(run, params, stats, images).shape[-1]

    def maps(
        self, params: Tree, stats: Tree, images: Array, *, train: bool = False
    ) -> tuple[Maps, Tree]:
        """(feature maps of normalised images, the encoder's new statistics)."""
        return self.encoder.apply(
            params["encoder"], stats["encoder"], images, train=train
        )

    def features(
        self, params: Tree, stats: Tree, maps: Maps, kind: str = "vector"
    ) -> Float[Array, "b d"]:
        """The feature vector a head reads, before it is standardised."""
        if kind != "vector":
            return pool_features(maps, kind)
        vector, _ = self.encoder.apply(
            params["encoder"], stats["encoder"], maps[-1], method="vector"
        )
        return vector

    def all_features(self, params: Tree, stats: Tree, maps: Maps, head: str) -> Array:
        """[b, d]: one head's features, standardised, before feature selection."""
        known = stats["heads"][head]
        features = self.features(params, stats, maps, self.heads[head][0].features)
        return (features - known["mean"][None]) / known["std"][None]

    def head_features(self, params: Tree, stats: Tree, maps: Maps, head: str) -> Array:
        """[b, d]: the features one head reads, standardised and selected."""
        features, known = self.all_features(params, stats, maps, head), stats["heads"]
        if "kept" in known[head]:
            features = jnp.take(features, known[head]["kept"], axis=1)
        return features

    def logits(self, params: Tree, stats: Tree, maps: Maps, head: str) -> Array:
        """[b, classes] of one head."""
        features = self.head_features(params, stats, maps, head)
        return self.heads[head][1].apply(params["heads"][head], {}, features)[0]

    def predict(self, params: Tree, stats: Tree, images: Array, head: str) -> Array:
        """Logits in evaluation mode; images of its size, uint8 or in [0, 1]."""
        maps, _ = self.maps(params, stats, self.preprocessing.normalise(images))
        return self.logits(params, stats, maps, head)

    def providers(
        self,
        augment: Callable[[Array, Array], Array],
        stream: str = "train",
        of: str | None = None,
    ) -> Callable[..., Mapping[str, Callable[[Context], Any]]]:
        """What one stream of images provides to the terms of a stage.

        The labelled stream `train` takes its images from `batch["image"]`, any other
        from `batch["NAME/image"]`; each draws its own augmentation. With `of`, the
        stream is another view of the images of the stream `of`.
        """
        prefix = "" if stream == "train" else f"{stream}/"
        source = f"{of}/" if of is not None else prefix

        def provide(params, stats, batch, key, step, trainable):
            def view(_: Context) -> Array:
                pixels = batch[f"{source}image"].astype(jnp.float32) / 255
                own = jax.random.fold_in(key, zlib.crc32(prefix.encode()))
                return augment(own if prefix else key, pixels)

            def image(ctx: Context) -> Array:
                return self.preprocessing.normalise(ctx[f"{stream}/view"])

            def forward(ctx: Context) -> tuple[Maps, Tree]:
                train = "encoder" in trainable
                return self.maps(params, stats, ctx[f"{stream}/image"], train=train)

            def following(ctx: Context) -> Tree:
                if not ctx.read(f"{stream}/forward"):
                    return stats
                return {**stats, "encoder": ctx[f"{stream}/forward"][1]}

            def features(head: str) -> Callable[[Context], Array]:
                return lambda ctx: self.head_features(
                    params, stats, ctx[f"{stream}/maps"], head
                )

            def logits(head: str) -> Callable[[Context], Array]:
                network, own = self.heads[head][1], params["heads"][head]
                return lambda ctx: network.apply(
                    own, {}, ctx[f"{stream}/features/{head}"]
                )[0]

            return {
                **_labels(batch, stream, prefix),
                "params": lambda _: params,
                "step": lambda _: step,
                "stats/next": following,
                f"{stream}/view": view,
                f"{stream}/image": image,
                f"{stream}/forward": forward,
                f"{stream}/maps": lambda ctx: ctx[f"{stream}/forward"][0],
                f"{stream}/features": lambda ctx: self.features(
                    params, stats, ctx[f"{stream}/maps"]
                ),
                **{f"{stream}/features/{head}": features(head) for head in self.heads},
                **{f"{stream}/logits/{head}": logits(head) for head in self.heads},
            }

        return provide


def _labels(
    batch: Mapping[str, Any], stream: str, prefix: str
) -> dict[str, Callable[[Context], Any]]:
    """`STREAM/label`, and `STREAM/label/TASK` for any further tasks."""
    own = f"{prefix}label"
    return {
        f"{stream}/label{key.removeprefix(own).replace('.', '/')}": (
            lambda _, key=key: batch[key]
        )
        for key in batch
        if key == own or key.startswith(f"{own}.")
    }


def standardise(
    classifier: ClassifierNetwork,
    params: Tree,
    stats: Tree,
    batches: Iterable[Mapping[str, np.ndarray]],
    heads: Sequence[str],
) -> Tree:
    """`stats` with the feature mean and deviation of `heads` over these batches.

    Batches have `image` (uint8) and `mask`. Deviations are clipped from below at a
    hundredth of the largest, so that nearly constant features are not blown up.
    """
    kinds = {name: classifier.heads[name][0].features for name in heads}

    @runtime.jit
    def moments(params, stats, images, mask):
        maps, _ = classifier.maps(
            params, stats, classifier.preprocessing.normalise(images)
        )
        found = {}
        for name, kind in kinds.items():
            x = classifier.features(params, stats, maps, kind)
            weight = mask.astype(x.dtype)[:, None]
            found[name] = (x * weight).sum(0), (x**2 * weight).sum(0)
        return found

    total, count = None, 0
    for batch in batches:
        found = moments(params, stats, batch["image"], batch["mask"])
        # Sum in float64: large squares are subtracted below.
        found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        total = found if total is None else jax.tree.map(np.add, total, found)
        count += int(np.asarray(batch["mask"]).sum())
    assert total is not None
    found = dict(stats["heads"])
    for name, (first, second) in total.items():
        mean = first / count
        std = np.sqrt(np.maximum(second / count - mean**2, 0.0))
        std = np.maximum(std, 0.01 * std.max()) if std.max() > 0 else np.ones_like(std)
        found[name] = {
            **found[name],
            "mean": jnp.asarray(mean, jnp.float32),
            "std": jnp.asarray(std, jnp.float32),
        }
    return {**stats, "heads": found}


def head_entry(head: HeadConfig, class_names: Sequence[str]) -> dict[str, Any]:
    """One head in a classifier's manifest."""
    return {**head.to_dict(), "class_names": list(class_names)}


def write_artefacts(
    run: pathlib.Path,
    params: Tree,
    stats: Tree,
    manifest: Mapping[str, Any],
    heads: Mapping[str, Any],
) -> None:
    """Writes `encoder/` and `classifier/`: the encoder alone, and with these heads.

    Anything else that was trained (a discriminator) or kept (a teacher) is left out.
    """
    write_encoder(run / "encoder", params["encoder"], stats["encoder"], manifest)
    kept = [
        {
            "encoder": tree["encoder"],
            "heads": {name: tree["heads"][name] for name in heads},
        }
        for tree in (params, stats)
    ]
    manifest = {**manifest, "heads": dict(heads)}
    write_classifier(run / "classifier", kept[0], kept[1], manifest)


@dataclasses.dataclass(frozen=True)
class LoadedClassifier:
    """A classifier artefact, ready to predict."""

    classifier: ClassifierNetwork
    params: Tree
    stats: Tree
    class_names: Mapping[str, tuple[str, ...]]
    """The class names of each head, in the order of its logits."""
    manifest: Mapping[str, Any]


def load_classifier(path: str, *, dtype: str = "float32") -> LoadedClassifier:
    """The classifier of a finished fine-tuning run, or of its `classifier/` folder.

    Raises CheckpointError if it is missing or damaged, or if its arrays do not match
    its model (all differences are listed).
    """
    params, stats, manifest = read_classifier(path)
    entries = {name: dict(entry) for name, entry in manifest["heads"].items()}
    # The artefact may be someone else's: keep control characters off the terminal.
    names = {
        name: tuple(map(printable, entry.pop("class_names")))
        for name, entry in entries.items()
    }
    try:
        classifier, fresh_params, fresh_stats = ClassifierNetwork.create(
            stored_model(manifest, path),
            {name: HeadConfig(**entry) for name, entry in entries.items()},
            stored_preprocessing(manifest, path),
            dtype=dtype,
            fresh=False,
        )
        params, _ = transfer(params, fresh_params)
        stats, _ = transfer(stats, fresh_stats)
    except (TransferError, UserError) as error:
        raise CheckpointError(f"{path} does not match its manifest. {error}") from error
    return LoadedClassifier(classifier, params, stats, names, manifest)
