"""Augmentations joined by commas: each against a plain reference, and together."""

import colorsys
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from afterimage.commands.completion import candidates
from afterimage.commands.methods import main as methods
from afterimage.commands.pretrain import main as pretrain_command
from afterimage.data import make_augment
from afterimage.data.augmentations import (
    colours,
    cuts,
    geometry,
    moves,
    resampling,
    takes,
)
from afterimage.errors import UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.plugins import AUGMENTATIONS
from afterimage.pretrain import PretrainConfig, pretrain

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (6, 24, 24, 3), np.uint8)
IMAGES = jnp.asarray(NOISE, jnp.float32) / 255
BOXES = [(0, 0, 24, 24), (2, 3, 10, 15), (5, 1, 19, 20), (15, 15, 5, 4)]
BOXES += [(1, 0, 23, 24), (8, 8, 8, 8)]
"""left, top, width, height of a part of each image."""


def augmented(spec, images, size=None, key=0):
    return np.asarray(jax.jit(make_augment(spec, size))(jax.random.key(key), images))


def alike(one, other):
    """Whether two samples may have one distribution (Kolmogorov and Smirnov)."""
    found: Any = stats.ks_2samp(one, other)
    return found.pvalue > 1e-4


def config(**settings):
    return PretrainConfig(data="digits", out="x", **settings)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("crop,flp", "'flp' is unknown; did you mean 'flip'"),
        ("crop:0.3,", "'' is unknown"),
        ("crop:1.5", "crop:1.5: area=1.5: from 0.01 to 1"),
        ("crop:wide", "area='wide' is not a number"),
        ("crop:nan", "area=nan: from"),
        ("rotate:5:5", r"it takes degrees \(0 to 180; 15 if left out\)"),
        ("shift:2", "shift:2: it takes no number"),
        ("photos:2", "photos is a set"),
    ],
)
def test_a_spec_that_cannot_be(spec, message):
    with pytest.raises(UserError, match=message):
        config(augment=spec)
    with pytest.raises(UserError, match=message):
        FinetuneConfig(data="digits", from_="run", out="x", augment=spec)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "flip,color"}, "cuts no views; add crop"),
        ({"augment": "crop", "image_size": 16}, "at most image_size=16"),
        ({"augment": "photos", "bottleneck": 8}, "only one image size"),
    ],
)
def test_views_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        config(view_size=24, **settings)


def test_patches_of_views_are_those_of_the_images(tmp_path):
    """A seventh of either would differ: 2 pixels of views, 4 of the images."""
    images = np.repeat(NOISE, 3, 0).repeat(2, 1).repeat(2, 2)
    settings = {"view_size": 24, "augment": "crop", "objective": "masked"}
    with pytest.raises(UserError, match="patches of 2 pixels in training and 4"):
        pretrain(PretrainConfig(out=str(tmp_path / "run"), **settings), data=images)


def test_one_name_draws_from_the_key_itself():
    wanted = jax.jit(geometry.crop_flip)(jax.random.key(3), IMAGES)
    np.testing.assert_array_equal(augmented("crop-flip", IMAGES, key=3), wanted)


