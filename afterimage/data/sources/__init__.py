"""Data sources: one file per kind, opened by a spec such as `folder:PATH`.

A kind is a subclass of `Source`, registered under the word before the colon. Kinds in
other packages are found through the entry points of `afterimage.plugins`.
"""

import glob
import os
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from afterimage.checkpoints.schemas import MOST_CHANNELS
from afterimage.data.decode import SUFFIXES, suffix_of
from afterimage.data.layout import OPTIONS
from afterimage.data.pixels import parse_range
from afterimage.data.sets import Request, SizeRule, Splits
from afterimage.errors import UserError, did_you_mean, nearest_path
from afterimage.plugins import SOURCES
from afterimage.reading import NumberReading, ReadingOptions
from afterimage.storage.urls import SCHEMES, is_remote

OnBadImage = Literal["fail", "skip"]
_SUFFIXES = {
    ".zip": "zip",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "csv",
    ".npz": "npz",
    ".tar": "tar",
    ".parquet": "parquet",
}
"""The kind of a file given only by its path."""
_SHARDS = {".tar": "tar", ".parquet": "parquet", ".tar.gz": "tar", ".tgz": "tar"}
"""The kind of a pattern by its end; the source explains what it cannot read."""

_OBJECT = "object"


class Source:
    """A kind of data; the first line of its docstring describes it.

    `open` returns `Splits`, or any object that `open_data` accepts: an array, a mapping
    of arrays or of splits, or a sequence of records.
    """

    name: ClassVar[str] = ""
    form: ClassVar[str] = ""
    """The text after the colon, as shown in the help; empty if there is none."""
    tasks: ClassVar[bool] = False
    """Whether an image may have labels for several tasks."""
    numbers: ClassVar[bool] = False
    """Whether labels may be numbers: several labels an image, or measurements."""
    remote: ClassVar[bool] = False
    """Whether the path may be a URL of a bucket, such as s3://BUCKET/photos."""
    named_splits: ClassVar[bool] = False
    """Whether --train, --validation-folder and --test apply."""
    augment: ClassVar[str] = ""
    """The augmentations that the recipe of `pretrain` uses for these images; empty: it
    looks at the images."""

    def open(self, rest: str, request: Request) -> Any:
        """Open the data that the spec names; `rest` is the text after the colon."""
        raise NotImplementedError

    @classmethod
    def spec_form(cls) -> str:
        """The form of a whole spec: `folder:PATH`."""
        return f"{cls.name}:{cls.form}" if cls.form else cls.name


def open_data(
    data: Any,
    *,
    image_size: int | SizeRule | None = None,
    channels: int | None = None,
    value_range: str | tuple[float, float] | None = None,
    rendering: str = "",
    on_bad_image: OnBadImage = "fail",
    cache: bool = True,
    tasks: Sequence[str] = (),
    numbers: NumberReading | None = None,
    reading: ReadingOptions | None = None,
    strict: bool = True,
    once: bool = False,
    lazily: bool = False,
    whole: bool = False,
) -> Splits:
    """The splits of `data`: a spec, a path, or an object that holds images.

    A spec is a text such as `digits`, `folder:PATH` or `tfds:NAME`. A path is that of a
    folder, or of a .zip, .csv, .jsonl, .npz, .tar or .parquet file. An object is an
    array, a mapping of arrays or of splits, or a sequence of records
    (`afterimage.data.objects`).

    `image_size` resizes to a square: the short side is scaled, the centre is cropped;
    None keeps the size that all images share; a function chooses one of these from the
    sizes of the images. `channels` is 1 (grey), 3 (RGB), or the
    number of bands that the images have; None keeps grey and colour unchanged.
    `value_range` gives the values of black and white in images of more than 8 bits:
    (LOW, HIGH), "LOW,HIGH", or "auto", the 0.1 and 99.9 % quantiles of the training
    images; None is the range of their type. It does not affect 8-bit images.
    `rendering` is that of an encoder's images: a source that makes images from
    something else makes them in the same way, or raises DataError.
    `on_bad_image` "skip" skips files that are not images and lists them in
    `ImageSet.skipped`. `cache` keeps decoded files on disk. `tasks` names further
    labels to read; with `numbers`, labels are numbers instead of classes. `reading`
    defines what folder names and table cells mean; if not
    `strict`, the folders it names for splits may be missing. `once` is for a single
    pass: files are read when their images are asked for, as training images, and are
    not cached; folders are not classes; `image_size` and `channels` must be given.
    `lazily` reads and caches no more than that, but keeps classes and splits: broken
    files are found when they are read (`read_or_reason`). `whole` keeps all of a photo
    that is resized, for `WholePhotos`; images are its central square all the same.

    Raises UserError for an unknown spec or object, and DataError for data that does not
    fit.
    """
    if isinstance(image_size, int) and image_size < 1:
        raise UserError(f"image_size={image_size}: must be at least 1")
    if channels is not None and not 1 <= channels <= MOST_CHANNELS:
        raise UserError(
            f"channels={channels}: must be 1 (grey), 3 (RGB) or the number of bands, "
            f"at most {MOST_CHANNELS}"
        )
    if on_bad_image not in ("fail", "skip"):
        raise UserError(f"on_bad_image={on_bad_image!r}: must be 'fail' or 'skip'")
    request = Request(
        image_size=image_size,
        channels=channels,
        value_range=parse_range(value_range),
        rendering=rendering,
        on_bad_image=on_bad_image,
        cache=cache,
        tasks=tuple(tasks),
        numbers=numbers,
        reading=reading or ReadingOptions(),
        strict=strict,
        once=once,
        lazily=lazily,
        whole=whole,
    )
    if not isinstance(data, str | os.PathLike):
        return _of_object(data, None, request)
    spec = spec_of(data)
    kind, _, rest = spec.partition(":")
    source = SOURCES.get(kind)()
    _require_fit(source, spec, rest, request)
    found = source.open(rest, request)
    return found if isinstance(found, Splits) else _of_object(found, spec, request)


