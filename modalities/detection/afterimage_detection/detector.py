"""A trained detector: images in, boxes out; in Python, and of a folder as files."""

import colorsys
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32
from msgspec import Meta
from PIL import Image, ImageDraw

from afterimage.checkpoints import schemas
from afterimage.checkpoints.files import replace_file
from afterimage.checkpoints.names import printable, spelling
from afterimage.checkpoints.weights import read_artefact
from afterimage.data import Preprocessing
from afterimage.data.each import EachImage
from afterimage.data.preprocessing import image_batches, prepare
from afterimage.encoder import placed, stored_model, stored_preprocessing, stream
from afterimage.errors import disk_errors
from afterimage.models import Network
from afterimage.pictures import displayable
from afterimage.report.parts import encoded
from afterimage.runtime import jit
from afterimage_detection.config import PredictConfig
from afterimage_detection.data import letterboxed, restored
from afterimage_detection.losses import peaks
from afterimage_detection.network import DetectionModel

DETECTOR = "object-detector"
"""The kind in the manifest, and the folder's name in a run."""
_BATCH = 32


class DetectorManifest(schemas.EncoderManifest, kw_only=True):
    """`manifest.json` of a detector folder."""

    classes: Annotated[list[schemas.Name], Meta(min_length=1, max_length=2**16)]
    numbers: Annotated[list[int], Meta(max_length=2**16)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.classes) != len(self.numbers):
            raise ValueError(
                f"{len(self.classes)} classes, {len(self.numbers)} numbers"
            )


class Detections(NamedTuple):
    """The boxes found in an image, highest score first."""

    boxes: Float32[np.ndarray, "n 4"]
    """x, y of the top left corner, width, height, in pixels of the image."""
    classes: Int32[np.ndarray, " n"]
    """Indices into `class_names`."""
    scores: Float32[np.ndarray, " n"]
    """From 0 to 1."""


def fill_of(preprocessing: Preprocessing) -> tuple[int, ...]:
    """The colour around images that are not square: the mean of the encoder's."""
    return tuple(round(255 * min(max(mean, 0), 1)) for mean in preprocessing.mean)


class Detector:
    """A trained encoder and head; `load_detector` returns one.

    Images are uint8, or float in [0, 1]: NHWC, one HWC image, or a list of HWC images
    of any sizes, which are scaled to fit into the trained square.
    """

    class_names: tuple[str, ...]
    numbers: tuple[int, ...]
    """What the training annotations called the classes."""
    manifest: Mapping[str, Any]

    def __init__(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        manifest: Mapping[str, Any],
    ):
        """Raises CheckpointError if the arrays do not fit the manifest."""
        self.manifest, self.numbers = manifest, tuple(manifest["numbers"])
        self.class_names = tuple(map(printable, manifest["classes"]))
        self.preprocessing = prep = stored_preprocessing(manifest)
        model, classes = stored_model(manifest), len(self.numbers)
        side, how = prep.image_size[0], {"rngs": nnx.Rngs(0), "fresh": False}
        network, params, stats = placed(
            lambda: Network.create(DetectionModel(model, side, classes, **how)),
            params,
            stats,
        )

        def found(params: Any, stats: Any, images: Any) -> Any:
            return peaks(*network.apply(params, stats, prep.normalise(images))[0])

        run = jit(found)
        self._run = lambda images: run(params, stats, images)

    def predict(
        self, images: Any, *, score: float | int = 0.3, batch_size: int = _BATCH
    ) -> list[Detections]:
        """The boxes in every image with at least this score, at most 100 an image.

        Raises UserError for input that is no image.
        """
        every = self.rows(images, batch_size)
        kept = (found[found[:, 5] >= score] for found in every)
        return [Detections(f[:, :4], f[:, 4].astype(np.int32), f[:, 5]) for f in kept]

    def rows(
        self, images: Any, batch_size: int = _BATCH
    ) -> Iterator[Float32[np.ndarray, "n 6"]]:
        """(x, y, w, h, class, score) of up to 100 boxes of every image in turn."""
        batches, _ = image_batches(images, batch_size)
        prep, sizes = self.preprocessing, []
        side, fill = prep.image_size[0], fill_of(self.preprocessing)

        def scaled(batch: Any) -> np.ndarray:
            squares = np.empty((len(batch), side, side, prep.channels), np.uint8)
            for n, image in enumerate(batch):
                pixels = prepare(image[None], prep, resize=False)[0]
                if pixels.dtype != np.uint8:
                    pixels = np.round(pixels * 255).astype(np.uint8)
                sizes.append(pixels.shape[:2])
                squares[n] = letterboxed(pixels, side, fill)
            return squares

        every = map(scaled, batches)
        parts = stream(self._run, prep, every, batch_size, resize=False)
        for n, found in enumerate(found for part in parts for found in part):
            yield restored(found, sizes[n], side)


