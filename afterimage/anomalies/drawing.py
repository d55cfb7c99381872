"""Scored images as rows of a file, and where they are unlike the normal ones, drawn."""

import collections
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from afterimage.anomalies.config import AnomaliesConfig
from afterimage.anomalies.detector import AnomalyDetector
from afterimage.contact_sheet import label_of, write_sheet
from afterimage.data import ImageSet
from afterimage.pictures import displayable, draw_heat
from afterimage.rows import Row
from afterimage.runs import write_png

_SIDE = 256
"""Small pictures are enlarged to about this many pixels a side."""


class Scored:
    """The rows of each batch and, if asked for, a picture of each anomalous image."""

    def __init__(
        self,
        config: AnomaliesConfig,
        detector: AnomalyDetector,
        names: Sequence[str],
    ):
        self.detector, self.names = detector, names
        self.batch_size = config.batch_size
        self.folder = None if config.maps is None else pathlib.Path(config.maps)

    def rows(self, batches: Iterator[np.ndarray]) -> Iterator[list[Row]]:
        """The rows of each batch; those to draw have their image and heat."""
        waiting: collections.deque[np.ndarray] = collections.deque()

        def read() -> Iterator[np.ndarray]:
            for batch in batches:
                waiting.append(batch)
                yield batch

        how: Any = {"batch_size": self.batch_size, "maps": self.folder is not None}
        for found in self.detector.stream(read(), **how):
            scores, heat = (found, None) if self.folder is None else found
            images, rows = waiting.popleft(), []
            for place, score in enumerate(scores.tolist()):
                rows.append(self._row(score))
                if heat is not None:
                    both = images[place], heat[place]
                    rows[-1]["map"] = both if rows[-1]["anomalous"] else ""
            yield rows

    def _row(self, score: float) -> Row:
        threshold = self.detector.threshold
        return {
            "score": float(f"{score:.7g}"),
            "threshold": float(f"{threshold:.7g}"),
            "anomalous": score > threshold,
        }

    def place(self, number: int, row: Row) -> Row:
        """The row, with the name of its picture in place of what to draw."""
        if self.folder is None or not row["map"]:
            return row
        stem = pathlib.PurePath(self.names[number]).stem
        file = f"{number:06d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', stem)[:80]}.png"
        write_png(side_by_side(*row["map"]), self.folder / file)
        return row | {"map": file}


def heat_pictures(
    images: UInt8[np.ndarray, "n h w c"], heat: Float[np.ndarray, "n h w"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """The heat of each image above its median, drawn over the image."""
    usual = np.median(heat, axis=(1, 2), keepdims=True)
    return draw_heat(images, heat - usual)


def side_by_side(
    image: UInt8[np.ndarray, "h w c"], heat: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "hh ww 3"]:
    """The image, and its heat beside it; small ones enlarged."""
    gap = np.full((len(heat), 1, 3), 255, np.uint8)
    picture = heat_pictures(image[None], heat[None])[0]
    both = np.concatenate([_rgb(image[None])[0], gap, picture], 1)
    factor = max(1, _SIDE // max(heat.shape))
    return np.repeat(np.repeat(both, factor, 0), factor, 1)


def write_highest(
    sheet: pathlib.Path,
    detector: AnomalyDetector,
    images: ImageSet,
    highest: Sequence[tuple[float, int, str]],
    caption: str,
) -> None:
    """A contact sheet of images by (score, number, file), each with its heat."""
    pixels = images.gather([number for _, number, _ in highest])
    pictures = heat_pictures(pixels, detector.maps(pixels))
    rows: dict[str, np.ndarray] = {}
    for (score, _, name), *both in zip(highest, _rgb(pixels), pictures):
        label = label_of(f"{score:.3g}  {label_of(name)}", rows)
        rows[label] = np.stack(both) / np.float32(255)
    table = [
        (f"{score:.4g}", "yes" if score > detector.threshold else "no", name)
        for score, _, name in highest
    ]
    columns = ("score", "anomalous", "file")
    write_sheet(sheet, caption, rows, title="Anomalies", columns=columns, table=table)


def _rgb(images: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w 3"]:
    pixels = displayable(images / np.float32(255))
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))
