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
from afterimage.console import say_reading
from afterimage.data.decode import decode
from afterimage.data.sources.folder import Folder
from afterimage.data.workers import or_reason, read, windows
from afterimage.errors import DataError, disk_errors
from afterimage.pictures import displayable
from afterimage.report.parts import encoded
from afterimage_segmentation.config import SegmentPredictConfig
from afterimage_segmentation.data import by_stem
from afterimage_segmentation.segmenter import Segmenter, load_segmenter, painted

_EACH = 2**24
"""Bytes of an image, about: how many are read ahead."""


@dataclasses.dataclass(frozen=True)
class Masks:
    """What was written."""

    out: pathlib.Path
    images: int
    shares: Mapping[str, float]
    """{class: its share of all pixels}."""
    bad: tuple[str, ...]
    """Skipped files and why."""

    def summary(self) -> str:
        """A few lines for a terminal."""
        parts = [f"{name} {100 * share:.1f} %" for name, share in self.shares.items()]
        lines = [f"{self.images:,} masks in {spelling(str(self.out / 'masks'))}"]
        lines += [f"  of all pixels: {', '.join(parts[:8])}"] if self.images else []
        lines += [f"  skipped {text}" for text in self.bad[:8]]
        return "\n".join(lines)


def segment_predict(config: SegmentPredictConfig) -> Masks:
    """Write a mask for every image in a folder, and overlays.

    A mask has the size of its image and the values of the training masks: numbers of
    classes with their colours as the palette or, if those were colours, the colours.

    Raises UserError for settings that cannot work, DataError for a folder without
    images and, with on_bad_image="fail", for the first broken one.
    """
    segmenter = load_segmenter(config.from_)
    say_reading(config.images)
    files = Folder(config.images.removeprefix("folder:"))
    by_stem(files.names, config.images)
    out, prep = pathlib.Path(config.out), segmenter.preprocessing
    counts: collections.Counter[int] = collections.Counter()
    bad: list[str] = []

    def one(row: int) -> np.ndarray:
        return decode(read(files, row), None, prep.channels, prep.value_range)

    rows = range(len(files.names))
    with disk_errors(f"out={config.out}"):
        for row, image in windows(or_reason(one), rows, "images", _EACH):
            name = files.names[row]
            if isinstance(image, str):
                bad.append(f"{spelling(name)}: {image}")
                if config.on_bad_image == "fail":
                    raise DataError(f"{bad[0]}; add --on-bad-image skip to go on")
                continue
            classes = np.asarray(segmenter.predict(image)[0])
            counts.update(dict(enumerate(np.bincount(classes.ravel()).tolist())))
            target = posixpath.splitext(name)[0] + ".png"
            _write(out / "masks" / target, _mask(classes, segmenter))
            if config.overlay:
                shown = _overlay(image, classes, segmenter, config.overlay)
                _write(out / "overlays" / target, shown)
    total = max(1, counts.total())
    names = segmenter.class_names
    shares = {names[n]: count / total for n, count in counts.most_common()}
    return Masks(out, len(rows) - len(bad), shares, tuple(bad))


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
