"""Masks of a folder of images, as files."""

import collections
import dataclasses
import pathlib
import posixpath
from collections.abc import Mapping
from typing import Any

import numpy as np

from afterimage.checkpoints.files import replace_file
from afterimage.checkpoints.names import spelling
from afterimage.data.each import EachImage
from afterimage.errors import disk_errors
from afterimage.pictures import displayable
from afterimage.report.parts import encoded
from afterimage_segmentation.config import SegmentPredictConfig
from afterimage_segmentation.data import by_stem
from afterimage_segmentation.segmenter import Segmenter, load_segmenter, painted


@dataclasses.dataclass(frozen=True)
class Masks:
    """What was written."""

    out: pathlib.Path
    images: int
    shares: Mapping[str, float]
    """{class: its share of all pixels}."""
    text: str
    """A few lines for a terminal."""


def segment_predict(config: SegmentPredictConfig) -> Masks:
    """Write a mask for every image in a folder, and overlays.

    A mask has the size of its image and the values of the training masks: numbers of
    classes with their colours as the palette or, if those were colours, the colours.

    Raises UserError for settings that cannot work, DataError for a folder without
    images and, with on_bad_image="fail", for the first broken one.
    """
    segmenter, out = load_segmenter(config.from_), pathlib.Path(config.out)
    images = EachImage(config.images, segmenter.preprocessing, config.on_bad_image)
    by_stem(images.names, config.images)
    counts: collections.Counter[int] = collections.Counter()
    with disk_errors(f"out={config.out}"):
        for _, name, image in images:
            classes = np.asarray(segmenter.predict(image)[0])
            counts.update(dict(enumerate(np.bincount(classes.ravel()).tolist())))
            target = posixpath.splitext(name)[0] + ".png"
            _write(out / "masks" / target, _mask(classes, segmenter))
            if config.overlay:
                shown = _overlay(image, classes, segmenter, config.overlay)
                _write(out / "overlays" / target, shown)
    total, count = max(1, counts.total()), len(images.names) - len(images.skipped)
    names = segmenter.class_names
    shares = {names[n]: pixels / total for n, pixels in counts.most_common()}
    parts = [f"{name} {100 * share:.1f} %" for name, share in shares.items()]
    lines = [f"{count:,} masks in {spelling(str(out / 'masks'))}"]
    lines += [f"  of all pixels: {', '.join(parts[:8])}"] if count else []
    return Masks(out, count, shares, "\n".join(lines + images.skipped_lines()))


def _mask(classes: np.ndarray, segmenter: Segmenter) -> Any:
    """The mask as a Pillow image, as those of training were."""
    from PIL import Image

    if segmenter.coloured:
        return Image.fromarray(painted(classes, segmenter.colours))
    values = np.array(segmenter.values)[classes]
    if values.max() > 255:
        return Image.fromarray(values.astype(np.uint16))
    palette = np.zeros((256, 3), np.uint8)
    few = [value for value in segmenter.values if value < 256]
    palette[few] = segmenter.colours[: len(few)]
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(palette.ravel().tolist())
    return image


def _overlay(
    image: np.ndarray, classes: np.ndarray, segmenter: Segmenter, share: float
) -> Any:
    """The classes in colour over the image; one that is black leaves it as it is."""
    from PIL import Image

    shown = displayable(image[None].astype(np.float32) / 255)[0].astype(np.float32)
    colours = painted(classes, segmenter.colours)
    weight = share * colours.any(-1, keepdims=True)
    mixed = (1 - weight) * shown + weight * colours
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def _write(path: pathlib.Path, image: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, encoded(image, "PNG"))
