"""Labelled images with pixels of the target: the laws, and what a run learns by it."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.errors import UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.method import Now
from afterimage.finetune.methods.compose import (
    COMPOSERS,
    MIXED,
    Compose,
    ink,
    mixup,
    strength,
)
from afterimage.finetune.run import finetune
from afterimage.training.stage import Context
from tests.helpers import cut_back
from tests.test_finetune_program import config, make_encoder, write_domain, write_npz

KEY = jax.random.key(3)
IMAGES = jax.random.uniform(jax.random.key(0), (6, 5, 4, 3))
OTHERS = jax.random.uniform(jax.random.key(1), (6, 5, 4, 3))


@pytest.mark.parametrize("name", sorted(COMPOSERS))
def test_composed_images_begin_as_they_are_and_keep_their_range(name):
    compose = jax.jit(COMPOSERS[name])
    np.testing.assert_allclose(compose(KEY, IMAGES, OTHERS, 0.0), IMAGES, atol=1e-6)
    found = compose(KEY, IMAGES, OTHERS, 1.0)
    assert found.shape == IMAGES.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    np.testing.assert_array_equal(found, compose(KEY, IMAGES, OTHERS, 1.0))
    assert (np.abs(np.asarray(found - IMAGES)).max((1, 2, 3)) > 0).all()


def test_a_mix_is_one_share_of_its_partner():
    shares = (mixup(KEY, IMAGES, OTHERS) - IMAGES) / (OTHERS - IMAGES)
    shares = np.asarray(shares).reshape(6, -1)
    np.testing.assert_allclose(shares, shares[:, :1].repeat(60, 1), rtol=1e-3)
    assert len(set(shares[:, 0].tolist())) == 6
    assert (shares > 0).all()
    assert (shares <= MIXED).all()


def test_ink_draws_between_two_layers_of_different_target_images():
    """By the image's own tones; the ground is of this row's target image, the figure of
    the one before."""
    zeros, ones = jnp.zeros_like(IMAGES), jnp.ones_like(IMAGES)
    ground, figure = ink(KEY, zeros, OTHERS), ink(KEY, ones, OTHERS)
    found = ink(KEY, IMAGES, OTHERS)
    np.testing.assert_allclose(found, ground + (figure - ground) * IMAGES, atol=1e-6)
    changed = OTHERS.at[2].set(0.0)
    for images, row in ((zeros, 2), (ones, 3)):
        moved = np.abs(ink(KEY, images, changed) - ink(KEY, images, OTHERS))
        assert np.flatnonzero(moved.max((1, 2, 3)) > 1e-5).tolist() == [row]


def test_ink_colours_are_drawn_by_image_and_channel():
    """Over a black target only the colours c remain: (1 - a u) c where there is one."""
    many = jnp.zeros((4_000, 1, 1, 3))
    found = np.asarray(ink(KEY, many, many))[:, 0, 0]
    # Coloured with probability a, density 2 a: E[a (1 - a / 2)] / 2 = (2/3 - 1/4) / 2.
    assert (found > 0).any(1).mean() == pytest.approx(2 / 3, abs=0.03)
    assert found.mean() == pytest.approx(5 / 24, abs=0.02)
    half = np.asarray(ink(KEY, many, many, 0.5))[:, 0, 0]
    assert (half > 0).any(1).mean() == pytest.approx(1 / 3, abs=0.03)


def test_the_strength_grows_until_half_of_the_phase():
    found = [float(strength(p)) for p in (0.0, 0.125, 0.25, 0.5, 0.9)]
    assert found == pytest.approx([0, 0.25, 0.5, 1, 1])


@pytest.mark.parametrize(("progress", "changed"), [(0.0, False), (0.5, True)])
def test_only_the_labelled_images_are_composed(progress, changed):
    known = {"train/view": lambda _: IMAGES, "target/view": lambda _: OTHERS}
    setup: Any = None
    own = Compose(kind="ink").providers(setup, known, Now({}, {}, {}, KEY))
    ctx = Context({**known, **own, "progress": lambda _: progress})
    np.testing.assert_array_equal(ctx["target/view"], OTHERS)
    assert changed != np.allclose(ctx["train/view"], IMAGES, atol=1e-6)


def test_composing_needs_a_target():
    with pytest.raises(UserError, match=r"compose: needs images of the target"):
        FinetuneConfig(from_="a", data="digits", out="b", methods="compose")


@pytest.fixture
def home(tmp_path_factory, tiny):
    """An encoder, images of three patterns, and the same patterns inverted."""
    folder = tmp_path_factory.mktemp("composing")
    make_encoder(folder / "encoder")
    write_npz(folder / "data.npz")
    write_domain(folder / "target.npz", lambda x: 255 - x)
    return folder


@pytest.mark.slow
def test_a_run_learns_what_the_target_brings_in(home, tmp_path):
    """Inverted patterns are read only where the figures were drawn in all colours."""
    accuracy = {}
    for name in ("none", "ink"):
        result = finetune(
            config(
                home,
                tmp_path / name,
                mode="full",
                methods=() if name == "none" else Compose(kind="ink"),
                target=f"npz:{home / 'target.npz'}",
                steps=160,
                lr=1e-2,
                eval_every=160,
                select="last",
            )
        )
        accuracy[name] = result.results["test"]["accuracy"]["value"]
        assert result.results["source"]["accuracy"]["value"] > 0.9
        drawn = result.run / "pictures" / "composed.png"
        assert drawn.exists() == (name == "ink")
        report = (result.run / "report.html").read_text()
        assert ("combined with target" in report) == (name == "ink")
    assert accuracy["ink"] > accuracy["none"] + 0.5


@pytest.mark.slow
def test_a_composed_run_resumes_exactly(home, tmp_path):
    settings = {
        "mode": "full",
        "methods": "compose",
        "target": f"npz:{home / 'target.npz'}",
        "steps": 4,
        "save_every": 1,
        "keep_last": 10,
    }
    whole = finetune(config(home, tmp_path / "whole", **settings)).run
    run = cut_back(whole, tmp_path / "cut", 2)
    finetune(config(home, run, **settings))
    lines = [(p / "metrics.jsonl").read_text().splitlines()[-1] for p in (whole, run)]
    first, second = map(json.loads, lines)
    losses = [name for name in first if name.startswith("eval/")]
    assert losses
    assert [first[n] for n in losses] == [second[n] for n in losses]
