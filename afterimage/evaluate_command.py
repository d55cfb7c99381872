"""`afterimage evaluate --from RUN --data SPEC`: what the features are worth."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from afterimage.cli import parse
from afterimage.data import ImageSet, Splits, hold_out
from afterimage.errors import DataError, UserError
from afterimage.features_command import open_for, report_skipped, select

DESCRIPTION = """Score a run on labelled images.

A classifier (`afterimage finetune`): accuracy, macro-F1, confusion matrix and
calibration error on the test images. An encoder (`afterimage pretrain`): kNN and ridge
probe, beside raw pixels and the same network untrained; they learn from the data's
training images and are scored on its test images.

  afterimage evaluate --from runs/cls --data folder:test
  afterimage evaluate --from runs/photos --data folder:labelled"""


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
    """Also write the figures to this file, as JSON."""

    split: Literal["auto", "train", "validation", "test"] = "auto"
    """For a classifier: which split is scored. auto: test where there is one, else all
    there is."""

    validation: float = 0.2
    """For an encoder: share of the images to score, where the data has no test or
    validation split; cut by seed and stratified by label."""

    most: int = 10_000
    """For an encoder: at most so many images for the probes to learn from, and as many
    to score."""

    k: int = 20
    """For an encoder: neighbours that vote in kNN."""

    seed: int = 0
    """Seed of the split, the choice of images, the untrained network, and the
    bootstrap."""

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
            for name in ("most", "k", "batch_size")
            if getattr(self, name) < 1
        ]
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


def evaluate_encoder(config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """`probe_report` of the trained encoder, the same untrained, and raw pixels.

    Raises DataError for data without two labelled classes to learn from, and without
    labelled images to score.
    """
    from afterimage.encoder import load_encoder
    from afterimage.evaluation import pixel_vectors, probe_report

    encoder = load_encoder(config.from_)
    splits = open_for(
        encoder.preprocessing, config.data, config.on_bad_image, config.cache
    )
    report_skipped(select(splits, "all", config.data))
    train, test = _probe_sets(splits, config)
    pixels = tuple(s.gather(np.arange(len(s))) for s in (train, test))
    twin = encoder.untrained(config.seed)

    def pair(function: Callable[[Any], Any]) -> tuple[Any, Any]:
        return function(pixels[0]), function(pixels[1])

    size = config.batch_size
    return probe_report(
        {
            "this encoder": pair(lambda x: encoder.features(x, batch_size=size)),
            "untrained encoder": pair(lambda x: twin.features(x, batch_size=size)),
            "raw pixels": pair(pixel_vectors),
        },
        (train.labels, test.labels),
        k=config.k,
    )


def _probe_sets(splits: Splits, config: EvaluateConfig) -> tuple[ImageSet, ImageSet]:
    train, test = splits.train, splits.test or splits.validation
    if test is None:
        train, test = hold_out(train, config.validation, config.seed)
    train, test = (_labelled(s, config) for s in (train, test))
    assert train.labels is not None
    if len(np.unique(train.labels)) < 2:
        raise DataError(
            f"{train.name}: the probes learn to tell classes apart and need at least "
            "two in the training images."
        )
    return train, test


def _labelled(images: ImageSet, config: EvaluateConfig) -> ImageSet:
    rows = np.zeros(0, np.int64)
    if images.labels is not None:
        rows = np.flatnonzero(images.labels >= 0)
    if not len(rows):
        raise DataError(
            f"{images.name} has no labels, and an encoder is scored by how well its "
            "features tell classes apart. Give labelled images: one subfolder a class."
        )
    if len(rows) > config.most:
        rng = np.random.default_rng(config.seed)
        rows = np.sort(rng.permutation(rows)[: config.most])
    return images.subset(rows)


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
    else:
        from afterimage.evaluation import probe_table

        figures = evaluate_encoder(config)
        text = probe_table(figures)
    print(text)
    if config.out is not None:
        _write(Path(config.out), figures)


def _write(out: Path, figures: Mapping[str, Any]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"out={out} was not written: {error}") from error
