"""`afterimage evaluate --from RUN --data SPEC`: what the features are worth."""

import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from afterimage.cli import parse
from afterimage.data import ImageSet, Splits, hold_out
from afterimage.errors import DataError, UserError
from afterimage.features_command import open_for, report_skipped, select

DESCRIPTION = """Score a run on labelled images.

A classifier (`afterimage finetune`): accuracy, macro-F1, confusion matrix and
calibration error on the test images.

An encoder (`afterimage pretrain`): linear probe, kNN and ridge at several label
budgets, beside the same network untrained and raw pixels; which layer is best, how
many dimensions are used, how alike the layers are; a picture of the features. Probes
learn from the data's training images and are scored on its test images.

  afterimage evaluate --from runs/cls --data folder:test
  afterimage evaluate --from runs/photos --data folder:labelled
  afterimage evaluate --from runs/photos --data folder:labelled --against runs/other"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a run on labelled images."""

    from_: str
    """What is scored: the folder of a finetune or pretrain run, one of a run's
    checkpoints/STEP, an encoder/ or a classifier/ folder."""

    data: str
    """Where the images are: digits, folder:PATH, zip:PATH[,PATH], npz:PATH, tfds:NAME,
    synthetic:HxWxC. Given test images are the ones scored."""

    out: str | None = None
    """Write the figures to this file, as JSON. For an encoder its tables (.md) and
    picture (.png) stand beside it, and for a run's folder the default is
    RUN/evaluation/DATA.json."""

    split: Literal["auto", "train", "validation", "test"] = "auto"
    """For a classifier: which split is scored. auto: test where there is one, else all
    there is."""

    validation: float = 0.2
    """For an encoder: share of the images to score, where the data has no test or
    validation split; cut by seed and stratified by label."""

    against: str | None = None
    """For an encoder: a second run, checkpoint or encoder/ folder for the same
    tables."""

    per_class: tuple[int, ...] = (1, 5, 10, 100)
    """For an encoder: label budgets, labels a class. All labels are always one more;
    sizes that the data has not are left out."""

    label_seeds: int = 5
    """For an encoder: draws of each label budget, for mean and standard deviation."""

    most: int = 20_000
    """For an encoder: training images whose features are kept for the linear probe and
    kNN, and images that are scored; ridge with all labels, ranks and alignment stream
    over every training image."""

    embedding: Literal["pca", "umap", "none"] = "pca"
    """For an encoder: what the picture of its features shows; umap needs the extra
    afterimage[umap]."""

    picture_images: int = 1000
    """For an encoder: at most so many images in the picture."""

    seed: int = 0
    """Seed of the split, the first label seed, the choice of images, the untrained
    network, and the bootstrap."""

    batch_size: int = 256
    """Images that go through the network together."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a broken image: stop and name it, or skip and count it."""

    cache: bool = True
    """Keep decoded images of folders and archives on disk for the next pass."""

    def __post_init__(self):
        wrong = []
        if not 0 < self.validation < 1:
            wrong.append(f"validation={self.validation}: a share in (0, 1)")
        wrong += [
            f"{name}={getattr(self, name)}: at least 1"
            for name in ("label_seeds", "most", "picture_images", "batch_size")
            if getattr(self, name) < 1
        ]
        if any(size < 1 for size in self.per_class):
            wrong.append(f"per_class={self.per_class}: each at least 1")
        if wrong:
            raise UserError("; ".join(wrong))


