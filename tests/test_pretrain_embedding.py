"""Joint embedding: the losses by plain loops, what the decoder changes, the teacher."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from afterimage import runtime
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.data import Preprocessing, make_augment
from afterimage.errors import UserError
from afterimage.models import ModelConfig, Network
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.embedding import alignment_and_uniformity, passed_back
from afterimage.pretrain.objective import ModelSetup, make_stage
from afterimage.pretrain.objectives.byol import BYOL, byol_losses
from afterimage.pretrain.objectives.simclr import SimCLR, nt_xent
from afterimage.pretrain.objectives.vicreg import VICReg
from afterimage.pretrain.run import pretrain
from tests.helpers import run_python

pytestmark = pytest.mark.usefixtures("tiny")

RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(5, 2, 3)), jnp.float32)
TEACHER = jnp.asarray(RNG.normal(size=(5, 2, 3)), jnp.float32)


def loops_nt_xent(z):
    rows = [view / np.linalg.norm(view) for image in z for view in image]
    total = 0.0
    for i, one in enumerate(rows):
        others = [np.exp(one @ row / 0.3) for j, row in enumerate(rows) if j != i]
        total -= np.log(np.exp(one @ rows[i ^ 1] / 0.3) / sum(others))
    return total / len(rows)


def loops_vicreg(z):
    n, _, d = z.shape
    total = 25 * sum((one - two) @ (one - two) for one, two in z) / (n * d)
    for view in (0, 1):
        rows = [image[view] for image in z]
        centred = [row - sum(rows) / n for row in rows]
        for j, k in itertools.product(range(d), range(d)):
            covariance = sum(row[j] * row[k] for row in centred) / (n - 1)
            if j != k:
                total += covariance**2 / d
            else:
                total += 25 / 2 * max(0, 1 - np.sqrt(covariance + 1e-4)) / d
    return total


def loops_byol(z):
    total = 0.0
    for (one, two), (first, second) in zip(z, np.asarray(TEACHER), strict=True):
        for q, t in ((one, second), (two, first)):
            gap = q / np.linalg.norm(q) - t / np.linalg.norm(t)
            total += gap @ gap / len(z)
    return total


LOSSES = {
    "simclr": (lambda z: nt_xent(z, 0.3), loops_nt_xent),
    "vicreg": (VICReg().losses, loops_vicreg),
    "byol": (lambda z: byol_losses(z, TEACHER), loops_byol),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_plain_loops(name):
    ours, plain = LOSSES[name]
    assert ours(Z).shape == (5,)
    value, slope = jax.jit(jax.value_and_grad(lambda z: ours(z).mean()))(Z)
    exact = np.asarray(Z, np.float64)
    np.testing.assert_allclose(value, plain(exact), rtol=1e-5)
    for place in np.ndindex(exact.shape):
        step = np.zeros_like(exact)
        step[place] = 1e-5
        wanted = (plain(exact + step) - plain(exact - step)) / 2e-5
        np.testing.assert_allclose(slope[place], wanted, rtol=1e-3, atol=1e-4)


def test_without_information_nt_xent_is_the_logarithm_of_the_candidates():
    same = jnp.ones((6, 2, 4))
    np.testing.assert_allclose(nt_xent(same, 0.2), math.log(11), rtol=1e-6)


def test_the_teacher_gets_no_gradient():
    slope = jax.grad(lambda t: byol_losses(Z, t).sum())(TEACHER)
    assert not np.any(slope)


def test_alignment_and_uniformity_by_plain_loops():
    u = np.asarray(Z)
    u = u / np.linalg.norm(u, axis=-1, keepdims=True)
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
    padded = jnp.concatenate([Z, 7 * Z[:3] + 1])
    counted = jnp.arange(8) < 5
    np.testing.assert_allclose(loss(padded, counted)[:5], loss(Z, None), rtol=1e-4)
    # It would.
    assert not np.allclose(loss(padded, None)[:5], loss(Z, None), rtol=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_passed_back_changes_the_gradient_alone(share):
    change = jax.value_and_grad(lambda x: 3 * passed_back(x, share))
    value, slope = change(jnp.asarray(2.0))
    assert (value, slope) == (6, 3 * share)


MODEL = {"image_size": (8, 8), "channels": 1, "width": 0.125, "norm": "batch"}
RULE = Preprocessing((8, 8), (0.4,), (0.2,), 1, normalisation="image")
IMAGES = jnp.asarray(RNG.integers(0, 256, (6, 8, 8, 1), np.uint8))


def settings(objective, **changes):
    return PretrainConfig(
        out="x", data="digits", objective=objective, augment="shift", **changes
    )


@functools.cache
def gradients(objective, bottleneck=None):
    """(metrics, statistics) and gradient of a first step; what it started from."""
    decoder = objective.default_decoder
    model = ModelConfig(**MODEL, decoder=decoder, bottleneck=bottleneck)
    network, params, stats = Network.create(objective.build(model, nnx.Rngs(0)))
    stats = jax.tree.map(jnp.asarray, objective.start(params, stats))
    setup = ModelSetup(model, network, RULE, make_augment("shift"))
    loss = make_stage(objective, setup, settings(objective), 10).loss(0, params)

    @runtime.jit
    def run(params, stats, step):
        return jax.grad(loss, has_aux=True)(
            params, stats, {"image": IMAGES}, jax.random.key(0), step
        )

    slope, found = run(params, stats, jnp.asarray(0))
    return found, flatten(slope), (params, stats)


WAYS = ("view", "image", "masked")


@pytest.mark.parametrize(
    "way",
    [
        way if way == "image" else pytest.param(way, marks=pytest.mark.slow)
        for way in WAYS
    ],
)
def test_a_stopped_decoder_leaves_the_encoders_gradient_as_it_is(way):
    """With a bottleneck, whose own kernel must be stopped too."""
    (metrics, stats), alone, (params, _) = gradients(SimCLR(reconstruct="none"), 4)
    assert not any(path.startswith("decoder") for path in flatten(params))
    (more, moved), beside, (started, _) = gradients(SimCLR(reconstruct=way), 4)
    np.testing.assert_allclose(more["embedding"], metrics["embedding"], rtol=1e-5)
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, flatten(started)[path])
    for path, leaf in alone.items():
        np.testing.assert_allclose(beside[path], leaf, atol=1e-5, err_msg=path)
    assert any(np.any(x) for path, x in beside.items() if path.startswith("decoder"))
    # Nor does the images' own pass move BatchNorm's moments.
    for path, leaf in flatten(stats).items():
        np.testing.assert_allclose(flatten(moved)[path], leaf, atol=1e-6)


@pytest.mark.parametrize(
    "way", ["view", *(pytest.param(w, marks=pytest.mark.slow) for w in WAYS[1:])]
)
def test_the_decoders_gradient_reaches_the_encoder_if_it_shall(way):
    stopped = gradients(SimCLR(reconstruct=way), 4)[1]
    passed = gradients(SimCLR(reconstruct=way, reconstruction_gradient=1.0), 4)[1]
    change = {path: np.abs(x - stopped[path]).max() for path, x in passed.items()}
    assert max(v for path, v in change.items() if path.startswith("encoder")) > 1e-3
    assert max(v for path, v in change.items() if path[:7] != "encoder") < 1e-5


def test_the_teacher_follows_and_keeps_moments_of_its_own():
    byol = BYOL(teacher_decay=0.75)
    (_, stats), slope, (params, before) = gradients(byol)
    model = ModelConfig(**MODEL)
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
    moved = jax.tree.map(lambda x: x + 1, params)
    setup = ModelSetup(model, Network.create(byol.build(model, nnx.Rngs(0)))[0], RULE)
    follow = make_stage(byol, setup, settings(byol), 10).following(0)
    for step, share in ((0, 0.25), (5, 0.125), (10, 0.0)):
        after = follow(moved, stats, jnp.asarray(step))
        for path, leaf in flatten(after["teacher"]["params"]).items():
            wanted = flatten(params)[path] + share
            np.testing.assert_allclose(leaf, wanted, atol=1e-5)
        same = {**after, "teacher": {**after["teacher"], "params": teacher["params"]}}
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, same, stats)))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["byol", "latent"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_moves_its_teacher_once_a_step(tmp_path, objective, accumulate):
    changes = {"teacher_decay": 0.75}
    if objective == "latent":
        changes |= {"teacher_decay_end": 0.75, "patch": 8}
    config = PretrainConfig(
        out=str(tmp_path),
        objective={"name": objective, **changes},
        augment="shift",
        width=0.125,
        steps=2,
        batch_size=8,
        accumulate=accumulate,
        lr=0.1,
        save_every=1,
        keep_last=2,
        probe_images=0,
        pictures=0,
        tensorboard=False,
    )
    pretrain(config, data=RNG.integers(0, 256, (32, 16, 16, 1), np.uint8))
    first, last = (Store(tmp_path).restore(step=n)[1] for n in (1, 2))

    def taught(state):
        teacher = state["stats"]["teacher"]
        if objective == "latent":
            return flatten({"encoder": teacher})
        return flatten(teacher["params"])

    share = 0.25 if objective == "latent" else 0.125  # half of the run is done
    student = flatten(first["params"])
    gap = {path: student[path] - leaf for path, leaf in taught(first).items()}
    assert max(np.abs(x).max() for x in gap.values()) > 1e-3
    for path, leaf in taught(last).items():
        wanted = taught(first)[path] + share * gap[path]
        np.testing.assert_allclose(leaf, wanted, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("objective", "changes", "said"),
    [
        (SimCLR(), {"augment": "none"}, "would be the same"),
        (SimCLR(temperature=0.0), {}, "temperature=0.0"),
        (SimCLR(projection=0), {}, "projection=0"),
        (SimCLR(reconstruct="none"), {"decoder": "light"}, "decoder='light' has no"),
        (SimCLR(ratio=0.5), {}, "ratio=0.5 has no effect"),
        (SimCLR(reconstruct="masked", ratio=1.0), {}, "ratio=1.0"),
        (SimCLR(target="hog"), {}, "only with reconstruct='masked'"),
        (SimCLR(reconstruct="masked"), {"decoder": "light"}, "hierarchical, block"),
        (SimCLR(reconstruction_weight=0.0), {}, "weight=0.0"),
        (SimCLR(reconstruction_gradient=-1.0), {}, "reconstruction_gradient=-1.0"),
        (SimCLR(), {"batch_size": 4, "accumulate": 4}, "at least 2 images"),
        (VICReg(variance=-1.0), {}, "variance=-1.0"),
        (BYOL(teacher_decay=1.5), {}, "teacher_decay=1.5"),
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
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from afterimage.models import Network
from afterimage.models.layers import PassInfo
from afterimage.pretrain.embedding import Projector
from afterimage.pretrain.objectives.byol import byol_losses
from afterimage.pretrain.objectives.simclr import nt_xent
from afterimage.pretrain.objectives.vicreg import VICReg
from afterimage.training.batches import make_mesh, place, replicate

class Embedder(Projector):
    def __call__(self, x, *, train):
        rows = x.reshape(-1, x.shape[-1])
        return super().__call__(rows, PassInfo(train=train)).reshape(*x.shape[:2], -1)

assert jax.device_count() == 8
network, *weights = Network.create(Embedder(6, 8, 4, rngs=nnx.Rngs(0)))
rows = np.random.default_rng(0).normal(size=(16, 2, 6)).astype(np.float32)

def loss(params, stats, batch):
    z, after = network.apply(params, stats, batch["x"], train=True)
    each = nt_xent(z, 0.2) + VICReg().losses(z) + byol_losses(z, z)
    return each.mean(), (each, after)

def found(devices):
    mesh = make_mesh(devices)
    batch = place({"x": rows}, mesh)
    assert len(batch["x"].sharding.device_set) == devices
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return jax.tree.map(np.asarray, step(*replicate(weights, mesh), batch))

jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    found(1), found(8),
)
print("same")
"""

