"""A dictionary of image patches: its vectors, how it is fitted, joined to features."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import afterimage
from afterimage.checkpoints.errors import CheckpointError
from afterimage.encoder import Encoder
from afterimage.errors import UserError
from afterimage.models.dictionary import FILTERS, PatchDictionary
from afterimage.models.hog import joined_hog, joined_hog_size
from afterimage.models.vector import VectorRecipe
from afterimage.pretrain.choice import DECLARED, Joined, choose, declared
from tests import encoder_artefact
from tests.encoder_artefact import pictures


def stripes(n, seed, side=16):
    """Images of stripes: class 0 is horizontal, class 1 vertical."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    wave = np.sin(np.arange(side) * 1.3 + rng.uniform(0, 6, (n, 1)))
    images = np.repeat(wave[:, :, None], side, 2)
    images = np.where(labels[:, None, None], images.transpose(0, 2, 1), images)
    noisy = images + rng.normal(size=images.shape) * 0.3
    return noisy[..., None].astype(np.float32), labels


def test_a_vector_is_the_mean_answer_of_each_filter_in_each_quarter():
    rng = np.random.default_rng(0)
    filters = rng.normal(size=(3, 3, 2, 5)).astype(np.float32)
    filters -= filters.mean((0, 1, 2))
    shift = rng.normal(size=5).astype(np.float32)
    image = rng.normal(size=(8, 8, 2)).astype(np.float32)
    answers = np.zeros((6, 6, 5))
    for y in range(6):
        for x in range(6):
            patch = image[y : y + 3, x : x + 3].astype(np.float64)
            patch = (patch - patch.mean()) / np.sqrt(patch.var() + 0.0025)
            answers[y, x] = np.tensordot(patch, filters, 3) + shift
    answers = np.maximum(answers, 0)
    halves = slice(0, 3), slice(3, 6)
    want = [
        answers[rows, columns].mean((0, 1)) for rows in halves for columns in halves
    ]
    dictionary = PatchDictionary(filters, shift)
    found = jax.jit(lambda x: dictionary(x))(jnp.asarray(image[None]))
    np.testing.assert_allclose(found, np.concatenate(want)[None], atol=1e-4)
    assert found.shape == (1, dictionary.size)


def test_large_images_are_reduced_and_keep_their_shape():
    x, _ = stripes(3, 0, side=64)
    dictionary = PatchDictionary.fit(x)
    small = jax.image.resize(x, (3, 32, 32, 1), "linear", antialias=True)
    large = jnp.asarray(x)
    np.testing.assert_allclose(dictionary(large), dictionary(small), atol=1e-4)
    assert dictionary(jnp.repeat(large, 2, axis=2)).shape == (3, 4 * FILTERS)


def test_fitted_filters_have_mean_0_and_tell_directions_apart():
    x, labels = stripes(60, 0)
    dictionary = PatchDictionary.fit(x)
    assert dictionary.filters.shape == (6, 6, 1, FILTERS)
    np.testing.assert_allclose(dictionary.filters.mean((0, 1, 2)), 0, atol=1e-5)
    again = PatchDictionary.fit(x)
    np.testing.assert_array_equal(again.filters, dictionary.filters)
    z, truth = stripes(40, 1)
    train, test = (np.asarray(dictionary(jnp.asarray(part))) for part in (x, z))
    means = np.stack([train[labels == c].mean(0) for c in (0, 1)])
    nearest = np.square(test[:, None] - means[None]).sum(-1).argmin(1)
    assert (nearest == truth).mean() > 0.95


def test_images_without_contrast_have_finite_vectors():
    flat = np.zeros((4, 12, 12, 3), np.float32)
    vectors = PatchDictionary.fit(flat)(jnp.asarray(flat))
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("filters", "shift"),
    [((3, 3, 1), (4,)), ((3, 2, 1, 4), (4,)), ((3, 3, 1, 4), (5,)), ((), ())],
)
def test_arrays_that_are_no_dictionary_are_refused(filters, shift):
    with pytest.raises(UserError, match="are not those of a dictionary"):
        PatchDictionary(np.ones(filters, np.float32), np.ones(shift, np.float32))


