"""Joint embedding: the losses by plain loops, what the decoder changes, the teacher."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.checkpoints.trees import flatten
from afterimage.data import Preprocessing, make_augment
from afterimage.errors import UserError
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.embedding import alignment_and_uniformity, passed_back
from afterimage.pretrain.objective import Forward, ModelSetup, make_stage
from afterimage.pretrain.objectives.byol import BYOL, byol_losses
from afterimage.pretrain.objectives.simclr import SimCLR, nt_xent
from afterimage.pretrain.objectives.vicreg import VICReg
from tests.helpers import run_python

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(5, 2, 3)).astype(np.float32)


def length(x):
    return jnp.sqrt((x * x).sum())


def loops_nt_xent(z, temperature):
    rows = [view / length(view) for image in z for view in image]
    total = 0.0
    for i, one in enumerate(rows):
        others = [
            jnp.exp(one @ row / temperature) for j, row in enumerate(rows) if j != i
        ]
        total -= jnp.log(jnp.exp(one @ rows[i ^ 1] / temperature) / sum(others))
    return total / len(rows)


def loops_vicreg(z):
    n, _, d = z.shape
    total = 0.0
    for i, j in itertools.product(range(n), range(d)):
        total += 25 * (z[i, 0, j] - z[i, 1, j]) ** 2 / (n * d)
    for view in (0, 1):
        rows = z[:, view]
        centred = [row - sum(rows) / n for row in rows]
        for j, k in itertools.product(range(d), range(d)):
            covariance = sum(row[j] * row[k] for row in centred) / (n - 1)
            if j != k:
                total += covariance**2 / d
            else:
                lacking = jnp.maximum(0, 1 - jnp.sqrt(covariance + 1e-4))
                total += 25 / 2 * lacking / d
    return total


def loops_byol(z, t):
    total = 0.0
    for (one, two), (first, second) in zip(z, t, strict=True):
        for q, other in ((one, second), (two, first)):
            gap = q / length(q) - other / length(other)
            total += (gap * gap).sum() / len(z)
    return total


TEACHER = RNG.normal(size=Z.shape).astype(np.float32)
LOSSES = {
    "simclr": (lambda z: nt_xent(z, 0.3), lambda z: loops_nt_xent(z, 0.3)),
    "vicreg": (lambda z: VICReg().losses(z), loops_vicreg),
    "byol": (lambda z: byol_losses(z, TEACHER), lambda z: loops_byol(z, TEACHER)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_plain_loops(name):
    ours, plain = LOSSES[name]
    assert ours(Z).shape == (5,)
    value, slope = jax.value_and_grad(lambda z: ours(z).mean())(jnp.asarray(Z))
    wanted, wanted_slope = jax.value_and_grad(plain)(jnp.asarray(Z))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-4, atol=1e-5)


def test_without_information_nt_xent_is_the_logarithm_of_the_candidates():
    same = jnp.ones((6, 2, 4))
    np.testing.assert_allclose(nt_xent(same, 0.2), math.log(11), rtol=1e-6)


def test_the_teacher_gets_no_gradient():
    slope = jax.grad(lambda t: byol_losses(Z, t).sum())(jnp.asarray(TEACHER))
    assert not np.any(slope)


def test_alignment_and_uniformity_by_plain_loops():
    u = Z / np.linalg.norm(Z, axis=-1, keepdims=True)
    found = alignment_and_uniformity(Z, None)
    apart = [((one - two) ** 2).sum() for one, two in u]
    np.testing.assert_allclose(found["alignment"], apart, rtol=1e-5)
    pairs = itertools.permutations(u[:, 0], 2)
    near = [math.exp(-2 * ((one - two) ** 2).sum()) for one, two in pairs]
    np.testing.assert_allclose(found["uniformity"].mean(), np.mean(near), rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, counted: nt_xent(z, 0.3, counted),
        VICReg().losses,
        lambda z, counted: alignment_and_uniformity(z, counted)["uniformity"],
    ],
)
def test_what_pads_a_batch_changes_nothing(loss):
    padded = np.concatenate([Z, 7 * Z[:3] + 1])
    counted = np.arange(8) < 5
    np.testing.assert_allclose(loss(padded, counted)[:5], loss(Z, None), rtol=1e-4)
    # It would.
    assert not np.allclose(loss(padded, None)[:5], loss(Z, None), rtol=1e-2)


@pytest.mark.parametrize("share", [0, 0.25, 1.0])
def test_passed_back_changes_the_gradient_alone(share):
    value, slope = jax.value_and_grad(lambda x: 3 * passed_back(x, share))(2.0)
    assert (value, slope) == (6, 3 * share)


MODEL = {"image_size": (8, 8), "channels": 1, "width": 0.125, "norm": "batch"}
IMAGES = jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 1), np.uint8))


def settings(objective, **changes):
    return PretrainConfig(
        out="x", data="digits", objective=objective, augment="shift", **changes
    )


def gradients(objective, **model):
    """(metrics, statistics), gradient of a step's loss; and what it started from."""
    config = settings(objective)
    decoder = objective.default_decoder
    built = ModelConfig(**{**MODEL, "decoder": decoder, **model})
    network, params, stats = Network.create(objective.build(built, nnx.Rngs(0)))
    stats = jax.tree.map(jnp.asarray, objective.start(params, stats))
    rule = Preprocessing((8, 8), (0.4,), (0.2,), 1, normalisation="image")
    setup = ModelSetup(built, network, rule, make_augment("shift"))
    loss = make_stage(objective, setup, config, 10).loss(0, params)

    @runtime.jit
    def run(params, stats, step):
        return jax.grad(loss, has_aux=True)(
            params, stats, {"image": IMAGES}, jax.random.key(0), step
        )

    slope, found = run(params, stats, jnp.asarray(0))
    return found, flatten(slope), (params, stats)


