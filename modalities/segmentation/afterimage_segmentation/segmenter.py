"""A trained segmenter: images in, a class for every pixel out."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int, Integer, UInt8
from msgspec import Meta

from afterimage.checkpoints import schemas
from afterimage.checkpoints.names import printable
from afterimage.checkpoints.weights import read_artefact
from afterimage.data import Preprocessing
from afterimage.data.pixels import cover_and_crop
from afterimage.data.preprocessing import image_batches
from afterimage.encoder import placed, stored_model, stored_preprocessing, stream
from afterimage.runtime import jit
from afterimage_segmentation.data import IGNORED
from afterimage_segmentation.network import SegmentationNetwork

SEGMENTER = "segmenter"
"""The kind in the manifest, and the folder's name in a run."""
_BATCH = 32
_Level = Annotated[int, Meta(ge=0, le=255)]


class SegmenterManifest(schemas.EncoderManifest, kw_only=True):
    """`manifest.json` of a segmenter folder."""

    classes: Annotated[list[schemas.Name], Meta(min_length=2, max_length=254)]
    values: Annotated[list[Annotated[int, Meta(ge=0, lt=2**24)]], Meta(max_length=254)]
    colours: Annotated[list[tuple[_Level, _Level, _Level]], Meta(max_length=254)]
    coloured: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.classes) == len(self.values) == len(self.colours):
            raise ValueError(
                f"{len(self.classes)} classes, {len(self.values)} values and "
                f"{len(self.colours)} colours"
            )


class Segmenter:
    """A trained encoder and decoder; `load_segmenter` returns one.

    Images are uint8, or float in [0, 1]: NHWC, one HWC image, or a list of HWC images
    of any sizes. Each is scaled as in training, its shorter side to the trained one,
    without cropping, to a multiple of the network's stride; the scores are scaled back.
    """

    class_names: tuple[str, ...]
    """The classes, in the order of their numbers."""
    values: tuple[int, ...]
    """The value of each class in the masks: a number, or 65536 red + 256 green + blue
    if they are `coloured`."""
    colours: tuple[tuple[int, int, int], ...]
    """How each class is shown."""
    coloured: bool
    manifest: Mapping[str, Any]

    def __init__(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        manifest: Mapping[str, Any],
    ):
        """Raises CheckpointError if the arrays do not fit the manifest."""
        self.manifest = manifest
        self.class_names = tuple(map(printable, manifest["classes"]))
        self.values = tuple(manifest["values"])
        self.colours = tuple((r, g, b) for r, g, b in manifest["colours"])
        self.coloured = manifest["coloured"]
        self.preprocessing: Preprocessing = stored_preprocessing(manifest)
        self.network, self.params, self.stats = placed(
            lambda: SegmentationNetwork.create(
                stored_model(manifest),
                self.preprocessing,
                len(self.class_names),
                fresh=False,
            ),
            params,
            stats,
        )
        self._logits = jit(self.network.logits)

    def __repr__(self) -> str:
        height, width = self.preprocessing.image_size
        return printable(
            f"Segmenter {self.manifest['model']['name']}, {height} x {width} px: "
            f"{len(self.class_names)} classes ({', '.join(self.class_names[:8])})"
        )

    def predict(
        self, images: Any, *, batch_size: int = _BATCH
    ) -> Int[np.ndarray, "n h w"] | list[Int[np.ndarray, "h w"]]:
        """The number of the class of every pixel, for `class_names`.

        Of a list of images, a list. Raises UserError for input that is no image.
        """
        found = (scores.argmax(-1) for scores in self.stream(images, batch_size))
        return self._joined(images, found)

    def predict_proba(
        self, images: Any, *, batch_size: int = _BATCH
    ) -> Float[np.ndarray, "n h w k"] | list[Float[np.ndarray, "h w k"]]:
        """The probabilities of the classes at every pixel; they sum to 1."""
        found = map(_softmax, self.stream(images, batch_size))
        return self._joined(images, found)

    def _joined(self, images: Any, found: Iterator[np.ndarray]) -> Any:
        several = isinstance(images, list | tuple)
        return list(found) if several else np.stack(list(found))

    def stream(
        self, images: Any, batch_size: int = _BATCH
    ) -> Iterator[Float[np.ndarray, "h w k"]]:
        """The scores of every image in turn, at its own size.

        Neighbours in the list that have one size are computed together.
        """
        batches, _ = image_batches(images, batch_size)
        every = itertools.chain.from_iterable(batches)
        for _, group in itertools.groupby(every, lambda image: image.shape):
            while some := list(itertools.islice(group, batch_size)):
                size = self._size(*some[0].shape[:2])
                yield from self._scored(some, size, some[0].shape[:2])

    def _scored(
        self, images: list[np.ndarray], size: tuple[int, int], own: tuple[int, int]
    ) -> Iterator[np.ndarray]:
        scaled = np.stack([_scaled(image, size) for image in images])

        def run(pixels: Any) -> Any:
            return self._logits(self.params, self.stats, pixels)[0]

        for part in stream(
            run, self.preprocessing, [scaled], len(images), resize=False
        ):
            yield from (_scaled_back(scores, own) for scores in part)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """What an image is scaled to: a trained side, and a multiple of the stride."""
        trained, stride = self.preprocessing.image_size, self.network.stride
        factor = max(trained[0] / height, trained[1] / width)

        def side(n: int, known: int) -> int:
            exact = round(n * factor)
            return known if exact == known else max(1, round(exact / stride)) * stride

        return side(height, trained[0]), side(width, trained[1])


def _scaled(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image at this size, hardly distorted and not cropped."""
    if image.shape[:2] == size or 0 in image.shape:
        return image
    return cover_and_crop(image, size)


def _scaled_back(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    if scores.shape[:2] == size:
        return scores
    return cv2.resize(scores, size[::-1], interpolation=cv2.INTER_LINEAR)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def painted(
    classes: Integer[np.ndarray, "h w"], colours: Sequence[tuple[int, int, int]]
) -> UInt8[np.ndarray, "h w 3"]:
    """Classes in their colours; ignored pixels are white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(colours)] = colours
    table[IGNORED] = 255
    return table[classes]


def load_segmenter(path: str | os.PathLike[str]) -> Segmenter:
    """Load a segmenter from a finished run, or from its `segmenter/` folder.

    Every file is compared with its checksum. Raises UserError if there is none,
    CheckpointError if it is damaged.
    """
    found = read_artefact(path, {SEGMENTER: "afterimage segment"})
    return Segmenter(found.params, found.stats, found.manifest)