def test_images_smaller_than_a_patch_are_refused():
    dictionary = PatchDictionary.fit(stripes(4, 0)[0])
    with pytest.raises(UserError, match=r"5 x 16 px are too small.*resize=True"):
        dictionary(jnp.zeros((1, 5, 16, 1)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    encoder_artefact.write(folder / "encoder")
    return afterimage.load_encoder(folder)


def test_a_joined_vector_is_stored_with_the_encoder(plain, tmp_path):
    x = pictures(40)
    encoder = plain.with_vector("grid", "standardise", x, patches=True)
    encoder.save(tmp_path / "encoder")
    again = afterimage.load_encoder(tmp_path)
    found = again.features(x, batch_size=16)
    assert found.shape == (40, again.num_features)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(found, encoder.features(x), atol=1e-3)
    maps, deviation = plain.features(x, pool="grid"), found[:, : plain.num_features * 4]
    np.testing.assert_allclose(
        deviation, (maps - maps.mean(0)) / maps.std(0).clip(1e-6), atol=1e-2
    )
    dictionary = again.vector.dictionary
    patches = np.asarray(dictionary(again.preprocessing.normalise(jnp.asarray(x))))
    spread = patches.std(0)
    here = spread > 1e-3 * spread.max()
    scaled = (patches - patches.mean(0))[:, here] / spread[here]
    np.testing.assert_allclose(found[:, maps.shape[1] :][:, here], scaled, atol=1e-2)
    assert f"{FILTERS} patch filters" in repr(again)
    # Another vector of the same encoder has no patches.
    grid = again.with_vector("grid")
    np.testing.assert_allclose(grid.features(x), maps, atol=1e-5)


@pytest.mark.slow
def test_hog_is_joined_and_stored_with_the_encoder(plain, tmp_path):
    x = pictures(40)
    encoder = plain.with_vector("grid", "standardise", x, patches=True, hog=True)
    encoder.save(tmp_path / "encoder")
    again = afterimage.load_encoder(tmp_path)
    assert "256 patch filters and HOG, standardised" in repr(again)
    found = again.features(x)
    np.testing.assert_allclose(found, encoder.features(x), atol=1e-3)
    without = plain.with_vector("grid", "standardise", x, patches=True).features(x)
    rest = without.shape[1]
    assert found.shape == (40, rest + joined_hog_size(x.shape[1:3]))
    assert found.shape[1] == again.vector_size() == again.num_features
    np.testing.assert_allclose(found[:, :rest], without, atol=1e-3)
    hog = np.asarray(joined_hog(again.preprocessing.normalise(jnp.asarray(x))))
    spread = hog.std(0)
    here = spread > 1e-2 * spread.max()
    scaled = (hog - hog.mean(0))[:, here] / spread[here]
    np.testing.assert_allclose(found[:, rest:][:, here], scaled, atol=0.05)
    # HOG alone, without statistics, needs no images.
    alone = plain.with_vector("last", hog=True)
    np.testing.assert_allclose(alone.features(x)[:, -hog.shape[1] :], hog, atol=0.02)


@pytest.mark.slow
def test_a_vector_with_hog_has_a_gradient_everywhere(plain):
    """Also for images without any edge, where the root of a square has none."""
    encoder = plain.with_vector("last", hog=True)
    flat = jnp.full((1, 16, 16, 3), 0.5)
    edge = flat.at[:, :, 8:].set(0.9)
    for image in (flat, edge):
        slope = jax.grad(lambda x: encoder.apply(encoder.params, x).sum())(image)
        assert np.isfinite(slope).all()
    one = jax.vmap(lambda x: encoder.apply(encoder.params, x[None])[0])(edge)
    np.testing.assert_allclose(one, encoder.features(edge), atol=1e-4)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"filters": (3, 3, 3, 4)}, "needs filters, shift"),
        ({"filters": (3, 3, 1, 4), "shift": (4,)}, "has 1 channels, and the encoder 3"),
        ({"filters": (3, 3, 3, 4), "shift": (3,)}, "are not those of a dictionary"),
        (
            {"filters": (3, 3, 3, 4), "shift": (4,), "mean": (32,), "scale": (32,)},
            "32 statistics.*48 numbers",
        ),
    ],
)
def test_an_artefact_with_another_dictionary_is_refused(plain, arrays, says):
    stats = {"vector": {k: np.ones(s, np.float32) for k, s in arrays.items()}}
    transform = "standardise" if "mean" in arrays else "none"
    entry = {"pool": "last", "transform": transform}
    with pytest.raises(CheckpointError, match=says):
        Encoder(plain.params, stats, plain.manifest | {"vector": entry})