def test_several_are_applied_in_order():
    found = augmented("grey:1,solarise:1:0.4", IMAGES)
    grey = colours.to_grey(IMAGES)
    wanted = jnp.where(grey >= 0.4, 1 - grey, grey).repeat(3, -1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    other = augmented("solarise:1:0.4,grey:1", IMAGES)
    assert not np.allclose(found, other, atol=0.1)


def test_an_augmentation_from_elsewhere_joins_in(monkeypatch):
    def darker(key, images):
        return 0.5 * images

    @takes(share=(0, 1))
    def brighter(key, images, share=0.1):
        return images + share

    for function in (darker, brighter):
        monkeypatch.setitem(AUGMENTATIONS._things, function.__name__, function)
    found = augmented("crop:1:1,darker,brighter:0.25", IMAGES)
    np.testing.assert_allclose(found, 0.5 * IMAGES + 0.25, atol=1e-6)
    with pytest.raises(UserError, match="brighter:2: share=2: from 0 to 1"):
        make_augment("darker,brighter:2")


def cut(boxes, size):
    left, top, width, height = jnp.asarray(boxes, jnp.float32).T
    return moves.part(left, top, width, height, resampling.Canvas(6, (24, 24), size))


@pytest.mark.parametrize("size", [(16, 16), (40, 12)])
def test_a_part_is_resized_as_pillow_does(size):
    """Which is what torchvision's `resized_crop` does: linear, antialiased."""
    found = jax.jit(resampling.straightly, static_argnums=2)(
        IMAGES, cut(BOXES, size), size
    )
    for image, (left, top, width, height), ours in zip(
        np.asarray(IMAGES), BOXES, found, strict=True
    ):
        part = Image.fromarray(image[top : top + height, left : left + width, 0])
        wanted = np.asarray(part.resize(size[::-1], Image.Resampling.BILINEAR))
        np.testing.assert_allclose(ours[..., 0], wanted, atol=1e-3)


@pytest.mark.parametrize(("continues", "mode"), [(False, "reflect"), (True, "nearest")])
def test_movements_become_one_linear_interpolation(continues, mode):
    """A part, mirrored, then rotated: as scipy draws it at the composed places."""
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    left, top, width, height = np.array(BOXES[2], float)
    whole = cut([BOXES[2]] * 6, (24, 24))
    for linear in (np.diag([-1.0, 1.0]), turn):
        later = jnp.asarray(np.broadcast_to(linear, (6, 2, 2)), jnp.float32)
        whole = whole.after(resampling.Affine(later, jnp.zeros((6, 2))))
    resample = functools.partial(resampling.resample, continues=continues)
    found = jax.jit(resample, static_argnums=2)(IMAGES, whole, (24, 24))
    place = np.stack(np.meshgrid(*[(2 * np.arange(24) + 1) / 24 - 1] * 2), -1)
    x, y = np.moveaxis((place @ turn.T) * [-1, 1], -1, 0)
    source = top + height * (y + 1) / 2 - 0.5, left + width * (x + 1) / 2 - 0.5
    wanted: Any = [
        ndimage.map_coordinates(
            np.asarray(IMAGES[0, ..., c], float), source, order=1, mode=mode
        )
        for c in range(3)
    ]
    np.testing.assert_allclose(found[0], np.moveaxis(wanted, 0, -1), atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spread", [resampling._triangle, resampling._closest])
@pytest.mark.parametrize("beyond", [resampling._mirrored, resampling._continued])
@pytest.mark.parametrize(("at_once", "size"), [(2**21, (24, 24)), (7000, (7, 11))])
def test_a_tpus_products_are_the_gathers_of_others(
    monkeypatch, spread, beyond, at_once, size, dtype
):
    monkeypatch.setattr(resampling, "_AT_ONCE", at_once)
    linear, offset = RNG.normal(size=(6, 2, 2)), RNG.normal(size=(6, 2))
    move = resampling.Affine(
        jnp.asarray(np.eye(2) + 0.3 * linear, jnp.float32),
        jnp.asarray(0.3 * offset, jnp.float32),
    )
    images = jnp.asarray(RNG.uniform(size=(6, 13, 9, 4)), dtype)
    how = resampling.Sampling(size, beyond, spread)
    gathers, products = (jax.jit(f)(images, move) for f in resampling._forms(how))
    assert gathers.shape == (6, *size, 4)
    made = jax.jit(resampling._sampled, static_argnums=2)(images, move, how)
    assert made.dtype == images.dtype
    # Places are rounded to 1/4096 of a pixel, after sums in another order.
    atol = 1e-3 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(products, gathers, atol=atol)
    assert gathers.std() > 0.1


def of_images(program, operation):
    """How many operations of a program have results as large as four images of 16
    pixels."""
    shapes = re.findall(
        rf'stablehlo\.{operation}".*?-> tensor<([0-9x]+)x', program, re.S
    )
    return sum(math.prod(map(int, x.split("x"))) >= 4 * 16 * 16 for x in shapes)


def lowered(function, *args):
    """The programs for a TPU and a CPU."""
    traced = jax.jit(function).trace(*args)
    return tuple(
        traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("tpu", "cpu")
    )


@pytest.mark.parametrize("spec", ["photos", "writing", "randaugment", "elastic"])
def test_a_tpu_gathers_no_pixels(spec):
    """Each would be a line of 128 numbers: a hundred times the bytes of the images."""
    images = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)
    augment = make_augment(spec, 16 if cuts(spec) else None)
    tpu, cpu = lowered(augment, jax.random.key(0), images)
    assert of_images(tpu, "gather") == 0
    # In the programs of others, which have no other form, they are found.
    assert (of_images(cpu, "gather") > 0) == (spec != "elastic")


def test_a_tpu_gathers_no_marks():
    marks = jax.ShapeDtypeStruct((4, 16, 16), jnp.int32)

    def turned(marks):
        return resampling.nearest(marks, resampling._unmoved(4), (16, 16))

    assert [of_images(each, "gather") for each in lowered(turned, marks)] == [0, 1]


def test_equal_draws_have_an_order_too():
    """Without it, an image of `color` would turn black."""
    draws = jnp.asarray([[0.5, 0.1], [0.2, 0.1], [0.5, 0.3], [0.1, 0.1]])
    places = colours._places(draws[..., None, None, None])[..., 0, 0, 0]
    assert places.T.tolist() == [[2, 1, 3, 0], [0, 1, 3, 2]]
    assert not any(
        "stablehlo.sort" in each
        for each in lowered(colours.color, jax.random.key(0), IMAGES)
    )


def test_reduced_images_are_not_aliased():
    """Stripes of one pixel turn grey, whatever is resampled: straight or rotated."""
    stripes = jnp.zeros((2, 48, 48, 1)).at[:, ::2].set(1.0)
    for spec in ("crop:1:1", "crop:1:1,rotate:10"):
        views = augmented(spec, stripes, 16)
        assert views.shape == (2, 16, 16, 1)
        assert np.abs(views[:, 3:-3, 3:-3] - 0.5).max() < 0.15


def reference_part(rng, height, width, area, aspect):
    """As torchvision draws it: ten tries, then the middle."""
    for _ in range(10):
        pixels = height * width * rng.uniform(area, 1)
        ratio = np.exp(rng.uniform(-np.log(aspect), np.log(aspect)))
        w, h = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(width - w + 1), rng.integers(height - h + 1), w, h
    w, h = min(width, round(height * aspect)), min(height, round(width * aspect))
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize(
    ("size", "area"), [((20, 20), 0.2), ((9, 30), 0.3), ((9, 30), 0.95)]
)
def test_crop_draws_parts_as_the_reference(size, area):
    n, (height, width) = 4000, size
    canvas = resampling.Canvas(n, size, (16, 16))
    drawn = jax.jit(lambda key: moves.crop.draw(key, canvas, area))(jax.random.key(0))
    w, h = width * drawn.linear[:, 0, 0], height * drawn.linear[:, 1, 1]
    left = ((drawn.offset[:, 0] + 1) * width - w) / 2
    top = ((drawn.offset[:, 1] + 1) * height - h) / 2
    ours = np.stack([left, top, w, h])
    np.testing.assert_allclose(ours, ours.round(), atol=1e-3)
    ours = ours.round()
    rng = np.random.default_rng(1)
    wanted = np.array(
        [reference_part(rng, height, width, area, 4 / 3) for _ in range(n)]
    ).T
    for a, b in zip(ours, wanted, strict=True):
        assert alike(a, b)
    assert alike(ours[2] * ours[3], wanted[2] * wanted[3])


@pytest.mark.parametrize(
    ("spec", "ways", "square"),
    [
        ("symmetries", 8, True),
        ("symmetries", 4, False),
        ("quarter-turns", 4, True),
        ("quarter-turns", 2, False),
        ("flip,flip-vertical", 4, True),
    ],
)
def test_ways_to_put_an_image_down(spec, ways, square):
    """Each equally often, and no pixel changes."""
    image = np.asarray(IMAGES[0] if square else IMAGES[0, :20])
    many = jnp.broadcast_to(image, (400, *image.shape))
    views = augmented(spec, many)
    keys = [view.tobytes() for view in views]
    counts = [keys.count(one) for one in set(keys)]
    assert len(counts) == ways
    assert np.abs(np.array(counts) - 400 / ways).max() < 6 * np.sqrt(400 / ways)
    ordered = np.sort(image.ravel())
    np.testing.assert_array_equal(np.sort(views[0].ravel()), ordered)


def drawn(move, amount):
    """The maps of a movement, for 3,000 images of 20x30 pixels."""
    canvas = resampling.Canvas(3000, (20, 30), (20, 30))
    found = jax.jit(lambda key: move.draw(key, canvas, amount))(jax.random.key(0))
    return np.asarray(found.linear), np.asarray(found.offset)


def angle(amount):
    linear, _ = drawn(moves.rotate, amount)
    return np.rad2deg(np.arctan2(linear[:, 0, 1] * 30 / 20, linear[:, 0, 0]))


def changed(spec, image):
    """3,000 images that are all [w][c], one row high."""
    image = jnp.asarray(image, jnp.float32)[None]
    return augmented(spec, jnp.broadcast_to(image, (3000, *image.shape)))[:, 0]


def sigma(low, high):
    """From how much of a point stays, and how much its neighbour gets."""
    points = jnp.zeros((3000, 9, 9, 1)).at[:, 4, 4].set(1.0)
    found = augmented(f"blur:1:{low}:{high}", points).astype(float)
    return np.sqrt(-0.5 / np.log(found[:, 4, 5, 0] / found[:, 4, 4, 0]))


def hues():
    found = changed("hue:0.2", [[0.7, 0.4, 0.3]])[:, 0]
    start = colorsys.rgb_to_hsv(0.7, 0.4, 0.3)[0]
    turned = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in found.tolist()])
    return (turned - start + 0.5) % 1 - 0.5


