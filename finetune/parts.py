"""The pieces of one run, built in the order they depend on each other."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from afterimage.data import ImageSet
from afterimage.encoder import Encoder
from afterimage.errors import UserError
from afterimage.finetune import anchors, neighbours, streams
from afterimage.finetune.classifier import Classifier, HeadConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.domains import shift
from afterimage.finetune.domains.selection import choose_rule
from afterimage.finetune.labels import HEAD
from afterimage.finetune.methods import (
    class_frequencies,
    distillation,
    make_stage,
    make_terms,
    own_params,
    stream_names,
)
from afterimage.finetune.opening import Opened
from afterimage.finetune.scoring import Scorer
from afterimage.finetune.teacher import read_teacher
from afterimage.manifest import encoder_manifest
from afterimage.models import abstract_encoder
from afterimage.notes import say_once
from afterimage.training.mesh import check_batch, make_mesh
from afterimage.training.stage import Stage
from afterimage.training.state import State, averaged_params, averaged_stats
from afterimage.training.sweep import Sweep, spaced
from afterimage.training.trainer import Trainer

MOST_SCORED = 2_000
Tree = dict[str, Any]


class Parts:
    """Classifier, terms, stage and trainer of a run; `params` and `stats` give their
    structure, the encoder's leaves still shapes where they are to be loaded; `known`
    are the images there are before the first step.

    Raises UserError for everything that cannot work, before the first step.
    """

    def __init__(self, config: FinetuneConfig, opened: Opened):
        self.config, self.opened = config, opened
        self.chosen, self.target = opened.chosen, opened.target
        self.rule = choose_rule(config, self.chosen, self.target)
        self._check_neighbours()
        self.info = abstract_encoder(opened.model).feature_info
        self.mesh = make_mesh(config.devices)
        check_batch(config.batch_size, config.accumulate, self.mesh)
        self.total = config.total_steps(len(self.chosen.train))
        self.teacher = read_teacher(
            config, self.chosen.train.shape, self.chosen.class_names
        )
        if self.teacher is not None:
            takes = self.teacher.classifier.preprocessing
            if said := takes.other_range(opened.preprocessing):
                say_once(f"teacher={config.teacher} {said}")
        self.known = self.chosen.train
        self.heads = self.make_heads()
        source_head = anchors.source_head(config)
        heads = dict(self.heads)
        if source_head is not None:
            heads[anchors.SOURCE_HEAD] = source_head[0]
        self.classifier, self.params, self.stats = Classifier.create(
            dataclasses.replace(opened.model, remat=config.remat),
            heads,
            opened.preprocessing,
            seed=config.seed,
            dtype=config.precision,
            fresh=config.mode == "scratch" or bool(config.may_differ),
        )
        self.sweep = Sweep(self.mesh, config.batch_size // config.accumulate)
        self.scorers = {
            head: Scorer(self.classifier, head, self.sweep) for head in self.heads
        }
        self.scorer = next(iter(self.scorers.values()))
        streams.check_statistics(config, self.stats["encoder"])
        self.extend(source_head)
        self.stage = self.make_stage()
        self.stage.check(self.params, self.stats, self.batch_shapes())
        self.trainer = Trainer(
            self.stage, self.params, mesh=self.mesh, images=len(self.chosen.train)
        )

    @functools.cached_property
    def of_target(self) -> ImageSet:
        """The target's images by whose predictions a step is chosen."""
        assert self.target is not None
        return spaced(self.target.images, MOST_SCORED)

    @functools.cached_property
    def near(self) -> Int[np.ndarray, "n k"]:
        """The rows of each one's neighbours in the features as they were pretrained."""
        return neighbours.nearest_images(self._pretrained(), self.of_target, self.sweep)

    def _pretrained(self) -> Encoder:
        source = self.opened.source
        return Encoder(source.params, source.stats, source.manifest)

    def _check_neighbours(self) -> None:
        """Raises UserError where the source's features of these images are wanted, and
        it takes others."""
        if self.config.select != "neighbours":
            return
        wanted, given = neighbours.shape_of(self._pretrained()), self.of_target.shape
        if given != wanted:
            raise UserError(
                f"select='neighbours' reads the features of {self.config.from_}, which "
                f"takes images {wanted} (height, width, channels), not {given}: leave "
                "--image-size and --channels out, or choose by mixval or infomax"
            )

    def make_heads(self) -> dict[str, HeadConfig]:
        """The heads that learn: one for the labels, and one for each further task."""
        config = self.config
        return {
            head: HeadConfig(
                len(names),
                config.head,
                config.features,
                config.keep_features,
                config.head_width,
            )
            for head, names in self.chosen.head_names(config.tasks).items()
        }

    def make_stage(self) -> Stage:
        """The phases of the mode."""
        return make_stage(
            self.config,
            self.classifier,
            self.params,
            self.terms,
            self.total,
            teacher=self.teacher,
        )

    def extend(self, source_head: Any) -> None:
        """Parameters of the terms, what they read of `stats`: an anchor, a teacher, the
        weights of examples."""
        config = self.config
        known = self.stats["heads"][HEAD]
        width = known.get("kept", known["mean"]).size
        self.terms = make_terms(config, self.chosen, self.heads[HEAD], width)
        if self.teacher is not None:
            self.terms += distillation(config, width, self.teacher.width, HEAD)
            self.stats["teacher"] = self.teacher.kept()
        self.params |= own_params(self.terms)
        if config.anchors:
            source = self.opened.source
            self.stats["anchors"] = anchors.make_anchors(config, source, source_head)
        if config.weighs_examples:
            self.stats["examples"] = {"weight": jnp.ones(len(self.chosen.train))}
            held = self.chosen.validation
            if config.density_ratio != "none" and held is not None:
                self.stats["examples"]["validation"] = jnp.ones(len(held))
        if config.alignment_momentum:
            known = class_frequencies(self.chosen)
            self.stats["predicted"] = jnp.asarray(known)
            if config.alignment_frequencies == "predicted":
                # An array of its own: one buffer cannot be donated twice.
                self.stats["frequencies"] = jnp.asarray(known)
        if config.propagation:
            assert self.opened.unlabelled is not None
            known = jnp.zeros(len(self.opened.unlabelled), jnp.int32)
            self.stats["propagated"] = {"class": known}
        if config.label_shift != "none":
            # Raises before the first step what would else be found after the last.
            shift.source_frequencies(self.chosen)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a batch of every stream."""
        size = self.config.batch_size // self.config.accumulate

        def images(count: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count, *self.chosen.train.shape), jnp.uint8)

        def numbers(count: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((count,), jnp.int32)

        number = numbers(size)
        shapes = {"image": images(size), "index": number, "label": number}
        for task in self.chosen.train.tasks:
            shapes[f"label.{task}"] = number
        for stream in stream_names(self.config)[1:]:
            many = stream == streams.UNLABELLED
            count = size * (self.config.unlabelled_ratio if many else 1)
            shapes[f"{stream}/image"] = images(count)
            shapes[f"{stream}/index"] = numbers(count)
        return shapes

    def fresh(self, params: Tree, stats: Tree) -> State:
        """The state before the first step; leaves still to be loaded are zeros."""
        params, stats = jax.tree.map(_array, (params, stats))
        ema, seed = self.config.ema > 0, self.config.seed
        return self.trainer.fresh(params, stats, seed=seed, ema=ema)

    def weights(self, state: State) -> tuple[Any, Any, int]:
        """(params, stats, step) of a state; the running means where they are kept."""
        step = int(state["step"])
        partition = self.trainer.partition(step)
        return averaged_params(state, partition), averaged_stats(state), step

    def manifest(self, step: int) -> dict[str, Any]:
        """What an artefact of this run says of itself."""
        trained = {
            "stage": "finetune",
            "mode": self.config.mode,
            "steps": step,
            "of": self.total,
            "labels": len(self.chosen.train),
            "seed": self.config.seed,
            "from": self.opened.source.describe(),
        }
        preprocessing = self.classifier.preprocessing
        return encoder_manifest(
            self.opened.model, self.info, preprocessing, self.chosen.train, trained
        )

    def encoder(self, state: State) -> tuple[Any, Any, dict[str, Any]]:
        """(params, stats, manifest) of the encoder alone."""
        params, stats, step = self.weights(state)
        return params["encoder"], stats["encoder"], self.manifest(step)


def _array(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return leaf
