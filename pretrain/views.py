"""What training sees: a picture and a page of augmented views beside their images."""

import inspect
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, UInt8

from afterimage import runtime
from afterimage.checkpoints.names import shortened
from afterimage.data import ImageSet, make_augment
from afterimage.data.augmentations import AugmentationSet, spec_pieces
from afterimage.data.whole_photos import WholePhotos
from afterimage.pictures import draw_rows
from afterimage.plugins import AUGMENTATIONS
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.objective import to_pixels
from afterimage.report import write_report
from afterimage.runs import Run, write_png
from afterimage.training.batches import subsample

PICTURE = "augment.png"
"""The file in `pictures/`."""
_IMAGES, _VIEWS, _TILE = 8, 9, 96


def draw_views(config: PretrainConfig, train: ImageSet) -> UInt8[np.ndarray, "h w 3"]:
    """A row for each of some training images: the image, then views of it."""
    some = subsample(train, _IMAGES)
    every = np.arange(len(some))
    pixels = some.gather(every).astype(np.float32) / 255
    rows = WholePhotos(some) if config.whole_photos else some
    seen = {name: np.repeat(one, _VIEWS, 0) for name, one in rows.inputs(every).items()}
    augment = make_augment(config.augment, config.view_size)

    def viewed(key: Array, seen: Mapping[str, Array]) -> Array:
        return augment(key, to_pixels(seen["image"]), seen.get("aspect"))

    views = np.asarray(runtime.jit(viewed)(jax.random.key(config.seed), seen))
    views = views.reshape(len(some), _VIEWS, *views.shape[1:])
    rows = {
        _label(some, number): [image, *of_it]
        for number, (image, of_it) in enumerate(zip(pixels, views, strict=True))
    }
    said = "left: the image; then views of it"
    return draw_rows(rows, caption=said, first_apart=True, tile=_TILE)


def write_picture(config: PretrainConfig, train: ImageSet, run: Run) -> None:
    """Write the picture into the run folder, unless it is there."""
    place = run.path / "pictures" / PICTURE
    if run.is_main_process and not place.is_file():
        write_png(draw_views(config, train), run.pictures / PICTURE)


def caption(config: PretrainConfig) -> str:
    """What the picture shows, in a sentence."""
    return (
        f"Training images, and random views of each by augment={config.augment}. What "
        "differs between the views of an image is what the features should ignore."
    )


def write_page(config: PretrainConfig, train: ImageSet, run: Run) -> pathlib.Path:
    """Write the picture and a page with it and what each augmentation does."""
    picture = write_png(draw_views(config, train), run.pictures / PICTURE)
    height, width, _ = train.shape
    view = "" if config.view_size is None else f", views of {config.view_size} pixels"
    what = f"What {config.augment} does"
    return write_report(
        run.path / "augment.html",
        title=f"Augmented views of {train.name}",
        lead=f"augment={config.augment} · images of {height}x{width}{view}",
        pictures={"Images and views": (caption(config), picture)},
        tables={what: _descriptions(config.augment)},
        opened=[what],
    )


def _descriptions(spec: str) -> Mapping[str, str]:
    """{part of the spec: the first paragraph of its document}, sets first."""
    found = {}
    for text in spec.split(","):
        thing = AUGMENTATIONS.get(text.partition(":")[0])
        if isinstance(thing, type) and issubclass(thing, AugmentationSet):
            found[text] = f"{_about(thing)} It is {thing.spec}:"
    return found | {piece.text: _about(piece.thing) for piece in spec_pieces(spec)}


def _about(thing: object) -> str:
    paragraph = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]
    return " ".join(paragraph.split())


def _label(images: ImageSet, number: int) -> str:
    """The image's number, and its class if it is known."""
    names, labels = images.class_names, images.labels
    if names is None or labels is None or labels[number] < 0:
        return str(number + 1)
    return shortened(f"{number + 1}: {names[labels[number]]}", 24)
