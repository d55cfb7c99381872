"""An encoder with named heads, as functions of plain nested parameters.

    {"encoder": ..., "heads": {"classes": ...}}

A head reads a feature vector: the encoder's own (its bottleneck, or the last map's
mean), or one pooled from the maps. The vector is first standardised, (f − m) / s per
feature. m and s are measured over the training images before the first step and kept
in `stats`, so one learning rate suits the heads of different encoders.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from afterimage.data.preprocessing import Preprocessing
from afterimage.errors import UserError
from afterimage.models.encoder import (
    ModelConfig,
    Network,
    abstract_encoder,
    build_encoder,
)
from afterimage.models.heads import VIEWS, Head, pool_features

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
        self,
        params: Tree,
        stats: Tree,
        images: Array,
        *,
        train: bool = False,
        **how: Any,
    ) -> tuple[Maps, Tree]:
        """(feature maps of normalised images, the encoder's new statistics).

        `how` is passed to the encoder's `__call__`.
        """
        return self.encoder.apply(
            params["encoder"], stats["encoder"], images, train=train, **how
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


def over_views(
    predict: Callable[..., Array], name: str, activation: str = "softmax"
) -> Callable[..., Array]:
    """Logits with test-time augmentation: those of the views' mean probability.

    With the activation `identity`, the mean of the views' outputs.
    """
    if name == "none":
        return predict

    def viewed(params: Any, stats: Any, images: Array) -> Array:
        def one(view: Array) -> Array:
            logits = predict(params, stats, view).astype(jnp.float32)
            if activation == "softmax":
                logits = jax.nn.log_softmax(logits)
            return logits

        # One view after another: memory for the maps of only one view.
        every = jax.lax.map(one, VIEWS[name](images))
        if activation == "softmax":
            return jax.nn.logsumexp(every, axis=0) - math.log(len(every))
        if activation == "sigmoid":
            yes, no = jax.nn.log_sigmoid(every), jax.nn.log_sigmoid(-every)
            return jax.nn.logsumexp(yes, axis=0) - jax.nn.logsumexp(no, axis=0)
        return every.mean(axis=0)

    return viewed
