"""What each kind of JSON file that we read back must hold; one schema a kind.

Checked by `jsons.mistakes`: types are strict (a string is not a number, a boolean
not an integer), every size and count has a bound, and numbers are finite because the
parser accepts no others. (`metrics.jsonl` is read line by line:
`afterimage.training.rows`.) Fields that a schema does not name are kept unchecked,
unless it forbids them.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any

import ml_dtypes
import msgspec
from msgspec import Meta, Struct

LARGEST_SIDE = 2**14
"""Pixels: the largest height or width of an image that a model is built for."""
MOST_CHANNELS = 4096
WIDEST = 2**20
"""Numbers in a bottleneck or in the hidden layer of a head."""
LARGEST_LABELS = 2**28
"""Bytes of `labels.json`: the names of a few million images."""
LONGEST_AXIS = 2**40
"""Numbers along one axis of an array."""
HIGHEST_RANK = 64
"""NumPy's bound on the dimensions of an array."""
DEEPEST_PATH = 64
LONGEST_PATH = 1024

Count = Annotated[int, Meta(ge=0, le=2**53)]
Number = Annotated[float, Meta(gt=-1e300, lt=1e300)]
Name = Annotated[str, Meta(max_length=1024)]
Side = Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]
Channels = Annotated[int, Meta(ge=1, le=MOST_CHANNELS)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Pixel = Annotated[float, Meta(gt=-1e38, lt=1e38)]
"""A value of pixels, which float32 must hold."""
Statistics = Annotated[list[Pixel], Meta(min_length=1, max_length=MOST_CHANNELS)]
Free = dict[str, Any]

DTYPES = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (16, 32, 64)]
    + ["bool", "int8", "uint8", "complex64", "complex128"]
    + [name for name in dir(ml_dtypes) if name.startswith(("bf", "fl", "int", "uint"))]
)


class File(Struct):
    """A file that a manifest lists."""

    size: Count
    sha256: Sha256


class Model(Struct, forbid_unknown_fields=True):
    """`afterimage.models.ModelConfig`; that its names are known is checked there.

    `package` is that of an encoder from outside, as `name version`.
    """

    name: Name
    image_size: tuple[Side, Side]
    channels: Channels
    norm: Name
    decoder: Name
    bottleneck: Annotated[int, Meta(ge=1, le=WIDEST)] | None
    width: Annotated[float, Meta(gt=0, le=16)]
    stem_stride: Annotated[int, Meta(ge=0, le=64)]
    remat: bool
    package: Name | None = None


class Preprocessing(Struct):
    """`afterimage.data.Preprocessing`."""

    image_size: tuple[Side, Side]
    mean: Statistics
    std: Statistics
    channels: Channels
    value_range: tuple[Number, Number] | None = None

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} deviations for "
                f"{self.channels} channels"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std {min(self.std):g} is not above 0")
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} is empty")


class FeatureInfo(Struct):
    """`afterimage.models.FeatureInfo`."""

    name: Name
    channels: Annotated[int, Meta(ge=1, le=WIDEST)]
    stride: Annotated[int, Meta(ge=1, le=2**14)]


class Data(Struct):
    """The images a run was made with."""

    name: str
    fingerprint: str


class Encoder(Struct):
    """`manifest.json` of an encoder folder, besides what every manifest has."""

    model: Model
    preprocessing: Preprocessing
    data: Data
    trained: Free
    feature_info: Annotated[list[FeatureInfo], Meta(max_length=64)]

    def __post_init__(self) -> None:
        if self.model.channels != self.preprocessing.channels:
            raise ValueError(
                f"model.channels is {self.model.channels}, preprocessing.channels "
                f"{self.preprocessing.channels}"
            )


class Head(Struct, forbid_unknown_fields=True):
    """`afterimage.finetune.classifier.HeadConfig` and the names of its classes."""

    classes: Annotated[int, Meta(ge=1, le=2**24)]
    kind: Name
    features: Name
    keep: Annotated[int, Meta(ge=1, le=2**24)] | None
    width: Annotated[int, Meta(ge=1, le=WIDEST)] | None
    class_names: list[str]

    def __post_init__(self) -> None:
        if len(self.class_names) != self.classes:
            raise ValueError(
                f"{len(self.class_names)} names for {self.classes} classes"
            )


class Classifier(Encoder):
    """`manifest.json` of a classifier folder."""

    heads: Annotated[dict[Name, Head], Meta(min_length=1)]


