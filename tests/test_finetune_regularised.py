"""Stochastic depth, dropout, Mixup and CutMix, each against its definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import afterimage
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.errors import UserError
from afterimage.finetune import FinetuneConfig, finetune
from afterimage.finetune.data import open_all
from afterimage.finetune.losses import cross_entropy
from afterimage.finetune.methods.dropout import dropped
from afterimage.finetune.methods.mixup import SHARE, draw, mixed, other
from afterimage.finetune.presets import preset_config
from afterimage.finetune.setup import build, make_stage
from afterimage.models import ModelConfig, Network, build_encoder
from afterimage.models.layers import StochasticDepth
from afterimage.training.stage import Context
from tests import encoder_artefact
from tests.encoder_artefact import pictures, shades

KEY = jax.random.key(0)
MANY = 4000


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_branch_is_skipped_in_proportion_to_its_depth(done):
    rate, blocks = 0.6, 4
    skipping = StochasticDepth(rate, KEY, blocks, done)
    branch = np.asarray(skipping(jnp.ones((MANY, 2, 3, 1))))
    kept = 1 - rate * (done + 1) / blocks
    each = branch[:, 0, 0, 0]
    np.testing.assert_allclose(np.unique(each), [0, 1 / kept], rtol=1e-6)
    assert np.ptp(branch, axis=(1, 2, 3)).max() == 0  # whole images
    assert (each > 0).mean() == pytest.approx(kept, abs=0.03)
    assert each.mean() == pytest.approx(1, abs=0.06)


def encoder(*, branches=1.0, filled=True, **options):
    """maps(**how) of some images; the blocks' branches are scaled by `branches`."""
    config = ModelConfig("conv", (16, 16), 3, width=0.25, **options)
    network, params, stats = Network.create(build_encoder(config, rngs=nnx.Rngs(0)))
    if filled:
        params = encoder_artefact.filled(params, np.random.default_rng(1))
    flat = flatten(jax.tree.map(jnp.asarray, params))
    flat = {p: x * branches if "/norm2/" in p else x for p, x in flat.items()}
    images = jnp.asarray(pictures(8), jnp.float32) / 255

    def maps(**how):
        return network.apply(unflatten(flat), stats, images, **how)[0]

    return maps


def test_each_image_skips_its_own_blocks():
    """Of two blocks the last is always skipped, the first for about half."""
    rate = 1 - 1e-6
    found = encoder()(depth=StochasticDepth(rate, KEY))
    bare, doubled = encoder(branches=0.0)(), encoder(branches=2.0)()
    kept = np.asarray(StochasticDepth(rate, KEY, 2, 0)(jnp.ones((8, 1, 1, 1)))) > 0
    assert 0 < kept.sum() < 8
    np.testing.assert_array_equal(found[0], bare[0])  # before any block
    expected = np.where(kept, doubled[1], bare[1])
    np.testing.assert_allclose(found[1], expected, rtol=1e-4, atol=1e-5)
    skipped = ~kept[:, 0, 0, 0]
    np.testing.assert_allclose(found[2][skipped], bare[2][skipped], rtol=1e-4)


