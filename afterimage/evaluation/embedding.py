"""A picture of features in two dimensions: images drawn at their coordinates."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Num, UInt8

from afterimage.errors import UserError
from afterimage.evaluation.spectrum import thin_svd
from afterimage.pictures import band_note

_SIDE, _MARGIN, _THUMB, _FONT = 1200, 24, 36, 15
_INK = (60, 64, 72)
# Tableau 10, then its lighter half; further classes repeat them.
_COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f"),
    *("#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"),
    *("#a0cbe8", "#ffbe7d", "#ff9d9a", "#86bcb6", "#8cd17d"),
    *("#f1ce63", "#d4a6c8", "#fabfd2", "#d7b5a6", "#79706e"),
)
_LEGEND = 20  # at most this many classes are named


def embed(
    features: Num[np.ndarray, "n d"], how: Literal["pca", "umap"] = "pca", *, seed=0
) -> tuple[Float[np.ndarray, "n 2"], str]:
    """Two coordinates per image, and a line describing them.

    pca: the first two principal components, each axis signed so that its largest
    loading is positive. umap: UMAP with the library's own defaults and cosine
    distance (the extra `afterimage[umap]`).

    Raises UserError for fewer than two images (umap: four), or if UMAP is not
    installed.
    """
    x = np.asarray(features, np.float64)
    if len(x) < 2 or not np.isfinite(x).all():
        raise UserError(
            f"features of shape {x.shape} cannot be drawn: at least two vectors are "
            "needed, all finite."
        )
    if how == "umap":
        return _umap(x, seed), "UMAP, cosine distance"
    x = x - x.mean(axis=0)
    _, sigma, axes = thin_svd(x)
    axes = axes[:2]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    places = np.zeros((len(x), 2))
    places[:, : len(axes)] = x @ axes.T
    share = 100 * sigma[:2] ** 2 / max(float(np.sum(sigma**2)), 1e-300)
    said = " and ".join(f"{value:.0f} %" for value in share)
    return places, f"PCA, {said} of the variance"


def _umap(x: np.ndarray, seed: int) -> np.ndarray:
    umap = import_umap()
    if len(x) < 4:  # too few for its spectral initialisation
        raise UserError(
            f"embedding=umap needs at least 4 images, not {len(x)}; use embedding=pca."
        )
    # With a seed UMAP runs on one thread, and warns unless that is requested.
    fixed = {"metric": "cosine", "random_state": seed, "n_jobs": 1}
    model = umap.UMAP(n_neighbors=min(15, len(x) - 1), **fixed)
    return np.asarray(model.fit_transform(x), np.float64)


def import_umap() -> Any:
    """The umap-learn package; if missing, a UserError says how to install it."""
    try:
        import umap
    except ImportError as error:
        raise UserError(
            "embedding=umap needs the package umap-learn: pip install "
            "'afterimage[umap]', or use embedding=pca."
        ) from error
    return umap


def draw_embedding(
    places: Num[np.ndarray, "n 2"],
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, " n"] | None = None,
    class_names: Sequence[str] = (),
    *,
    caption: str = "",
) -> UInt8[np.ndarray, "hh ww 3"]:
    """One RGB picture: a dot for every image, in its class's colour, and thumbnails.

    An image is drawn at its coordinates, framed in the colour, unless an earlier one
    already covers its centre; then only its dot is drawn, which still shows the
    density.
    """
    from PIL import Image, ImageDraw, ImageFont

    note = band_note(images.shape[-1])
    caption = " · ".join(part for part in (caption, note) if part)
    named = len(class_names) if labels is not None else 0
    top = _MARGIN + (_FONT + 12) * (bool(caption) + (0 < named <= _LEGEND))
    sheet = Image.new("RGB", (_SIDE, _SIDE - _MARGIN + top), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT)
    draw.text((_MARGIN, _MARGIN - 8), caption, fill=_INK, font=font)
    if 0 < named <= _LEGEND:
        _legend(draw, class_names, font, y=_MARGIN - 8 + bool(caption) * (_FONT + 12))
    colours = [
        _COLOURS[0 if labels is None else int(labels[i]) % len(_COLOURS)]
        for i in range(len(places))
    ]
    xy = _on_sheet(np.asarray(places, np.float64), top)
    for (x, y), colour in zip(xy, colours):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    for i in _spread(xy):
        x, y = (int(v) - _THUMB // 2 for v in xy[i])
        frame = (x - 2, y - 2, x + _THUMB + 1, y + _THUMB + 1)
        draw.rectangle(frame, fill=colours[i])
        sheet.paste(_thumbnail(images[i]), (x, y))
    return np.asarray(sheet)


def _legend(draw: Any, names: Sequence[str], font: Any, *, y: int) -> None:
    x = float(_MARGIN)
    for i, name in enumerate(names):
        if x + 24 + font.getlength(name) > _SIDE - _MARGIN:
            draw.text((x, y), "…", fill=_INK, font=font)
            break
        draw.rectangle((x, y + 3, x + 12, y + 15), fill=_COLOURS[i % len(_COLOURS)])
        draw.text((x + 18, y), name, fill=_INK, font=font)
        x += 34 + font.getlength(name)


def _on_sheet(places: np.ndarray, top: int) -> np.ndarray:
    """Coordinates in pixels: each axis fills the sheet, the second points upwards."""
    low, high = places.min(axis=0), places.max(axis=0)
    unit = (places - low) / np.where(high > low, high - low, 1)
    pad = _MARGIN + _THUMB // 2
    span = _SIDE - 2 * pad
    return np.stack(
        [pad + span * unit[:, 0], top - _MARGIN + pad + span * (1 - unit[:, 1])], 1
    )


def _spread(xy: np.ndarray) -> list[int]:
    """Indices of images that do not cover each other's centre, in order."""
    chosen: list[int] = []
    for i, place in enumerate(xy):
        if not chosen or np.abs(xy[chosen] - place).max(axis=1).min() > 0.8 * _THUMB:
            chosen.append(i)
    return chosen


def _thumbnail(image: UInt8[np.ndarray, "h w c"]) -> Any:
    from PIL import Image

    channels = image.shape[-1]
    if channels in (1, 2):  # two channels: their mean
        image = image.mean(axis=-1, keepdims=True).astype(np.uint8).repeat(3, axis=-1)
    tile = Image.fromarray(np.ascontiguousarray(image[..., :3]))
    small = min(tile.size) < _THUMB
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return tile.resize((_THUMB, _THUMB), how)