RUNS = """
import sys, tempfile
import jax, numpy as np
from afterimage.pretrain import PretrainConfig, pretrain
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.training.batches import make_mesh
from afterimage.training.sharding import part

images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
split = sys.argv[3] == "split"
found = []
for devices in (1, 8):
    out = tempfile.mkdtemp()
    result = pretrain(PretrainConfig(
        out=out, objective=sys.argv[1], augment="shift", width=0.5 if split else 0.125,
        shard_parameters=split and devices == 8, steps=2,
        batch_size=32, devices=devices, pictures=0, tensorboard=False, validation=0.3,
        clip=0.0, accumulate=int(sys.argv[2]),
    ), data=images)
    _, state, _ = Store(result.run).restore()
    found.append((result.metrics, flatten(state["stats"])))
(one, stats), (eight, others) = found
if split and sys.argv[1] == "byol":
    places = [part(x.shape, make_mesh()) for k, x in stats.items() if "teacher" in k]
    assert any(not place.is_fully_replicated for place in places)
assert len(one) > 4
for name in one:
    np.testing.assert_allclose(one[name], eight[name], rtol=2e-3, err_msg=name)
for path in stats:
    # Adam's first steps turn rounding near a gradient of 0 into whole steps.
    np.testing.assert_allclose(stats[path], others[path], rtol=5e-3, atol=1e-3)
print("same")
"""


@pytest.mark.slow
def test_candidates_and_moments_are_of_the_whole_batch_on_eight_devices():
    assert "same" in run_python(DEVICES, devices=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "accumulate", "state"),
    [
        ("simclr", 1, "copies"),
        ("simclr", 2, "copies"),
        ("vicreg", 1, "copies"),
        ("byol", 1, "copies"),
        ("simclr", 1, "split"),
        ("byol", 2, "split"),
    ],
)
def test_runs_on_eight_devices_are_those_on_one(objective, accumulate, state):
    """Also with parameters, moments and the teacher split over them."""
    arguments = objective, str(accumulate), state
    assert "same" in run_python(RUNS, *arguments, devices=8, timeout=900)
