"""Pictures of the network's inputs and outputs: labelled rows of tiles, as PNG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

_TILE = 64  # small images are enlarged to about this many pixels a side
_LARGEST = 160  # larger images are reduced to this
_GAP = 4
_MARGIN = 12
_FONT = 15
_INK = (60, 64, 72)


def draw_rows(
    rows: Mapping[str, Sequence[Float[np.ndarray, "_ _ _"]] | np.ndarray],
    *,
    caption: str = "",
    first_apart: bool = False,
    tile: int = _TILE,
) -> UInt8[np.ndarray, "hh ww 3"]:
    """Draw one RGB picture: a labelled row for each entry, its images side by side.

    Images are floats in [0, 1] (values outside are clipped, non-finite values drawn
    black), with as many channels each; `first_apart` leaves a gap after the first of
    every row. One channel is shown as grey, three as RGB, more by the first three, two
    by their mean, and the caption says so. Small images are enlarged to about `tile`
    pixels by an integer factor with nearest neighbour, so pixels stay square.
    """
    from PIL import Image, ImageDraw, ImageFont

    tiles = {
        label: [_tile(image, tile) for image in images]
        for label, images in rows.items()
    }
    channels = next(iter(rows.values()))[0].shape[-1]
    caption = " · ".join(part for part in (caption, band_note(channels)) if part)
    sizes = [one.size for row in tiles.values() for one in row]
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    font = ImageFont.load_default(_FONT)
    left = _MARGIN + max(int(font.getlength(label)) for label in rows) + 12
    top = _MARGIN + (_FONT + 10 if caption else 0)
    across = max(len(row) for row in tiles.values())
    apart = 2 * _MARGIN if first_apart else 0
    right = left + across * (width + _GAP) - _GAP + apart
    right = max(right, _MARGIN + int(font.getlength(caption)))
    bottom = top + len(tiles) * (height + _GAP) - _GAP
    sheet = Image.new("RGB", (right + _MARGIN, bottom + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    if caption:
        draw.text((_MARGIN, _MARGIN - 2), caption, fill=_INK, font=font)
    for r, (label, row) in enumerate(tiles.items()):
        y = top + r * (height + _GAP)
        draw.text((_MARGIN, y + height // 2), label, fill=_INK, font=font, anchor="lm")
        for i, one in enumerate(row):
            x = left + i * (width + _GAP) + (apart if i else 0)
            sheet.paste(one, (x, y))
    return np.asarray(sheet)


def band_note(channels: int) -> str:
    """A note on which of this many bands a picture shows; empty for grey and RGB."""
    if channels == 2:
        return "the mean of both bands"
    return f"bands 1, 2, 3 of {channels} as RGB" if channels > 3 else ""


def displayable(images: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w k"]:
    """Float images in [0, 1] with any number of channels -> uint8, grey or RGB."""
    channels = images.shape[-1]
    if channels == 2:
        images = images.mean(-1, keepdims=True)
    elif channels > 3:
        images = images[..., :3]
    finite = np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0)
    return np.round(np.clip(finite, 0, 1) * 255).astype(np.uint8)


def _tile(image: np.ndarray, about: int) -> Any:
    from PIL import Image

    pixels = displayable(image[None])[0]
    tile = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    tile = tile.convert("RGB")
    side = max(tile.size)
    if side > _LARGEST:
        factor = _LARGEST / side
        small = [max(round(n * factor), 1) for n in tile.size]
        return tile.resize((small[0], small[1]), Image.Resampling.LANCZOS)
    factor = max(round(about / side), 1)
    enlarged = (tile.width * factor, tile.height * factor)
    return tile.resize(enlarged, Image.Resampling.NEAREST)


# Dark to light, so that it also reads in grey: violet, red, orange, pale yellow.
_HEAT = np.array(
    [(40, 11, 84), (159, 42, 99), (229, 92, 48), (252, 165, 10), (252, 255, 164)],
    np.float32,
)


def draw_heat(
    images: np.ndarray, heat: Float[np.ndarray, "n h w"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Draw what is above 0 in `heat` over the images, each up to its own maximum.

    Images are uint8, or float in [0, 1], of the heat's size.
    """
    pixels = images / np.float32(255) if images.dtype == np.uint8 else images
    pixels = displayable(pixels)
    grey = pixels.astype(np.float32).mean(-1, keepdims=True)
    heat = np.maximum(np.nan_to_num(heat), 0)
    share = heat / np.maximum(heat.max((1, 2), keepdims=True), 1e-12)
    stops = np.linspace(0, 1, len(_HEAT))
    colour = np.stack([np.interp(share, stops, c) for c in _HEAT.T], -1)
    weight = 0.65 * share[..., None]
    return np.round((1 - weight) * grey + weight * colour).astype(np.uint8)
