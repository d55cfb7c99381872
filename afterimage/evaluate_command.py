"""`afterimage evaluate --from RUN --data SPEC`: what the features are worth."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from afterimage.checkpoints import files, schemas
from afterimage.checkpoints.files import replace_file
from afterimage.cli import parse
from afterimage.errors import UserError, disk_errors
from afterimage.fields import field_problems
from afterimage.reading import ReadingOptions
from afterimage.training.options import check

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
class EvaluateConfig(ReadingOptions):
    """Score a run on labelled images."""

    from_: str
    """What is scored: the folder of a finetune or pretrain run, one of a run's
    checkpoints/STEP, an encoder/ or a classifier/ folder."""

    data: str
    """Where the images are: digits, folder:PATH, zip:PATH[,PATH], csv:PATH, npz:PATH,
    tfds:NAME, synthetic:HxWxC. Given test images are the ones scored."""

    out: str | None = None
    """Write the figures to this file, as JSON. For an encoder its tables (.md) and
    picture (.png) stand beside it, and for a run's folder the default is
    RUN/evaluation/DATA.json."""

    split: Literal["auto", "train", "validation", "test"] = "auto"
    """For a classifier: which split is scored. auto: test where there is one, else all
    there is."""

    views: Literal["none", "flip", "shift", "shift-flip"] = "none"
    """Several views of each image: of a classifier the mean of their probabilities
    (test-time augmentation), of an encoder that of their vectors, before any probe.
    flip: mirrored left to right, 2 views; shift: moved by a twenty-eighth of its sides
    each way, 9; shift-flip: both, 18. So many times the work."""

    grid_3: bool = False
    """For an encoder: also the means of a 3x3 grid of the last level, however wide: a
    linear probe of all labels gains from it on small images, at its cost."""

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
        check(field_problems(self))
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
        content = schemas.parse(
            files.read_bytes(folder / "manifest.json", schemas.MOST)
        )
    except (OSError, ValueError):
        return False  # whatever it is, the encoder's reader says what is wrong with it
    return isinstance(content, dict) and content.get("kind") == "classifier"


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
            write(Path(config.out), (json.dumps(figures, indent=1) + "\n").encode())
    else:
        from afterimage.evaluate_encoder import evaluate_encoder

        print(evaluate_encoder(config)[1])


def write(file: Path, content: bytes) -> None:
    """Write a file, folders included; DiskError where it cannot be."""
    with disk_errors(f"out={file} was not written"):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)