PAIR = [[0.4, 0.5, 0.6], [0.6, 0.5, 0.4]]
"""Two pixels that no factor in 1 ± 0.3 clips."""


@pytest.mark.parametrize(
    ("measured", "low", "high"),
    [
        pytest.param(lambda: angle(40.0), -40, 40, id="rotate"),
        pytest.param(
            lambda: np.log(drawn(moves.zoom, 0.3)[0][:, 0, 0]), -0.3, 0.3, id="zoom"
        ),
        pytest.param(
            lambda: drawn(moves.slant, 0.5)[0][:, 0, 1] * 30 / 20,
            *(-0.5, 0.5),
            id="slant",
        ),
        # Places run from -1 to 1, a side is 2 long.
        pytest.param(
            lambda: drawn(moves.translate, 0.2)[1][:, 0] / 2, -0.2, 0.2, id="across"
        ),
        pytest.param(
            lambda: drawn(moves.translate, 0.2)[1][:, 1] / 2, -0.2, 0.2, id="down"
        ),
        pytest.param(lambda: sigma(0.3, 1.5), 0.3, 1.5, id="blur"),
        pytest.param(
            lambda: changed("brightness:0.3", PAIR)[:, 0, 0] / 0.4,
            *(0.7, 1.3),
            id="brightness",
        ),
        pytest.param(
            lambda: (
                np.ptp(changed("contrast:0.3", [[0.4] * 3, [0.6] * 3]), 1)[:, 0] / 0.2
            ),
            *(0.7, 1.3),
            id="contrast",
        ),
        pytest.param(
            lambda: np.ptp(changed("saturation:0.3", PAIR)[:, 0], 1) / 0.2,
            *(0.7, 1.3),
            id="saturation",
        ),
        pytest.param(hues, -0.2, 0.2, id="hue"),
    ],
)
def test_amounts_are_uniform_as_in_torchvision(measured, low, high):
    """In RandomRotation, RandomAffine (zoom: its logarithm), GaussianBlur and
    ColorJitter, which draw an angle, a factor, … uniformly between two ends."""
    values = measured()
    slack = 1e-3 * (high - low)
    assert low - slack <= values.min()
    assert values.max() <= high + slack
    found: Any = stats.kstest(values, "uniform", (low, high - low))
    assert found.pvalue > 1e-3


