"""The JSON files we read back: a strict parser, and one schema per kind of file.

The parser is stricter than `json.loads`: no NaN, no number beyond a double, no
duplicate keys, no nesting beyond 64 levels. Schemas are strict about types (a string is
not a number, a boolean not an integer) and bound every size and count. Unknown fields
are kept unchecked, unless the schema forbids them. (`metrics.jsonl` is read line by
line: `afterimage.training.metrics`.)
"""

import collections
import functools
import importlib.metadata
import json
import math
import pathlib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import ml_dtypes
import msgspec
from msgspec import Meta, Struct

from afterimage.checkpoints import files
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.names import shown

LARGEST_SIDE = 2**14
"""Pixels: maximum height or width of the images that a model is built for."""
MOST_CHANNELS = 1024
"""Channels of an image."""
WIDEST = 2**20
"""Maximum size of a bottleneck or of the hidden layer of a head."""
LARGEST_LABELS = 2**28
"""Maximum bytes of `labels.json`: the names of a few million images."""
LONGEST_AXIS = 2**40
"""Maximum size of one axis of an array."""
HIGHEST_RANK = 64
"""NumPy's maximum number of dimensions of an array."""
DEEPEST_PATH = 64
LONGEST_PATH = 1024

Count = Annotated[int, Meta(ge=0, le=2**53)]
Number = Annotated[float, Meta(gt=-1e300, lt=1e300)]
Name = Annotated[str, Meta(max_length=1024)]
Side = Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]
Channels = Annotated[int, Meta(ge=1, le=MOST_CHANNELS)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Pixel = Annotated[float, Meta(gt=-1e38, lt=1e38)]
"""A pixel value; must fit in float32."""
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


class ModelFields(Struct, forbid_unknown_fields=True):
    """`afterimage.models.ModelConfig`, which checks that its names are known.

    `package` is the package of a third-party encoder, as `name version`.
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


class PreprocessingFields(Struct):
    """`afterimage.data.Preprocessing`."""

    image_size: tuple[Side, Side]
    mean: Statistics
    std: Statistics
    channels: Channels
    value_range: tuple[Number, Number] | None = None
    normalisation: Literal["data", "image"] = "data"
    rendering: Annotated[str, Meta(max_length=1000)] = ""

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{len(self.mean)} means and {len(self.std)} standard deviations for "
                f"{self.channels} channels"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std {min(self.std):g} is not greater than 0")
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} is empty")


class FeatureInfoFields(Struct):
    """`afterimage.models.FeatureInfo`."""

    name: Name
    channels: Annotated[int, Meta(ge=1, le=WIDEST)]
    stride: Annotated[int, Meta(ge=1, le=2**14)]


class DataFields(Struct):
    """The images a run was made with."""

    name: str
    fingerprint: str


class VectorFields(Struct):
    """The feature vector (`afterimage.models.vector`), and how it was chosen."""

    pool: Name
    transform: Name
    images: Count = 0
    filters: Count = 0
    """Filters of the dictionary of patches that is joined to the maps."""
    hog: bool = False
    """Whether HOG is joined too."""
    rule: Name = ""
    scores: Annotated[list[Free], Meta(max_length=64)] = []


Accuracies = dict[Name, dict[Name, Annotated[float, Meta(ge=0, le=1)]]]


class ProbesFields(Struct):
    """What the feature vector was found to be good for."""

    effective_rank: Number
    train: Count = 0
    images: Count = 0
    classes: Count = 0
    per_class: Count = 0
    accuracy: Accuracies = {}
    """{features: {probe: share of the held-out images}}; empty without labels."""


class EncoderManifest(Struct, kw_only=True):
    """`manifest.json` of an encoder folder, beyond the fields of every manifest."""

    model: ModelFields
    preprocessing: PreprocessingFields
    data: DataFields
    trained: Free
    feature_info: Annotated[list[FeatureInfoFields], Meta(max_length=64)]
    vector: VectorFields | None = None
    probes: ProbesFields | None = None

    def __post_init__(self) -> None:
        if self.model.channels != self.preprocessing.channels:
            raise ValueError(
                f"model.channels is {self.model.channels}, preprocessing.channels "
                f"{self.preprocessing.channels}"
            )


class OutputsFields(Struct, forbid_unknown_fields=True):
    """`afterimage.outputs.Outputs.entry`: a head that predicts no single class."""

    kind: Annotated[str, Meta(pattern="^(multi-label|regression)$")]
    columns_read: list[str]
    threshold: Annotated[float, Meta(ge=0, le=1)] | msgspec.UnsetType = msgspec.UNSET
    empty: Annotated[str, Meta(pattern="^(unlabelled|none)$")] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    mean: list[float] | msgspec.UnsetType = msgspec.UNSET
    std: list[Annotated[float, Meta(gt=0)]] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        wanted = {"multi-label": {"threshold", "empty"}, "regression": {"mean", "std"}}
        every = set().union(*wanted.values())
        given = {name for name in every if getattr(self, name) is not msgspec.UNSET}
        if given != wanted[self.kind]:
            raise ValueError(f"expected {' and '.join(sorted(wanted[self.kind]))}")


class HeadFields(Struct, forbid_unknown_fields=True):
    """`afterimage.models.classifier.HeadConfig` and the names of its classes."""

    classes: Annotated[int, Meta(ge=1, le=2**24)]
    kind: Name
    features: Name
    keep: Annotated[int, Meta(ge=1, le=2**24)] | None
    width: Annotated[int, Meta(ge=1, le=WIDEST)] | None
    class_names: list[str]
    outputs: OutputsFields | None = None

    def __post_init__(self) -> None:
        given = self.outputs
        for numbers in (given.mean, given.std) if given is not None else ():
            if numbers is not msgspec.UNSET and len(numbers) != self.classes:
                raise ValueError(f"{len(numbers)} statistics of {self.classes} numbers")
        if given is None and self.classes < 2:
            raise ValueError("1 class; expected at least 2")
        if len(self.class_names) != self.classes:
            raise ValueError(
                f"{len(self.class_names)} names for {self.classes} classes"
            )


class ClassifierManifest(EncoderManifest, kw_only=True):
    """`manifest.json` of a classifier folder."""

    heads: Annotated[dict[Name, HeadFields], Meta(min_length=1)]


class DetectorManifest(Struct, kw_only=True):
    """`manifest.json` of a detector of anomalies."""

    scorer: Free
    """Its name and settings."""
    encoder: Sha256
    """Of the encoder's parameters."""
    normal: Free
    """Where the normal images are from, and how many there were."""
    fitted: Annotated[int, Meta(ge=1)]
    """Normal images that it was fitted to, …"""
    held_out: Annotated[int, Meta(ge=1)]
    """… and those that its threshold comes from."""
    false_alarms: Annotated[float, Meta(gt=0, lt=1)]
    threshold: Number


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


class StepMetrics(Struct):
    """What the training loop stores with a step; a stage may add to it."""

    interval: dict[str, tuple[Number, Count]] = {}
    """[sum, steps] by metric, since the last line of metrics.jsonl."""


class StepManifest(Struct):
    """`manifest.json` of a step, beyond the fields of every manifest."""

    step: Count
    created: Name
    metric: Number | None
    best: Annotated[str, Meta(pattern="^(min|max)$")] | None
    manifest: StepMetrics
    leaves: dict[str, Leaf]

    def __post_init__(self) -> None:
        if wrong := wrong_paths(self.leaves):
            raise ValueError("; ".join(wrong[:10]))


class OriginFields(Struct):
    """The encoder that a pretraining run began from."""

    path: str
    checksum: Name


class ConfigFile(Struct):
    """`config.json` of a run folder."""

    kind: Name
    config: Free
    data: DataFields | None = None
    origin: OriginFields | None = msgspec.field(name="from", default=None)
    runtime: Free = {}


class SessionsFile(Struct):
    """`sessions.json` of a run folder: the time it took, and its commands."""

    started: Name
    seconds: Annotated[float, Meta(ge=0, lt=1e12)]
    sessions: Count
    commands: Annotated[list[str], Meta(max_length=64)]


class Used(Struct):
    """Names of the images whose labels were used, by class."""

    train: dict[str, list[str]]
    validation: dict[str, list[str]]


class LabelsFile(Used):
    """`labels.json` of a fine-tuning run."""

    data: str
    classes: list[str]
    rule: str
    held_out: dict[str, list[str]] = {}
    """Images to test on, if the data has no test split."""
    tasks: dict[str, Used] = {}


class Share(Struct):
    """A metric and its interval; null where it was not finite."""

    value: Number | None
    low: Number | None
    high: Number | None


_SHARES = {
    "classes": ("accuracy", "macro_f1", "calibration_error"),
    "multi-label": ("mean_average_precision", "micro_f1", "macro_f1"),
    "regression": (),
}


class NumberFields(Struct):
    """The figures of one number that is predicted."""

    name: str
    examples: Count
    mae: Share
    rmse: Share
    r2: Share
    points: list[tuple[Number, Number]] = []
    """(true, predicted) of some of the examples."""


class ReportFields(Struct):
    """`afterimage.outputs.Outputs.report`, of any kind."""

    examples: Count
    kind: Annotated[str, Meta(pattern="^(classes|multi-label|regression)$")] = "classes"
    accuracy: Share | msgspec.UnsetType = msgspec.UNSET
    macro_f1: Share | msgspec.UnsetType = msgspec.UNSET
    calibration_error: Share | msgspec.UnsetType = msgspec.UNSET
    mean_average_precision: Share | msgspec.UnsetType = msgspec.UNSET
    micro_f1: Share | msgspec.UnsetType = msgspec.UNSET
    threshold: Number | msgspec.UnsetType = msgspec.UNSET
    outputs: list[NumberFields] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        needed = list(_SHARES[self.kind])
        needed += ["threshold"] if self.kind == "multi-label" else []
        needed += ["outputs"] if self.kind == "regression" else []
        missing = [n for n in needed if getattr(self, n) is msgspec.UNSET]
        if missing:
            raise ValueError(f"missing {', '.join(missing)}")


class TaskReports(Struct):
    """The reports on one task."""

    validation: ReportFields | None
    test: ReportFields | None


class Selection(Struct):
    """The selected step, and the rule that selected it."""

    rule: str
    step: Count


class DistillationFields(Struct):
    """A student's results compared with its teacher's."""

    smaller: Number
    faster: Number


class ContinualFields(Struct):
    """The metrics of a sequence of tasks."""

    average_accuracy: Number | None
    forgetting: Number | None
    forward_transfer: Number | None


class EpisodesFields(Struct):
    """Accuracy over held-out episodes, by method."""

    method: str
    test_episodes: Count
    accuracy: dict[str, Share]

    def __post_init__(self) -> None:
        if self.method not in self.accuracy:
            raise ValueError(f"the accuracy of {self.method[:80]!r} is missing")


class ResultsFile(TaskReports):
    """`results.json` of a fine-tuning run."""

    steps: Count
    selection: Selection
    tasks: dict[str, TaskReports] = {}
    distillation: DistillationFields | msgspec.UnsetType = msgspec.UNSET
    continual: ContinualFields | msgspec.UnsetType = msgspec.UNSET
    episodes: EpisodesFields | None = None


class ProbeFields(Struct):
    """One metric of a probe."""

    value: Number


class BaselineFields(Struct):
    """The probes of one kind of features."""

    knn: ProbeFields
    ridge_10: ProbeFields
    ridge: ProbeFields


Baselines = dict[str, BaselineFields]
"""`baselines.json` of a pretraining run, by kind of features."""


MANIFESTS: dict[str, Any] = {
    "encoder": EncoderManifest,
    "classifier": ClassifierManifest,
    "detector": DetectorManifest,
    "step": StepManifest,
}
"""The schema of each kind of manifest that is ours."""
GROUP = "afterimage.artefacts"
"""Entry points by which a package adds kinds: the kind, and its schema, a Struct."""


@functools.cache
def _added() -> dict[str, importlib.metadata.EntryPoint]:
    return {one.name: one for one in importlib.metadata.entry_points(group=GROUP)}


def kinds() -> tuple[str, ...]:
    """Every kind of manifest, ours and those of other packages; imports nothing."""
    return (*MANIFESTS, *(kind for kind in _added() if kind not in MANIFESTS))


def schema_of(kind: str) -> Any:
    """The schema of one of `kinds`; CheckpointError if its package is broken."""
    if kind in MANIFESTS:
        return MANIFESTS[kind]
    try:
        return _added()[kind].load()
    except ImportError as error:
        raise CheckpointError(
            f"A {kind} needs {_added()[kind].value}, which cannot be imported: {error}"
        ) from error


def wrong_shape(shape: Any) -> str | None:
    """Why this shape is impossible for an array, or None."""
    if not isinstance(shape, list | tuple) or not all(
        type(size) is int and size >= 0 for size in shape
    ):
        return "a shape must be a list of non-negative integers"
    if len(shape) > HIGHEST_RANK:
        return f"{len(shape)} dimensions; expected at most {HIGHEST_RANK}"
    # Python integers cannot overflow. A zero does not excuse a huge axis beside it.
    if math.prod(size or 1 for size in shape) > LONGEST_AXIS:
        return f"shape {list(shape)} is larger than any file"
    return None


def wrong_paths(paths: Iterable[str]) -> list[str]:
    """Problems with the paths of a tree's leaves, as given to `unflatten`."""
    every = set(paths)
    wrong = []
    for path in sorted(every):
        name = repr(path[:80])
        parts = path.split("/", DEEPEST_PATH)
        if len(path) > LONGEST_PATH or len(parts) > DEEPEST_PATH:
            wrong.append(
                f"a name starting with {name} has {len(path)} characters; expected at "
                f"most {LONGEST_PATH}, in {DEEPEST_PATH} parts"
            )
            continue
        ups = ("/".join(parts[:n]) for n in range(1, len(parts)))
        wrong += [
            f"{name} is inside the array {up[:80]!r}" for up in ups if up in every
        ]
    return wrong


MOST = 16 * 2**20
"""Bytes of a manifest or a header; ours take a few hundred bytes per leaf."""
_DEEPEST = 64
_LISTED = 10  # problems per message


def parse(data: bytes | str) -> Any:
    """The value of strict JSON in UTF-8; ValueError says what is wrong with it."""
    try:
        if isinstance(data, bytes):
            data = data.decode()
        value = _DECODER.decode(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: {error.reason} at {error.start}") from None
    except json.JSONDecodeError as error:
        text = f"is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        raise ValueError(text) from None
    except RecursionError:
        raise ValueError(f"is nested deeper than {_DEEPEST} levels") from None
    except _Refused:
        raise
    except ValueError:  # Python limits the digits of an integer
        raise ValueError("contains an integer of thousands of digits") from None
    if reason := _beyond(value):
        raise ValueError(reason)
    return value


def read(path: pathlib.Path, kind: Any, cure: str, *, most: int = MOST) -> Any:
    """The plain value of a JSON file that matches the schema `kind`.

    Raises CheckpointError listing every mismatch and ending in `cure`.
    """
    try:
        value = parse(files.read_bytes(path, most))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} {files.reason(error)}; {cure}.") from None
    if wrong := mistakes(value, kind):
        raise CheckpointError(f"{path} is damaged: {listed(wrong)}; {cure}.")
    return value


def mistakes(value: Any, kind: Any, where: str = "") -> list[str]:
    """Every place where a JSON value does not match the schema `kind`; [] if none."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, OverflowError, UnicodeError) as error:
        said = str(error).partition(" - at `$")[0].replace("`", "")
        return _inside(value, kind, where) or [f"{where}: {said}" if where else said]
    return []


def listed(lines: list[str]) -> str:
    """The first few mistakes, each shortened, and how many more there are."""
    more = len(lines) - _LISTED
    text = "; ".join(line[:300] for line in lines[:_LISTED])
    return text + (f"; and {more} more" if more > 0 else "")


def in_lines(lines: Sequence[str], most: int = 100) -> str:
    """The first few mistakes, one per indented line, and how many more there are."""
    more = len(lines) - most
    lines = [*lines[:most], *([f"and {more} more"] if more > 0 else [])]
    return "".join(f"\n  {line}" for line in lines)


def _inside(value: Any, kind: Any, where: str) -> list[str]:
    """The mistakes in a value's parts, where the schema defines parts."""
    kind = _of_objects(kind)
    if kind is None or not isinstance(value, dict):
        return []
    prefix = f"{where}." if where else ""
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        parts = {shown(name): (part, inner) for name, part in value.items()}
        found = []
    else:
        fields = msgspec.structs.fields(kind)
        names = {field.encode_name: field for field in fields}
        parts = {n: (value[n], field.type) for n, field in names.items() if n in value}
        missing = [n for n, f in names.items() if f.required and n not in value]
        found = [f"{prefix}{name}: missing" for name in missing]
    for name, (part, inner) in parts.items():
        found += mistakes(part, inner, prefix + name)
    return found


def _of_objects(kind: Any) -> Any:
    """The schema of the objects that `kind` allows: a Struct or dict, or None."""
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        found = map(_of_objects, typing.get_args(kind))
        return next((inner for inner in found if inner is not None), None)
    of_objects = typing.get_origin(kind) is dict or (
        isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    )
    return kind if of_objects else None


class _Refused(ValueError):
    """Valid for the parser, but not for us."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = collections.Counter(name for name, _ in pairs)
        name = names.most_common(1)[0][0]
        raise _Refused(f"has the key {shown(name)} twice in one object")
    return value


def _constant(text: str) -> Any:
    raise _Refused(f"contains {text}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _beyond(value: Any) -> str | None:
    """The limit (nesting or number size) that a value exceeds; None if none."""
    level = [value]
    for _ in range(_DEEPEST + 1):
        inside = []
        for part in level:
            if isinstance(part, dict):
                inside.extend(part.values())
            elif isinstance(part, list):
                inside.extend(part)
            elif isinstance(part, int) and part.bit_length() > 64:
                return (
                    f"contains an integer of {part.bit_length()} bits; at most 64 are "
                    "allowed"
                )
            elif isinstance(part, float) and not math.isfinite(part):
                return "contains a number too large for a double"
        if not inside:
            return None
        level = inside
    return f"is nested deeper than {_DEEPEST} levels"
