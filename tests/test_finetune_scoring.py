import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.data.augment import shift
from finetune.scoring import Views

IMAGES = jnp.asarray(
    np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)
)


def columns(params, stats, images):
    """Logits that tell where an image is bright: of uint8, or in [0, 1]."""
    scale = 255 if images.dtype == jnp.uint8 else 1
    return 20 * images[:, :, ::4, 0].mean(1) / scale


def test_one_view_is_the_image_as_it_is():
    assert Views().over(columns) is columns


def test_logits_are_the_log_of_the_mean_of_the_views_probabilities():
    found = jax.jit(Views(count=3).over(columns))(None, None, IMAGES)
    pixels = IMAGES.astype(np.float32) / 255
    views = [pixels]
    for key in jax.random.split(jax.random.key(0), 2):
        # The same move for every image.
        moved = [np.asarray(shift(key, image[None]))[0] for image in pixels]
        assert not np.array_equal(moved, pixels)
        views.append(np.stack(moved))
    each = [np.asarray(columns(None, None, view)) for view in views]
    each = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in each]
    np.testing.assert_allclose(np.exp(found), np.mean(each, axis=0), rtol=1e-4)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["affine", "crop-flip"])
def test_an_images_views_do_not_depend_on_those_beside_it(name):
    over = jax.jit(Views(4, name).over(columns))
    together = over(None, None, IMAGES)
    alone = np.concatenate([over(None, None, IMAGES[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(
        together, jax.jit(Views(4).over(columns))(None, None, IMAGES)
    )