def _require_fit(source: Source, spec: str, rest: str, request: Request) -> None:
    """UserError for a spec of another form, and options that the source lacks."""
    if bool(rest) != bool(source.form):
        raise UserError(
            f"data {spec!r} is not of the form {source.spec_form()}; expected one of "
            f"{', '.join(forms())}"
        )
    remote = source.form and any(f"{scheme}://" in rest for scheme in SCHEMES)
    if remote and not source.remote:
        raise UserError(
            f"data {spec}: {source.name}: is read from this machine only; copy it "
            "here, or give a folder, a table or an archive in the bucket"
        )
    if request.tasks and not source.tasks:
        raise UserError(
            f"tasks {', '.join(request.tasks)}: {spec} has only one label per "
            "image. Use a table with a column per task, csv:PATH, or an npz file with "
            "the labels of each, e.g. y_train_NAME beside x_train"
        )
    if request.numbers is not None and not source.numbers:
        raise UserError(
            f"{spec} has one class per image. For {request.numbers.kind}, list the "
            "images and their labels in a table, csv:PATH, or use an npz file or an "
            "object"
        )
    folders = request.reading.split_folders
    if folders and request.strict and not source.named_splits:
        options = ", ".join(OPTIONS[split] for split in folders)
        raise UserError(
            f"{options}: {spec} has no folders. These options name folders in folder: "
            "and zip: data, or values of the column split in csv: data"
        )


def _of_object(data: Any, name: str | None, request: Request) -> Splits:
    from afterimage.data.objects import open_object

    return open_object(data, name, request)


def spec_of(data: str | os.PathLike[str]) -> str:
    """The spec for a spec or a path; UserError if it is neither.

    Text that begins with the name of a kind is a spec, even if a path has this name.
    """
    text, kinds = os.fspath(data), SOURCES.names()
    kind, _, _ = text.partition(":")
    if isinstance(data, str) and kind in kinds:
        return text
    if kind == _OBJECT:
        raise UserError(
            f"data {text!r}: this run was given a Python object; pass it again as "
            "data=…"
        )
    suffix = os.path.splitext(text)[1].lower()
    if is_remote(text):
        if suffix_of(text) in SUFFIXES:
            raise UserError(f"data {text!r}: give the folder of this image")
        for end, shards in _SHARDS.items():
            if text.lower().endswith(end):
                return f"{shards}:{text}"
        return f"{_SUFFIXES.get(suffix, 'folder')}:{text}"
    place = os.path.expanduser(text)
    if os.path.isdir(place):
        return f"folder:{text}"
    if os.path.exists(place) and suffix in _SUFFIXES:
        return f"{_SUFFIXES[suffix]}:{text}"
    for end, shards in _SHARDS.items():
        pattern = glob.has_magic(text) or "{" in text or os.path.isfile(place)
        if text.lower().endswith(end) and pattern:
            return f"{shards}:{text}"
    if suffix_of(text) in SUFFIXES and (os.path.isfile(place) or glob.has_magic(text)):
        return f"files:{text}"
    if glob.has_magic(text) and glob.glob(place, recursive=True):
        return f"files:{text}"
    if os.path.exists(place):
        raise UserError(
            f"data {text!r} is a file of unknown type; expected a folder of images, "
            f"or a file ending in {', '.join(_SUFFIXES)}"
        )
    hint = did_you_mean(kind.lower(), kinds)
    if hint == "." and kind == text:
        hint = nearest_path(place)
    raise UserError(
        f"data {text!r} is not an existing path or a known kind of data{hint} There "
        f"are: {', '.join(forms())}"
    )


def object_spec(data: Any) -> str:
    """The data as recorded in a run: the spec or path, or an object's type."""
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    return f"{_OBJECT}:{type(data).__name__}"


def source_of(data: str | os.PathLike[str]) -> type[Source]:
    """The kind of a spec or a path; UserError if it is neither."""
    return SOURCES.get(spec_of(data).partition(":")[0])


def has_tasks(data: Any) -> bool:
    """Whether data of this kind may have labels for several tasks."""
    if not isinstance(data, str | os.PathLike):
        return True
    return source_of(data).tasks


def forms() -> list[str]:
    """All forms of a data spec."""
    return [SOURCES.get(kind).spec_form() for kind in SOURCES.names()]
