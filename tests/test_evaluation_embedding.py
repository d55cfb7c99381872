import builtins
import sys
import types

import numpy as np
import pytest

from afterimage.errors import UserError
from afterimage.evaluation.embedding import draw_embedding, embed, import_umap
from tests.encoder_artefact import pictures


def test_pca_finds_the_axes_of_most_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)) * [1, 10, 0.1, 4] + 7
    places, said = embed(x)
    centred = x - x.mean(0)
    for axis, column in enumerate((1, 3)):
        found = np.corrcoef(places[:, axis], centred[:, column])[0, 1]
        assert found > 0.99  # signed so that the largest loading is positive
    assert said.startswith("PCA, 8")
    flat, _ = embed(np.stack([np.arange(3.0)], axis=1))
    np.testing.assert_array_equal(flat[:, 1], 0)


def test_thumbnails_stand_at_their_places():
    places = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    images = np.stack([np.full((4, 4, 1), v, np.uint8) for v in (0, 80, 160, 240)])
    picture = draw_embedding(places, images)
    height, width, _ = picture.shape
    halves = {False: slice(0, height // 2), True: slice(height // 2, None)}
    for i, (x, y) in enumerate(places.astype(int)):
        columns = slice(0, width // 2) if not x else slice(width // 2, None)
        part = picture[halves[y == 0], columns]
        # 36 x 36 pixels of its grey, less rounding: the second axis points up.
        assert (part == images[i, 0, 0, 0]).all(axis=2).sum() == 36 * 36


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_classes_have_colours_and_names(channels):
    rng = np.random.default_rng(0)
    images = pictures(60, size=(8, 8), channels=channels)
    labels = np.arange(60) % 3
    picture = draw_embedding(
        rng.normal(size=(60, 2)), images, labels, ("a", "b", "c"), caption="what it is"
    )
    assert (picture != 255).any(axis=2).mean() > 0.02
    for colour in ((0x4E, 0x79, 0xA7), (0xF2, 0x8E, 0x2B), (0xE1, 0x57, 0x59)):
        assert (picture == colour).all(axis=2).sum() > 200


def test_equal_features_and_many_classes_still_give_a_picture():
    places, said = embed(np.ones((30, 4)))
    names = [f"class {i}" for i in range(30)]
    picture = draw_embedding(places, pictures(30), np.arange(30), names)
    assert np.isfinite(places).all()
    assert "0 %" in said
    assert (picture != 255).any()
    with pytest.raises(UserError, match="finite"):
        embed(np.full((4, 2), np.nan))


def test_umap_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "umap":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'afterimage\[umap\]'"):
        import_umap()


def test_umap_is_asked_for_by_seed(monkeypatch):
    asked = {}

    class UMAP:
        def __init__(self, **settings):
            asked.update(settings)

        def fit_transform(self, x):
            return x[:, :2].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    x = np.random.default_rng(0).normal(size=(8, 3))
    places, said = embed(x, "umap", seed=5)
    np.testing.assert_allclose(places, x[:, :2], rtol=1e-6)
    assert said == "UMAP, cosine distance"
    assert asked["random_state"] == 5
    assert asked["n_neighbors"] == 7  # fewer than its default, of eight images


def test_umap_of_too_few_images_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace())
    with pytest.raises(UserError, match="at least 4 images, not 3"):
        embed(np.eye(3), "umap")


@pytest.mark.parametrize("images", [4, 60])
def test_umap_itself_keeps_neighbours_together(images):
    """The library, where it is installed: three groups far apart stay apart."""
    pytest.importorskip("umap", exc_type=ImportError)
    rng = np.random.default_rng(0)
    group = np.arange(images) % 3
    x = rng.normal(size=(images, 8)) + 30 * np.eye(8)[group]
    places, _ = embed(x, "umap", seed=3)
    assert places.shape == (images, 2)
    assert np.isfinite(places).all()
    np.testing.assert_array_equal(places, embed(x, "umap", seed=3)[0])
    if images > 30:
        distance = np.linalg.norm(places[:, None] - places, axis=-1)
        nearest = (distance + np.diag(np.full(images, np.inf))).argmin(1)
        np.testing.assert_array_equal(group[nearest], group)


def test_where_divide_and_conquer_fails_the_picture_is_the_same(monkeypatch):
    """LAPACK's gesdd gave up on the features of a finished run; gesvd does not."""
    x = np.random.default_rng(3).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 0]
    wanted, said = embed(x)

    def fail(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fail)
    found, again = embed(x)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert said == again