def is_classifier(path: str) -> bool:
    """Whether `path` is a finetune run's folder, or its classifier/ folder."""
    folder = Path(path)
    if (folder / "classifier").is_dir():
        return True
    try:
        return (
            json.loads((folder / "manifest.json").read_text())["kind"] == "classifier"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def evaluate_encoder(config: EvaluateConfig) -> tuple[dict[str, Any], str]:
    """(`representation_report`, its tables): this encoder, the same untrained, pixels.

    With `config.against` that encoder too. Figures, tables and a picture of the
    features are written where the text says.

    Raises DataError for data without two labelled classes to learn from, and without
    labelled images to score; UserError for a place that cannot be written.
    """
    from afterimage.encoder import load_encoder
    from afterimage.evaluation import (
        Protocol,
        encoder_representation,
        pixel_representation,
        representation_report,
        representation_text,
    )
    from afterimage.evaluation.embedding import import_umap

    if config.embedding == "umap":
        import_umap()  # before hours of work
    encoder = load_encoder(config.from_)
    named = {
        "this encoder": encoder,
        "untrained encoder": encoder.untrained(config.seed),
    }
    if config.against is not None:
        named[f"against {config.against}"] = load_encoder(config.against)
    splits = open_for(
        encoder.preprocessing, config.data, config.on_bad_image, config.cache
    )
    report_skipped(select(splits, "all", config.data))
    train, test = _probe_sets(splits, config)
    representations = [
        encoder_representation(name, each, batch_size=config.batch_size)
        for name, each in named.items()
    ]
    protocol = Protocol(
        per_class=config.per_class,
        seeds=config.label_seeds,
        most=config.most,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    figures = representation_report(
        [*representations, pixel_representation()], train, test, protocol
    )
    text = representation_text(figures)
    place = _place(config)
    if place is None:
        said = "Nothing was written: this is no run's folder; give --out FILE.json."
        return figures, f"{text}\n\n{said}"
    written = [place, place.with_suffix(".md")]
    _write(written[0], json.dumps(figures, indent=1) + "\n")
    _write(written[1], text + "\n")
    if config.embedding != "none":
        written.append(place.with_suffix(".png"))
        _draw(encoder, test, config, written[2])
    return figures, f"{text}\n\nWritten: {', '.join(map(str, written))}"


def _probe_sets(splits: Splits, config: EvaluateConfig) -> tuple[ImageSet, ImageSet]:
    train, test = splits.train, splits.test or splits.validation
    if test is None:
        train, test = hold_out(train, config.validation, config.seed)
    train, test = _labelled(train), _labelled(test)
    assert train.labels is not None
    if len(np.unique(train.labels)) < 2:
        raise DataError(
            f"{train.name}: the probes learn to tell classes apart and need at least "
            "two in the training images."
        )
    return train, test


def _labelled(images: ImageSet) -> ImageSet:
    rows = np.zeros(0, np.int64)
    if images.labels is not None:
        rows = np.flatnonzero(images.labels >= 0)
    if not len(rows):
        raise DataError(
            f"{images.name} has no labels, and an encoder is scored by how well its "
            "features tell classes apart. Give labelled images: one subfolder a class."
        )
    return images if len(rows) == len(images) else images.subset(rows)


def _place(config: EvaluateConfig) -> Path | None:
    """The JSON file; the others share its stem. None where nothing is to be written."""
    if config.out is not None:
        return Path(config.out)
    if not (Path(config.from_) / "config.json").is_file():
        return None  # an artefact, whose files are listed with their checksums
    name = re.sub(r"[^A-Za-z0-9.=-]+", "-", config.data).strip("-.")
    return Path(config.from_) / "evaluation" / f"{name}.json"


def _draw(encoder: Any, test: ImageSet, config: EvaluateConfig, file: Path) -> None:
    from PIL import Image

    from afterimage.evaluation import draw_embedding, embed

    assert config.embedding != "none"
    some = np.random.default_rng(config.seed).permutation(len(test))
    images = test.subset(np.sort(some[: config.picture_images]))
    pixels = images.gather(np.arange(len(images)))
    places, how = embed(
        encoder.features(pixels, batch_size=config.batch_size),
        config.embedding,
        seed=config.seed,
    )
    picture = draw_embedding(
        places,
        pixels,
        images.labels,
        images.class_names or (),
        caption=f"{len(images):,} of {len(test):,} images of {test.name}: {how}",
    )
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    _write(file, buffer.getvalue())


def main(
    argv: Sequence[str],
    *,
    prog: str = "afterimage evaluate",
    classifier: Callable[[EvaluateConfig], tuple[dict[str, Any], str]] | None = None,
) -> None:
    """Parses, scores, prints.

    `classifier` scores what fine-tuning made and gives (figures, text); it belongs to
    that stage, and the front door passes it.
    """
    config = parse(EvaluateConfig, {}, argv, prog=prog, description=DESCRIPTION)
    if is_classifier(config.from_):
        if classifier is None:
            raise UserError(
                f"{config.from_} is a classifier, which only `afterimage evaluate` "
                f"scores; its encoder alone is {Path(config.from_) / 'encoder'}."
            )
        figures, text = classifier(config)
        print(text)
        if config.out is not None:
            _write(Path(config.out), json.dumps(figures, indent=1) + "\n")
    else:
        print(evaluate_encoder(config)[1])


def _write(out: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(data)
    except OSError as error:
        raise UserError(f"out={out} was not written: {error}") from error
