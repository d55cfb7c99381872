"""The teacher's update and the masked error by hand; checkpoints have the teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.objectives.latent import (
    Latent,
    latent_error,
    moved,
    normalised,
)
from afterimage.pretrain.run import pretrain
from tests.objectives import passing

KEY = jax.random.key(0)
MODEL = ModelConfig(
    image_size=(16, 16), channels=1, width=0.25, decoder="block", stem_stride=1
)


def objective(**changes):
    return Latent(**{"weight": 2.0, "patch": 4} | changes)


def test_the_update_by_hand():
    found = moved({"w": jnp.array([2.0])}, {"w": jnp.array([6.0])}, jnp.asarray(0.75))
    np.testing.assert_allclose(found["w"], np.array([3.0]))


def test_the_decay_rises_in_a_line():
    latent = objective(teacher_decay=0.5, teacher_decay_end=0.9, teacher_warmup=10)
    found = [float(latent.decay(jnp.asarray(n))) for n in (0, 5, 10, 99)]
    np.testing.assert_allclose(found, [0.5, 0.7, 0.9, 0.9], rtol=1e-6)


def test_only_masked_sites_are_compared():
    mask = jnp.zeros((2, 4, 4), bool).at[0, :2, :2].set(True)
    target = jnp.zeros((2, 2, 2, 3))
    guess = jnp.full((2, 2, 2, 3), 7.0).at[0, 0, 0].set(jnp.array([1.0, 2.0, 2.0]))
    np.testing.assert_allclose(latent_error(guess, target, mask), np.array([3.0, 0.0]))


def test_targets_have_no_scale():
    x = jax.random.normal(KEY, (2, 3, 3, 8)) * 5 + 2
    np.testing.assert_allclose(normalised(x), normalised(3 * x - 1), atol=1e-4)


def test_the_teacher_sees_all_gets_no_gradient_and_follows():
    latent = objective(teacher_decay=0.5, teacher_decay_end=0.5)
    network, params, stats = Network.create(latent.build(MODEL, nnx.Rngs(0)))
    stats = latent.start(params, stats)
    images = jax.random.normal(KEY, (3, 16, 16, 1))
    # Blocks start as the identity, so that at first no masked site asks its neighbours.
    shaken = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(KEY, x.shape), params)

    @runtime.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def slope(params, stats):
        run = passing(latent, network, MODEL)
        found = run(params, stats, images, KEY, jnp.asarray(0))
        return found.penalty.sum(), found

    (_, found), (of_params, of_stats) = slope(shaken, stats)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_stats["teacher"]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(of_params["encoder"]))
    np.testing.assert_allclose(found.penalty, 2 * found.measures["latent"], rtol=1e-6)
    # The pass leaves it to the step, which may have several passes.
    kept = jax.tree.map(np.array_equal, found.stats["teacher"], stats["teacher"])
    assert all(jax.tree.leaves(kept))
    student, start = flatten(shaken["encoder"]), jnp.asarray(0)
    after = latent.follow(shaken, found.stats, start, start / 10)
    for path, leaf in flatten(after["teacher"]).items():
        expected = (flatten(params)[f"encoder/{path}"] + student[path]) / 2
        np.testing.assert_allclose(leaf, expected, atol=1e-5, err_msg=path)


def test_patches_must_cover_sites_of_the_last_map():
    assert objective().data_problems(MODEL) == []
    (problem,) = objective(patch=6).data_problems(MODEL)
    assert "must be a multiple of 4" in problem


@pytest.mark.slow
def test_a_run_keeps_its_teacher_in_the_checkpoint(tmp_path):
    config = PretrainConfig(
        data="digits",
        out=str(tmp_path / "run"),
        objective=objective(patch=8),
        image_size=16,
        width=0.25,
        steps=2,
        batch_size=16,
        probe_images=0,
        tensorboard=False,
    )
    result = pretrain(config)
    assert result.metrics["latent"] > 0
    _, state, _ = Store(tmp_path / "run").restore()
    teacher, student = state["stats"]["teacher"], state["params"]["encoder"]
    assert set(flatten(teacher)) == set(flatten(student))
