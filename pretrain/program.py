"""The program of a pretraining run: network, loss, optimiser and step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from afterimage.data import ImageSet, Preprocessing, channel_statistics, make_augment
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.config import CONTINUED_LR, PretrainConfig
from afterimage.pretrain.objective import Autoencoding, ModelSetup, make_stage
from afterimage.pretrain.origin import Origin
from afterimage.training.batches import (
    platform_of,
    replicated,
    split,
    steps_per_dispatch,
)
from afterimage.training.job import Trainer
from afterimage.training.optimiser import EVERYTHING, Group
from afterimage.training.sharding import initialising, parts
from afterimage.training.step import State, compile_step, compile_steps, init_state


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run trains and how, before it has a folder."""

    model: ModelConfig
    preprocessing: Preprocessing
    setup: ModelSetup
    initial: tuple[Mapping[str, Any], Mapping[str, Any]]
    """(params, stats) before the first step."""
    trainer: Trainer

    @classmethod
    def build(
        cls,
        config: PretrainConfig,
        source: ImageSet,
        train: ImageSet,
        mesh: Mesh,
        *,
        origin: Origin | None = None,
        images: int | None = None,
        shapes_only: bool = False,
    ) -> "Program":
        """The program that trains on `train`, a part of `source`, from `origin`.

        The preprocessing is from all of `source`: the same for every seed. `images`
        replaces the number of training images. With `shapes_only` all parameters are
        zero, which is faster than drawing them.
        """
        preprocessing = preprocessing_of(config, source, origin)
        model = model_config(config, train, origin)

        def module() -> nnx.Module:
            return config.objective.build(model, nnx.Rngs(config.seed))

        with initialising(config.shard_parameters):
            made = nnx.eval_shape(module) if shapes_only else module()
            network, params, stats = Network.create(made, dtype=config.precision)
            if shapes_only:
                params, stats = _zeros(params), _zeros(stats)
            elif origin is not None:
                params, stats = origin.load(params, stats, preprocessing)
            initial = params, config.objective.start(params, stats)
        augment = make_augment(config.augment, config.view_size)
        setup = ModelSetup(model, network, preprocessing, augment)
        setup = config.objective.prepare(setup, train)
        images = len(train) if images is None else images
        steps, groups = config.total_steps(images), _groups(config, params)
        stage = make_stage(config.objective, setup, config, steps, groups)
        trainer = Trainer(stage, params, mesh=mesh, images=images)
        return cls(model, preprocessing, setup, initial, trainer)

    def lower(self, config: PretrainConfig, *, resident: int = 0) -> "Lowered":
        """What a run dispatches to the devices of the mesh, ready to compile.

        `resident` is the number of images kept on every device; with 0 they come with
        each batch. Devices of the mesh may be absent.
        """
        mesh, step = self.trainer.mesh, self.trainer.phases[0].step
        together = steps_per_dispatch(config, mesh, resident=resident > 0)
        compile_ = compile_step if together == 1 else compile_steps
        first = (config.batch_size,) if together == 1 else (together, config.batch_size)
        here = replicated(mesh)

        def leaf(shape: tuple[int, ...], dtype: Any, where: Any = here) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

        shape = (*self.model.image_size, self.model.channels)
        state = jax.eval_shape(lambda: self._state(config))
        places = jax.tree.map(lambda _: here, state)
        if self.trainer.sharded:
            places = parts(state, mesh)
        state = jax.tree.map(lambda x, at: leaf(x.shape, x.dtype, at), state, places)
        over = split(mesh, stacked=together > 1)
        batch, data = {"index": leaf(first, jnp.int32, over)}, {}
        inputs: dict[str, tuple[tuple[int, ...], Any]] = {"image": (shape, jnp.uint8)}
        if config.whole_photos:
            inputs["aspect"] = ((), jnp.float32)
        for name, (each, dtype) in inputs.items():
            if resident:
                data[name] = leaf((resident, *each), dtype)
            else:
                batch[name] = leaf((*first, *each), dtype, over)
        run = compile_(step, platform=platform_of(mesh))
        return Lowered(state, batch, data, together, run.lower(state, batch, data))

    def _state(self, config: PretrainConfig) -> State:
        first = self.trainer.phases[0]
        return init_state(
            *self.initial,
            optimiser=first.optimiser,
            partition=first.partition,
            seed=config.seed,
            ema=config.ema > 0,
        )


@dataclasses.dataclass(frozen=True)
class Lowered:
    """One dispatch of a run: its arguments' shapes and shardings, and its program."""

    state: State
    batch: Mapping[str, jax.ShapeDtypeStruct]
    data: Mapping[str, jax.ShapeDtypeStruct]
    steps: int
    """Steps of the dispatch."""
    program: jax.stages.Lowered


def _groups(config: PretrainConfig, params: Mapping[str, Any]) -> tuple[Group, ...]:
    """The encoder at its own rate, and what learns beside it."""
    usual = 1.0 if config.from_ is None else CONTINUED_LR
    rate = usual if config.encoder_lr is None else config.encoder_lr
    if rate == 1:
        return EVERYTHING
    rest = (Group("rest", ".*"),) if set(params) - {"encoder"} else ()
    return (Group("encoder", "^encoder/", lr=rate), *rest)


def preprocessing_of(
    config: PretrainConfig, train: ImageSet, origin: Origin | None = None
) -> Preprocessing:
    """The preprocessing of a run: measured on its images, or that of `origin`."""
    if origin is not None:
        return origin.preprocessing(train, config.normalise)
    height, width, channels = train.shape
    mean, std = channel_statistics(train)
    return Preprocessing(
        (height, width),
        mean,
        std,
        channels,
        train.value_range,
        config.normalise or "data",
        train.rendering,
    )


def model_config(
    config: PretrainConfig, train: ImageSet, origin: Origin | None = None
) -> ModelConfig:
    """The model for images of this size."""
    height, width, channels = train.shape
    if origin is not None:
        return origin.model(config, (height, width), channels)
    return ModelConfig(
        image_size=(height, width), channels=channels, **config.model_settings()
    )


def image_problems(
    config: PretrainConfig, train: ImageSet, origin: Origin | None = None
) -> list[str]:
    """Problems of the objective and the views with images of this size."""
    model = model_config(config, train, origin)
    problems = config.objective.data_problems(model)
    if config.view_size is not None:
        problems += _view_problems(config, model)
    return [f"objective {config.objective.name}: {problem}" for problem in problems]


def _view_problems(config: PretrainConfig, model: ModelConfig) -> list[str]:
    """Problems with views of this size of the images that `model` is for."""
    size, objective = config.view_size, config.objective
    assert size is not None
    height, width = model.image_size
    if size > min(height, width):
        return [f"view_size={size}: larger than the images, {height}x{width}"]
    smaller = dataclasses.replace(model, image_size=(size, size))
    found = objective.data_problems(smaller)
    if isinstance(objective, Autoencoding):
        here, there = (objective.target_patch(one) for one in (smaller, model))
        if here != there:
            found.append(
                f"view_size={size}: patches of {here} pixels in training and {there} "
                "in evaluation; set patch"
            )
    return found


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