class Leaf(Struct):
    """One array of a checkpoint."""

    shape: Annotated[
        list[Annotated[int, Meta(ge=0, le=LONGEST_AXIS)]], Meta(max_length=HIGHEST_RANK)
    ]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown dtype {self.dtype[:40]!r}")
        if wrong := wrong_shape(self.shape):
            raise ValueError(wrong)


class Step(Struct):
    """`manifest.json` of a step, besides what every manifest has."""

    step: Count
    created: Name
    metric: Number | None
    best: Annotated[str, Meta(pattern="^(min|max)$")] | None
    manifest: Free
    leaves: dict[str, Leaf]

    def __post_init__(self) -> None:
        if wrong := wrong_paths(self.leaves):
            raise ValueError("; ".join(wrong[:10]))


class Config(Struct):
    """`config.json` of a run folder."""

    kind: Name
    config: Free
    data: Data | None = None
    runtime: Free = {}


class Used(Struct):
    """Names of the images whose labels were used, by class."""

    train: dict[str, list[str]]
    validation: dict[str, list[str]]


class Labels(Used):
    """`labels.json` of a fine-tuning run."""

    data: str
    classes: list[str]
    rule: str
    tasks: dict[str, Used] = {}


class Share(Struct):
    """A measure and its interval; null where it was not finite."""

    value: Number | None
    low: Number | None
    high: Number | None


class Report(Struct):
    """`afterimage.evaluation.classification_report`."""

    examples: Count
    accuracy: Share
    macro_f1: Share
    calibration_error: Share


class Reports(Struct):
    """The reports on one task."""

    validation: Report | None
    test: Report | None


class Selection(Struct):
    """Which step was chosen, and by which rule."""

    rule: str
    step: Count


class Distillation(Struct):
    """What a student gained over its teacher."""

    smaller: Number
    faster: Number


class Continual(Struct):
    """The measures of a sequence of tasks."""

    average_accuracy: Number | None
    forgetting: Number | None
    forward_transfer: Number | None


class Episodes(Struct):
    """Accuracy over held-out episodes, by method."""

    method: str
    test_episodes: Count
    accuracy: dict[str, Share]

    def __post_init__(self) -> None:
        if self.method not in self.accuracy:
            raise ValueError(f"no accuracy for {self.method[:80]!r}")


class Results(Reports):
    """`results.json` of a fine-tuning run."""

    steps: Count
    selection: Selection
    tasks: dict[str, Reports] = {}
    distillation: Distillation | msgspec.UnsetType = msgspec.UNSET
    continual: Continual | msgspec.UnsetType = msgspec.UNSET
    episodes: Episodes | None = None


class Probe(Struct):
    """One measure of a probe."""

    value: Number


Baselines = dict[str, dict[str, Probe]]
"""`baselines.json` of a pretraining run: {features: {probe: …}}."""


MANIFESTS: dict[str, Any] = {"encoder": Encoder, "classifier": Classifier, "step": Step}


def wrong_shape(shape: Any) -> str | None:
    """Why no array can have this shape, or None."""
    if not isinstance(shape, list | tuple) or not all(
        type(size) is int and size >= 0 for size in shape
    ):
        return "a shape must be a list of non-negative integers"
    if len(shape) > HIGHEST_RANK:
        return f"{len(shape)} dimensions; expected at most {HIGHEST_RANK}"
    # Python's integers: nothing wraps around. Zeros do not excuse what is beside them.
    if math.prod(size or 1 for size in shape) > LONGEST_AXIS:
        return f"shape {list(shape)} is larger than any file"
    return None


def wrong_paths(paths: Iterable[str]) -> list[str]:
    """What is wrong with the paths of a tree's leaves, as `unflatten` takes them."""
    every = set(paths)
    wrong = []
    for path in sorted(every):
        shown = repr(path[:80])
        parts = path.split("/", DEEPEST_PATH)
        if len(path) > LONGEST_PATH or len(parts) > DEEPEST_PATH:
            wrong.append(
                f"a name that begins {shown} has {len(path)} characters; expected at "
                f"most {LONGEST_PATH}, in {DEEPEST_PATH} parts"
            )
            continue
        ups = ("/".join(parts[:n]) for n in range(1, len(parts)))
        wrong += [
            f"{shown} lies inside the array {up[:80]!r}" for up in ups if up in every
        ]
    return wrong