@pytest.mark.parametrize("reconstruct", ["view", "image", "masked"])
def test_a_stopped_decoder_leaves_the_encoders_gradient_as_it_is(reconstruct):
    """With a bottleneck, whose own kernel must be stopped too."""
    (metrics, stats), alone, (params, _) = gradients(
        SimCLR(reconstruct="none"), bottleneck=4
    )
    assert not any(path.startswith("decoder") for path in flatten(params))
    (more, moved), beside, (started, _) = gradients(
        SimCLR(reconstruct=reconstruct), bottleneck=4
    )
    np.testing.assert_allclose(more["embedding"], metrics["embedding"], rtol=1e-6)
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, flatten(started)[path])
    for path, leaf in alone.items():
        np.testing.assert_allclose(beside[path], leaf, atol=1e-6, err_msg=path)
    assert any(np.any(x) for path, x in beside.items() if path.startswith("decoder"))
    # The images' own pass does not move BatchNorm's moments either.
    for path, leaf in flatten(stats).items():
        np.testing.assert_allclose(flatten(moved)[path], leaf, atol=1e-6)


@pytest.mark.parametrize("reconstruct", ["view", "image", "masked"])
def test_a_share_of_the_decoders_gradient_reaches_the_encoder(reconstruct):
    slopes = [
        gradients(SimCLR(reconstruct=reconstruct, reconstruction_gradient=share))[1]
        for share in (0.0, 0.5, 1.0)
    ]
    moved = False
    for path in slopes[0]:
        none, half, whole = (slope[path] for slope in slopes)
        np.testing.assert_allclose(half - none, (whole - none) / 2, atol=2e-5)
        moved |= path.startswith("encoder") and bool(np.abs(whole - none).max() > 1e-4)
    assert moved