def halves(n, seed):
    """Maps that tell the first of two attributes, patches that tell the second."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    maps = (labels // 2)[:, None] + rng.normal(size=(n, 4)) * 0.2
    patches = (labels % 2)[:, None] + rng.normal(size=(n, 4 * FILTERS)) * 2
    return maps.astype(np.float32), patches.astype(np.float32), labels


def with_hog(patches):
    """The parts: HOG is here some of the patches once more."""
    return {"patches": patches, "hog": patches[:, :8]}


def test_the_joined_vector_is_the_default_and_chosen_if_it_is_best():
    dictionary = PatchDictionary.fit(stripes(4, 0)[0])
    (x, a, known), (z, b, truth) = halves(200, 0), halves(120, 1)
    own, joined = ("last", "none"), Joined(dictionary, with_hog(a), with_hog(b))
    vector, entry = choose(
        own, {"last": x}, {"last": z}, (known, truth), k=5, joined=joined
    )
    assert vector.dictionary is dictionary
    assert vector.hog
    assert (entry["filters"], entry["hog"]) == (FILTERS, True)
    tried = [
        (row["transform"], "filters" in row, "hog" in row) for row in entry["scores"]
    ]
    assert tried[-2:] == [("standardise", True, False), ("standardise", True, True)]
    assert sum(filters for _, filters, _ in tried) == 2
    json.dumps(entry)
    # HOG that tells nothing, and drowns the rest: the patches without it.
    rng = np.random.default_rng(4)
    drowned = Joined(
        dictionary,
        *(
            {"patches": p, "hog": rng.normal(size=(len(p), 9000)).astype(np.float32)}
            for p in (a, b)
        ),
    )
    vector, _ = choose(
        own, {"last": x}, {"last": z}, (known, truth), k=5, joined=drowned
    )
    assert vector.joins == ("patches",)
    # Patches that tell nothing, and drown the maps: the plain maps are better.
    noise = np.random.default_rng(2).normal(size=(2, 200, 4 * FILTERS))
    drowned = Joined(dictionary, *map(with_hog, noise.astype(np.float32)))
    labels = known // 2, (np.arange(200) % 4) // 2
    more, _, _ = halves(200, 3)
    vector, _ = choose(own, {"last": x}, {"last": more}, labels, k=5, joined=drowned)
    assert vector.joins == ()


def test_without_labels_the_joined_vector_is_taken():
    dictionary = PatchDictionary.fit(stripes(4, 0)[0])
    maps, patches, _ = halves(80, 0)
    vector, entry = declared(
        ("last", "none"), {"last": maps}, Joined(dictionary, with_hog(patches))
    )
    assert entry["rule"] == DECLARED
    assert vector.joins == ("patches", "hog")
    all_parts = vector.transformed(vector.joined(maps, with_hog(patches)))
    assert all_parts.shape == (80, 4 + 4 * FILTERS + 8)
    np.testing.assert_allclose(all_parts.std(0), 1, atol=1e-3)
    alone, _ = declared(("last", "none"), {"last": maps}, None)
    assert str(alone) == str(VectorRecipe("last"))