def reference_box(rng, height, width, largest):
    """As torchvision's RandomErasing draws it: ten tries, then nothing."""
    for _ in range(10):
        pixels = height * width * rng.uniform(0.02, largest)
        ratio = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
        h, w = round(np.sqrt(pixels * ratio)), round(np.sqrt(pixels / ratio))
        if h < height and w < width:
            top = rng.integers(height - h + 1)
            return top, rng.integers(width - w + 1), h, w
    return 0, 0, 0, 0


def test_erase_draws_boxes_as_torchvision():
    largest, n, rng = 0.6, 1000, np.random.default_rng(1)
    images = jnp.broadcast_to(IMAGES[:1, :14, :22, :1], (n, 14, 22, 1))
    gone = (augmented(f"erase:1:{largest}", images) != np.asarray(images)).any(-1)
    rows, columns = gone.any(2), gone.any(1)
    ours = rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)
    wanted = np.array([reference_box(rng, 14, 22, largest) for _ in range(n)]).T
    for a, b in zip(ours, wanted, strict=True):
        assert alike(a, b)
    assert alike(ours[2] * ours[3], wanted[2] * wanted[3])


def test_hue_turns_as_in_hsv():
    turned = np.asarray(jax.jit(colours._turned)(IMAGES, jnp.full((6, 1, 1), 0.3)))
    for place in ((0, 0, 0), (1, 5, 7), (2, 20, 3), (5, 23, 23)):
        hue, saturation, value = colorsys.rgb_to_hsv(
            *np.asarray(IMAGES[place]).tolist()
        )
        wanted = colorsys.hsv_to_rgb((hue + 0.3) % 1, saturation, value)
        np.testing.assert_allclose(turned[place], wanted, atol=1e-5)


