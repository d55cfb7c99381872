"""Pictures can be read back: right size, right colours, nearest enlargement."""

import numpy as np
import pytest
from PIL import Image

from afterimage.pictures import displayable, draw_rows
from afterimage.runs import write_png


def images(channels, size=(8, 8), n=5):
    rng = np.random.default_rng(0)
    return rng.random((n, *size, channels), dtype=np.float32)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(8, 8), (28, 20), (300, 150)])
def test_every_shape_becomes_a_readable_picture(tmp_path, channels, size):
    x = images(channels, size, n=3)
    picture = draw_rows({"input": x, "reconstruction": 1 - x}, caption="hi")
    path = write_png(picture, tmp_path / "a" / "b.png")
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.mode == "RGB"
        pixels = np.asarray(sheet)
    np.testing.assert_array_equal(pixels, picture)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert [p.name for p in path.parent.iterdir()] == ["b.png"]


def test_a_small_image_is_enlarged_to_exact_squares():
    x = images(3, n=1)
    pixels = draw_rows({"input": x})
    tile = np.repeat(np.repeat(displayable(x)[0], 8, 0), 8, 1)
    margin = 12
    got = pixels[margin : margin + 64, -64 - margin : -margin]
    np.testing.assert_array_equal(got, tile)


def test_channels_and_odd_values_are_shown_as_documented():
    np.testing.assert_array_equal(
        displayable(np.array([-1.0, 0.0, 0.5, 1.0, 2.0, np.nan]).reshape(1, 2, 3, 1)),
        np.array([0, 0, 128, 255, 255, 0], np.uint8).reshape(1, 2, 3, 1),
    )
    five = images(5)
    np.testing.assert_array_equal(displayable(five), displayable(five[..., :3]))
    two = images(2)
    np.testing.assert_array_equal(
        displayable(two), displayable(two.mean(-1, keepdims=True))
    )