def test_the_teacher_follows_and_keeps_moments_of_its_own():
    byol = BYOL(teacher_decay=0.75)
    (_, stats), slope, (params, before) = gradients(byol)
    assert not any("teacher" in path for path in slope)
    teacher = stats["teacher"]
    assert set(teacher["params"]) == {"encoder", "projector"}
    for path, leaf in flatten(teacher["params"]).items():  # both started alike
        np.testing.assert_allclose(leaf, flatten(params)[path], atol=1e-6)
    moments = flatten(teacher["stats"])
    for path, leaf in moments.items():
        # At the first step its moments are those of the network.
        np.testing.assert_allclose(leaf, flatten(stats)[path], atol=1e-5)
        assert np.any(leaf != flatten(before)[path])
    network, _, _ = Network.create(byol.build(ModelConfig(**MODEL), nnx.Rngs(0)))
    rule = Preprocessing((8, 8), (0.4,), (0.2,), 1)
    setup = ModelSetup(ModelConfig(**MODEL), network, rule)
    moved = jax.tree.map(lambda x: x + 1, params)
    forward = Forward(setup, moved, before, jax.random.key(0), jnp.asarray(5))
    views = jnp.asarray(RNG.normal(size=(4, 2, 8, 8, 1)), jnp.float32)
    for progress, share in ((0.0, 0.25), (0.5, 0.125), (1.0, 0.0)):
        found = byol.embed(forward, views, jnp.asarray(progress))
        for path, leaf in flatten(found.kept["teacher"]["params"]).items():
            wanted = flatten(params)[path] + share
            np.testing.assert_allclose(leaf, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "changes", "said"),
    [
        (SimCLR(), {"augment": "none"}, "would be the same"),
        (SimCLR(temperature=0.0), {}, "temperature=0.0: above 0"),
        (SimCLR(projection=0), {}, "projection=0: at least 1"),
        (SimCLR(reconstruct="none"), {"decoder": "light"}, "decoder='light' has no"),
        (SimCLR(mask_ratio=0.5), {}, "mask_ratio=0.5 has no effect"),
        (SimCLR(reconstruct="masked", mask_ratio=1.0), {}, "ratio=1.0"),
        (SimCLR(target="hog"), {}, "only with reconstruct='masked'"),
        (SimCLR(reconstruct="masked"), {"decoder": "light"}, "hierarchical, block"),
        (SimCLR(reconstruction_weight=0.0), {}, "above 0"),
        (SimCLR(reconstruction_gradient=-1.0), {}, "reconstruction_gradient=-1.0"),
        (SimCLR(), {"batch_size": 4, "accumulate": 4}, "at least 2 images"),
        (VICReg(variance=-1.0), {}, "variance=-1.0: at least 0"),
        (BYOL(teacher_decay=1.5), {}, "teacher_decay=1.5: between 0 and 1"),
    ],
)
def test_settings_that_cannot_work(objective, changes, said):
    with pytest.raises(UserError, match=said):
        PretrainConfig(
            **{
                "out": "x",
                "data": "digits",
                "objective": objective,
                "augment": "shift",
                **changes,
            }
        )


def test_the_norm_removes_means_unless_another_is_chosen():
    assert settings(SimCLR()).model_settings()["norm"] == "batch"
    assert settings(SimCLR(), norm="group").model_settings()["norm"] == "group"


DEVICES = """
import jax, numpy as np
from afterimage.pretrain import PretrainConfig, pretrain
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
import sys, tempfile
images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
found = []
for devices in (1, 8):
    out = tempfile.mkdtemp()
    result = pretrain(PretrainConfig(
        out=out, objective=sys.argv[1], augment="shift", width=0.125, steps=2,
        batch_size=32, devices=devices, pictures=0, tensorboard=False, validation=0.3,
        clip=0.0, accumulate=int(sys.argv[2]),
    ), data=images)
    _, state, _ = Store(result.run).restore()
    found.append((result.metrics, flatten(state["stats"])))
(one, stats), (eight, others) = found
assert len(one) > 4
for name in one:
    np.testing.assert_allclose(one[name], eight[name], rtol=2e-3, err_msg=name)
for path in stats:
    np.testing.assert_allclose(stats[path], others[path], rtol=2e-3, atol=2e-4)
print("same")
"""


@pytest.mark.parametrize(
    ("objective", "accumulate"),
    [
        ("simclr", 1),
        pytest.param("simclr", 2, marks=pytest.mark.slow),
        pytest.param("vicreg", 1, marks=pytest.mark.slow),
        pytest.param("byol", 1, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_compute_what_one_does(objective, accumulate):
    """Candidates, moments and statistics are of the whole batch."""
    assert "same" in run_python(DEVICES, objective, str(accumulate), devices=8)
