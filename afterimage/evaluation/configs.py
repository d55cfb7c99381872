"""Settings of commands on finished runs: evaluate, features, select. Needs no JAX."""

import dataclasses
from typing import ClassVar, Literal

from afterimage.checkpoints import files, schemas
from afterimage.checkpoints.files import replace_file
from afterimage.errors import disk_errors
from afterimage.fields import at_least_1, field_problems
from afterimage.reading import ReadingOptions
from afterimage.storage.outputs import here
from afterimage.storage.reading import local
from afterimage.training.options import check

Split = Literal["all", "train", "validation", "test"]
Views = Literal["none", "flip", "shift", "shift-flip"]
Rule = Literal["typical", "k-center", "k-means++", "margin", "badge", "random"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagesOptions(ReadingOptions):
    """Which images, and how they are read."""

    data: str
    """The images: a folder, a .zip, .csv or .npz file, or characters,
    digits, folder:PATH, zip:PATH[,PATH], csv:PATH, npz:PATH, tar:PATTERN,
    parquet:PATTERN, tfds:NAME, synthetic:HxWxC."""

    batch_size: int = 256
    """Images per forward pass."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a damaged image: stop and name it, or skip and count it."""

    cache: bool = True
    """Cache decoded images of folders and archives on disk for the next run."""

    def __post_init__(self) -> None:
        check(field_problems(self))  # first: the others compare these with numbers
        check(self.problems())

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        return at_least_1(self, "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig(ImagesOptions):
    """Images to vectors, into a file."""

    UPLOADED: ClassVar = ("out",)

    from_: str
    """The encoder: a run folder, one of its checkpoints/STEP, or an encoder/ folder."""

    out: str
    """The file to write: .parquet (split, id, label and class where known, vector),
    .npz (the same as arrays), .npy (vectors alone) or .csv (a column a number)."""

    split: Split = "all"
    """Which images to use: all, or those of one split."""

    pool: Literal["vector", "last", "pyramid", "grid", "grid-3", "pyramid-grid"] = (
        "vector"
    )
    """How feature maps become a vector. vector: the encoder's own, chosen at the end of
    its training; the bottleneck if there is one. last: the mean of the last map.
    pyramid: the means of all maps, concatenated. grid, pyramid-grid: the same with the
    means of a 2x2 grid; grid-3: with a 3x3 grid of the last map."""

    dim: int | None = None
    """Reduce the vectors to this many principal components (PCA). They are those of the
    training images of --data, whatever the split. Default: no PCA."""

    views: Views = "none"
    """Average the vectors of several views of each image. flip: mirrored left to right,
    2 views; shift: moved by 1/28 of its sides each way, 9; shift-flip: both, 18. The
    work grows with the number of views."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network's arithmetic; features are stored as float32."""

    ray: str | None = None
    """Compute on a Ray cluster, one actor per device: its address, auto for the one
    that this machine belongs to, or local for this machine alone. Every machine must
    find --data and --from under the same path. Images are read where they are used, and
    not cached. Needs the [ray] extra."""

    actors: int | None = None
    """With --ray, the number of actors. Default: one for each accelerator of the
    cluster, or for each CPU core if it has none."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = super().problems() + at_least_1(self, "dim", "actors")
        if self.actors is not None and self.ray is None:
            found.append(f"actors={self.actors}: only with --ray")
        if (
            self.ray
            and self.on_bad_image == "skip"
            and self.out.endswith((".npy", ".npz"))
        ):
            found.append(
                f"out={self.out}: with --ray, broken images are found on the way, so "
                "--on-bad-image skip can only write .parquet or .csv"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ImagesOptions):
    """Score a run on images: by their labels, or an encoder without labels."""

    UPLOADED: ClassVar = ("out",)

    from_: str
    """What to score: the folder of a finetune or pretrain run, one of a run's
    checkpoints/STEP, an encoder/ or a classifier/ folder."""

    out: str | None = None
    """Write the metrics to this file, as JSON. For an encoder, its tables (.md) and
    picture (.png) are written next to it. Default for a run folder:
    RUN/evaluation/DATA.json."""

    split: Literal["auto", "train", "validation", "test"] = "auto"
    """For a classifier: which split to score. auto: test if there is one, else
    the images that its run held out, else all."""

    views: Views = "none"
    """Average over several views of each image: for a classifier their probabilities
    (test-time augmentation), for an encoder their vectors, before any probe. flip:
    mirrored left to right, 2 views; shift: moved by 1/28 of its sides each way, 9;
    shift-flip: both, 18. The work grows with the number of views."""

    grid_3: bool = False
    """For an encoder: also the means of a 3x3 grid of the last level, however wide. On
    small images this improves a linear probe on all labels, at extra cost."""

    validation: float = 0.2
    """For an encoder: share of the images to score if the data has no test or
    validation split; drawn by seed and stratified by label."""

    against: str | None = None
    """For an encoder: a second run, checkpoint or encoder/ folder to add to the
    tables."""

    per_class: tuple[int, ...] = (1, 5, 10, 100)
    """For an encoder: label budgets, in labels per class. All labels are always added
    as a budget; budgets that the data cannot provide are skipped."""

    label_seeds: int = 5
    """For an encoder: draws of each label budget, for mean and standard deviation."""

    most: int = 20_000
    """For an encoder: maximum number of training images whose features are kept for the
    linear probe and kNN, and of images to score; ridge with all labels, ranks and
    alignment stream over every training image."""

    embedding: Literal["pca", "umap", "none"] = "pca"
    """For an encoder: what the picture of its features shows; umap needs the extra
    afterimage[umap]."""

    picture_images: int = 1000
    """For an encoder: use at most this many images in the picture."""

    seed: int = 0
    """Seed for the split, the first label draw, the choice of images, the untrained
    network, and the bootstrap."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = super().problems()
        if not 0 < self.validation < 1:
            found.append(f"validation={self.validation}: must be a share in (0, 1)")
        return found + at_least_1(
            self, "label_seeds", "most", "picture_images", "per_class"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Images to classes, into a file."""

    UPLOADED: ClassVar = ("out",)

    data: tuple[str, ...]
    """The images: a folder, .zip, .csv or .npz file, any number of image files or
    patterns such as "photos/*.jpg", or a spec as for the other commands. All of them
    are used, whatever their folders are called; labels are not needed."""

    from_: str
    """The classifier: a fine-tuning run, one of its checkpoints/STEP, or a classifier/
    folder."""

    out: str
    """The file to write: .csv, .jsonl (one object a line) or .parquet, a row for each
    image."""

    top: int = 3
    """Number of most probable classes in each row."""

    threshold: float | None = None
    """Adds the column unsure: whether the probability of the class is below this."""

    task: str | None = None
    """The head, if the classifier has several. Default: the main one."""

    views: Views = "none"
    """Average the probabilities over several views of each image. flip: mirrored left
    to right, 2 views; shift: moved by 1/28 of its sides each way, 9; shift-flip: both,
    18. The work grows with the number of views."""

    batch_size: int = 256
    """Images per forward pass."""

    on_bad_image: Literal["skip", "fail"] = "skip"
    """What to do with a broken image: list it beside the predictions and go on, or
    stop. The same command then continues with that image."""

    outside_images: bool = False
    """Allow a table to list images outside its own folder: absolute paths, and `..`."""

    def __post_init__(self) -> None:
        check(field_problems(self))
        found = at_least_1(self, "top", "batch_size")
        if not self.data:
            found.append("data: name the images")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            found.append(f"threshold={self.threshold}: must be a share in (0, 1]")
        check(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarConfig:
    """The images of an album that are near others."""

    UPLOADED: ClassVar = ("out",)

    data: str
    """The album: a folder, .zip, .csv or .npz file, a pattern such as "photos/*.jpg",
    or a spec as for the other commands."""

    from_: str
    """The encoder: a run folder, one of its checkpoints/STEP, or an encoder/ folder."""

    query: tuple[str, ...] = ()
    """Images to look for: any number of image files or patterns."""

    duplicates: bool = False
    """Find groups of nearly the same images in the album instead."""

    cosine: float | None = None
    """duplicates: images whose vectors have at least this cosine. Default: what 95 % of
    copies reach that are cut by 4 % and a twentieth darker, measured on the album."""

    top: int = 8
    """Nearest images to find for each query."""

    out: tuple[str, ...] = ()
    """Files to write, by suffix: .csv or .jsonl, a table; .png, a contact sheet; .html,
    both. Default: only print."""

    index: str | None = None
    """The folder with the vectors of the album. Default: RUN/similar/ALBUM, or in the
    cache folder if the encoder is not in a run."""

    batch_size: int = 256
    """Images per forward pass."""

    outside_images: bool = False
    """Allow a table to list images outside its own folder: absolute paths, and `..`."""

    def __post_init__(self) -> None:
        check(field_problems(self))
        found = at_least_1(self, "top", "batch_size")
        if bool(self.query) == self.duplicates:
            found.append("give either query, images to look for, or duplicates")
        if self.cosine is not None and not (self.duplicates and 0 < self.cosine <= 1):
            found.append(f"cosine={self.cosine}: in (0, 1], and only with duplicates")
        check(found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig(ReadingOptions):
    """Images to label next, or labels that look wrong."""

    data: str
    """The images: a folder, .zip, .csv or .npz file, a pattern such as "photos/*.jpg",
    or a spec as for the other commands. suggest takes all of them, whatever their
    folders are called; those to which a table gives a label are not suggested."""

    from_: str
    """An encoder or a classifier: a run folder, one of its checkpoints/STEP, an
    encoder/ or a classifier/ folder."""

    suggest: int | None = None
    """Suggest this many images to label next."""

    check: bool = False
    """List the labels in --data that look wrong instead."""

    out: tuple[str, ...] = ()
    """Files to write, by suffix: .csv, .jsonl or .parquet, a table; .png, a contact
    sheet; .html, both. Fill in the column label of the table, and it is data for
    finetune: csv:FILE. Default: only print."""

    labelled: str | None = None
    """suggest: images that have a label already, e.g. csv:first.csv. What they cover is
    not suggested again; nor are the same images in --data."""

    rule: Rule | None = None
    """suggest: how to choose. typical: the most typical image of each of the largest
    groups without a label. k-center: the farthest from all others chosen. k-means++:
    the same, drawn at random. margin, badge: where a classifier is unsure; badge also
    far apart. random. Default: typical, and badge for a classifier once there are 10
    labels a class."""

    task: str | None = None
    """The head, if a classifier has several. Default: the main one."""

    batch_size: int = 256
    """Images per forward pass."""

    seed: int = 0
    """Seed of k-means, of random choices, and of the fifths that check holds out."""

    def __post_init__(self) -> None:
        check(field_problems(self))
        found = at_least_1(self, "suggest", "batch_size")
        if (self.suggest is None) != self.check:
            found.append("give either suggest, a number of images, or check")
        if self.check and self.labelled is not None:
            found.append(f"labelled={self.labelled}: only with suggest")
        check(found)


def is_classifier(path: str) -> bool:
    """Whether `path` is a finetune run's folder, or its classifier/ folder."""
    folder = local(path, "names")
    if (folder / "classifier").is_dir():
        return True
    try:
        content = schemas.parse(
            files.read_bytes(folder / "manifest.json", schemas.MOST)
        )
    except (OSError, ValueError):
        return False  # the encoder's reader will report what is wrong with it
    return isinstance(content, dict) and content.get("kind") == "classifier"


def write(file: str, content: bytes) -> None:
    """Write a file, or an object of a bucket; DiskError or RemoteError if that fails.

    Folders are made.
    """
    with disk_errors(f"out={file} was not written"), here(file) as place:
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, content)