def reference_color(rng, image, strength):
    """Four changes in an order of their own, each clipped."""
    luma = np.array([0.2989, 0.587, 0.114])
    low = max(0, 1 - 0.8 * strength)
    for kind in rng.permutation(4):
        share = rng.uniform(low, 1 + 0.8 * strength)
        grey = (image @ luma)[..., None]
        if kind < 3:
            other = (0, grey.mean(), grey)[kind]
            image = np.clip(share * image + (1 - share) * other, 0, 1)
            continue
        turn = rng.uniform(-0.2, 0.2) * strength
        flat = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
        flat = [colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in flat]
        image = np.array(flat).reshape(image.shape)
    return image


def test_color_is_distributed_as_the_reference():
    image = np.asarray(IMAGES[0, :2, :2], float)
    many = jnp.broadcast_to(IMAGES[:1, :2, :2], (3000, 2, 2, 3))
    ours = augmented("color:0.6:1", many)
    rng = np.random.default_rng(1)
    wanted = np.stack([reference_color(rng, image, 0.6) for _ in range(3000)])
    for measure in (np.mean, np.std, np.max):
        assert alike(*(measure(views, axis=(1, 2, 3)) for views in (ours, wanted)))
    red, blue = ours[:, 0, 1, ::2].T
    assert alike(red - blue, wanted[:, 0, 1, 0] - wanted[:, 0, 1, 2])