def load_detector(path: str | os.PathLike[str]) -> Detector:
    """Load a detector from a finished run, or its `object-detector/` folder.

    Every file is compared with its checksum. Raises UserError if there is none,
    CheckpointError if it is damaged.
    """
    found = read_artefact(path, {DETECTOR: "afterimage detect"})
    return Detector(found.params, found.stats, found.manifest)


def drawn(image: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> Any:
    """The uint8 image as a Pillow image with boxes (x, y, w, h, class, …) drawn."""
    shown = displayable(image[None].astype(np.float32) / 255)[0]
    picture = Image.fromarray(
        np.asarray(shown).squeeze(-1) if shown.shape[-1] == 1 else shown
    )
    picture = picture.convert("RGB")
    draw, line = ImageDraw.Draw(picture), max(1, max(picture.size) // 256)
    for x, y, w, h, k, *score in rows.tolist():
        hue = colorsys.hsv_to_rgb((0.33 + k * 0.618034) % 1, 0.9, 1)
        colour = tuple(round(255 * part) for part in hue)
        # Not narrower than a pixel, which Pillow refuses.
        corner = max(x, x + w - 1), max(y, y + h - 1)
        draw.rectangle((x, y, *corner), outline=colour, width=line)
        if min(picture.size) >= 200:
            text = names[int(k)] + "".join(f" {s:.2f}" for s in score)
            draw.text((x + line + 1, y + line), printable(text), fill=colour)
    return picture


def predict(config: PredictConfig) -> str:
    """Write boxes.json, a COCO file whose annotations have scores, and pictures.

    Returns a few lines for a terminal. Raises UserError for settings that cannot work,
    DataError for a folder without images and, with on_bad_image="fail", for the first
    broken one.
    """
    detector, out = load_detector(config.from_), pathlib.Path(config.out)
    every = EachImage(config.data, detector.preprocessing, config.on_bad_image)
    images, boxes = [], []
    with disk_errors(f"out={config.out}"):
        for row, name, image in every:
            (found,) = detector.rows(image)
            found, (height, width) = found[found[:, 5] >= config.score], image.shape[:2]
            size = {"height": height, "width": width}
            images.append({"id": row + 1, "file_name": name, **size})
            boxes += [
                {
                    "id": len(boxes) + n,
                    "image_id": row + 1,
                    "category_id": detector.numbers[int(k)],
                    "bbox": [round(value, 2) for value in box],
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    "score": round(score, 4),
                }
                for n, (*box, k, score) in enumerate(found.tolist(), 1)
            ]
            # The ending stays in the name: a.jpg and a.png are two images.
            picture = encoded(drawn(image, found, detector.class_names), "PNG")
            _write(out / "pictures" / f"{name}.png", picture)
        named = zip(detector.numbers, detector.class_names)
        kinds = [{"id": number, "name": name} for number, name in named]
        content = {"images": images, "annotations": boxes, "categories": kinds}
        _write(out / "boxes.json", json.dumps(content, indent=1).encode())
    return "\n".join(
        [
            f"{len(boxes):,} boxes in {len(images):,} images",
            f"boxes     {spelling(str(out / 'boxes.json'))}",
            f"pictures  {spelling(str(out / 'pictures'))}",
            *every.skipped_lines(),
        ]
    )


def _write(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