def test_a_new_network_has_empty_branches_to_skip():
    maps = encoder(filled=False)
    for one, two in zip(maps(), maps(depth=StochasticDepth(0.9, KEY)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_recomputed_blocks_skip_alike():
    depth = StochasticDepth(0.5, KEY)
    for one, two in zip(
        encoder()(depth=depth), encoder(remat=True)(depth=depth), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_dropout_keeps_the_mean():
    found = np.asarray(dropped(KEY, jnp.ones((200, 50)), 0.3))
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.7], rtol=1e-6)
    assert (found == 0).mean() == pytest.approx(0.3, abs=0.02)


def test_mixup_draws_one_share_for_an_image():
    weights, share = draw(KEY, (MANY, 4, 4, 3), 0.5, 0.0)
    assert np.ptp(np.asarray(weights), axis=(1, 2, 3)).max() == 0
    np.testing.assert_allclose(weights[:, 0, 0, 0], share, rtol=1e-6)
    # Beta(α, α): mean 1/2, variance 1 / (4 (2 α + 1)).
    assert float(share.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(share.var()) == pytest.approx(1 / 8, abs=0.01)


def test_cutmix_pastes_a_rectangle_of_the_drawn_share():
    weights, share = draw(KEY, (MANY, 32, 20, 3), 1.0, 1.0)
    weights = np.asarray(weights)[..., 0]
    assert set(np.unique(weights)) == {0.0, 1.0}
    np.testing.assert_allclose(weights.mean((1, 2)), share, rtol=1e-6)
    pasted = weights == 0
    rows, columns = pasted.any(2), pasted.any(1)
    np.testing.assert_array_equal(pasted, rows[:, :, None] & columns[:, None])
    for line in (rows, columns):  # one stretch
        assert (np.diff(line.astype(int), axis=1) == 1).sum(1).max() <= 1
    # In the middle, the border cuts nothing off: both sides have the same share.
    high, wide = rows.sum(1), columns.sum(1)
    inside = rows[:, 0] + rows[:, -1] + columns[:, 0] + columns[:, -1] == 0
    assert inside.sum() > 300
    assert np.abs(high[inside] / 32 - wide[inside] / 20).max() < 2 / 20
    assert np.corrcoef(high, wide)[0, 1] > 0.6


def test_half_of_the_images_may_be_cut():
    weights, _ = draw(KEY, (MANY, 8, 8, 1), 1.0, 0.5)
    cut = np.isin(np.asarray(weights), (0.0, 1.0)).all((1, 2, 3))
    assert cut.mean() == pytest.approx(0.5, abs=0.03)


def test_the_loss_is_that_of_the_mixed_label():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    labels, share = jnp.array([0, 1, 2, 1, 0]), jnp.asarray(rng.uniform(size=5))
    values = {
        "train/logits/classes": logits,
        "train/label": labels,
        "mixup/label": other(labels),
        SHARE: share,
    }
    term = mixed(cross_entropy(3, label_smoothing=0.1))
    context = Context({name: lambda _, v=v: v for name, v in values.items()})
    found, _ = term.fn(context.only(term.reads, term.name))
    one = jax.nn.one_hot(labels, 3)
    target = (
        share[:, None] * one + (1 - share[:, None]) * one[jnp.array([1, 2, 3, 4, 0])]
    )
    target = 0.9 * target + 0.1 / 3
    expected = -(target * jax.nn.log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def settings(tmp_path, **changes):
    usual = {"from_": str(tmp_path / "e"), "data": "digits", "out": str(tmp_path / "r")}
    return FinetuneConfig(**usual | changes)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"name": "mixup", "alpha": 0.0}, r"mixup\.alpha=0\.0: must be greater"),
        ({"name": "mixup", "cutmix": 1.5}, r"mixup\.cutmix=1\.5: must be from 0 to 1"),
        ({"name": "dropout", "rate": 1.0}, r"dropout\.rate=1\.0: must be between"),
        ({"name": "stochastic-depth", "rate": 0.0}, r"stochastic-depth\.rate=0\.0"),
    ],
)
def test_rates_out_of_range_are_refused(tmp_path, methods, said):
    with pytest.raises(UserError, match=said):
        settings(tmp_path, methods=(methods,))


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(UserError, match="mixup: does not work with tasks"):
        settings(tmp_path, methods=("mixup", {"name": "tasks", "columns": ("colour",)}))
    with pytest.raises(UserError, match=r"stochastic-depth.*no effect.*mode probe"):
        settings(tmp_path, mode="probe", methods=("stochastic-depth",))


def test_an_encoder_without_residual_blocks_is_refused(tmp_path):
    encoder_artefact.write(tmp_path / "e", "conv-classic")
    chosen = settings(
        tmp_path, data=shades(tmp_path / "s.npz"), methods=("stochastic-depth",)
    )
    with pytest.raises(UserError, match="conv-classic has no residual blocks"):
        finetune(chosen)


@pytest.mark.slow
def test_the_preset_trains_and_predicts_alike_every_time(tmp_path):
    encoder_artefact.write(tmp_path / "e", norm="batch")
    chosen = preset_config(
        "photos",
        from_=str(tmp_path / "e"),
        data=shades(tmp_path / "s.npz"),
        out=str(tmp_path / "r"),
        steps=4,
        batch_size=8,
        tensorboard=False,
    )
    result = finetune(chosen)
    assert {m.name for m in chosen.methods} == {"stochastic-depth", "dropout", "mixup"}
    classifier = afterimage.load_classifier(result.run)
    images = pictures(5)
    np.testing.assert_array_equal(
        classifier.predict_proba(images), classifier.predict_proba(images)
    )
    again = finetune(dataclasses.replace(chosen, log_every=5))
    assert again.complete


def test_a_step_draws_from_its_key_alone(tmp_path):
    """The stage of a run with all three: both phases are checked, one is run."""
    encoder_artefact.write(tmp_path / "e")
    methods = ("stochastic-depth", "dropout", {"name": "mixup", "cutmix": 0.5})
    chosen = settings(
        tmp_path,
        data=shades(tmp_path / "s.npz"),
        methods=methods,
        mode="two-phase",
        augment="none",
        steps=20,
        batch_size=8,
    )
    setup = build(chosen, open_all(chosen))
    stage = make_stage(setup)
    drawn = encoder_artefact.filled(setup.params, np.random.default_rng(0))
    params, stats = jax.tree.map(jnp.asarray, (drawn, setup.stats))
    batch = {
        "image": jnp.asarray(pictures(8)),
        "label": jnp.arange(8) % 3,
        "index": jnp.arange(8),
    }
    loss = jax.jit(stage.loss(1, params))
    values = [
        float(loss(params, stats, batch, jax.random.key(n), jnp.int32(0))[0])
        for n in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]