def test_blur_is_a_gaussian_mirrored_at_the_border():
    found = augmented("blur:1:1.5:1.5", IMAGES)
    kernel = np.exp(-0.5 * np.square(np.arange(-1, 2) / 1.5))
    wanted = np.asarray(IMAGES, float)
    for axis in (1, 2):
        wanted = ndimage.convolve1d(wanted, kernel / kernel.sum(), axis, mode="mirror")
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "share"),
    [
        ("grey", 0.2),
        ("solarise", 0.2),
        ("blur", 0.5),
        ("erase:0.7", 0.7),
        ("color", 0.8),
    ],
)
def test_the_share_of_images_that_change(spec, share):
    many = jnp.broadcast_to(IMAGES[:1, :12, :12], (600, 12, 12, 3))
    found = augmented(spec, many)
    changed = (found != np.asarray(many)).any((1, 2, 3)).mean()
    assert abs(changed - share) <= 5 * np.sqrt(share * (1 - share) / 600)


def test_erase_fills_a_rectangle_with_the_mean():
    images = jnp.broadcast_to(IMAGES[:1], (100, 24, 24, 3))
    found = augmented("erase:1", images)
    gone = (found != np.asarray(images)).any(-1)
    shares = gone.mean((1, 2))
    assert shares.min() < 0.04
    assert 0.28 < shares.max() < 0.36
    for mask, image in zip(gone[:50], found, strict=False):
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()
        assert np.ptp(image[mask], axis=0).max() < 1e-6


@pytest.mark.parametrize("spec", ["photos", "color,hue"])
def test_grey_images_stay_grey(spec):
    grey = IMAGES[..., :1].repeat(3, -1)
    one = augmented(spec, grey[..., :1])
    assert one.shape == (6, 24, 24, 1)
    assert not np.allclose(one, grey[..., :1], atol=0.05)


def test_writing_is_never_mirrored_and_keeps_its_paper():
    """An L stays left of its middle line; the paper around it stays even."""
    letter = jnp.zeros((64, 32, 32, 1)).at[:, 8:24, 11:13].set(1.0)
    letter = letter.at[:, 22:24, 11:21].set(1.0)
    found = augmented("writing", letter)[..., 0]
    found = found - found.min((1, 2), keepdims=True)
    foot = (
        found
        * (np.cumsum(found.sum(2), 1) > 0.7 * found.sum((1, 2))[:, None])[..., None]
    )
    middle = lambda part: (part.sum(1) @ np.arange(32)) / part.sum((1, 2))  # noqa: E731
    assert (middle(foot) > middle(found) - 1).mean() > 0.99
    corners = found[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < 0.3


@pytest.mark.slow
def test_a_page_of_views_before_the_run_and_a_picture_in_its_report(
    tmp_path, capsys, monkeypatch, tiny
):
    monkeypatch.chdir(tmp_path)
    np.savez("photos.npz", images=np.tile(NOISE, (6, 1, 1, 1)))
    settings = ["npz:photos.npz", "--out", "run", "--augment", "photos"]
    settings += ["--view-size", "16", "--steps", "1", "--batch-size", "8"]
    settings += ["--width", "0.25", "--no-tensorboard"]
    pretrain_command([*settings, "--show-augment"])
    assert capsys.readouterr().out.split()[-1] == "run/augment.html"
    page = (tmp_path / "run" / "augment.html").read_text()
    assert "saturation:0.8" in page
    assert '<details open="open">' in page
    with Image.open(tmp_path / "run" / "pictures" / "augment.png") as picture:
        assert picture.width > 10 * 96
    assert not (tmp_path / "run" / "checkpoints").exists()
    pretrain_command(settings)
    assert (tmp_path / "run" / "encoder").is_dir()
    assert "Augmented views" in (tmp_path / "run" / "report.html").read_text()


def test_what_a_name_is_and_its_completion(capsys):
    methods(["photos"])
    assert "--augment crop:0.3" in capsys.readouterr().out
    methods(["crop"])
    assert "0.01 to 1 (default: 0.2)" in capsys.readouterr().out
    assert candidates(["pretrain", "--augment", "crop,fli"]) == [
        "crop,flip",
        "crop,flip-vertical",
    ]
    assert "--show-augment" in candidates(["pretrain", "--show"])
