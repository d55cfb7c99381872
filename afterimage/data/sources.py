"""One string names data; a new kind is one function and one line in `SOURCES`."""

from collections.abc import Callable, Sequence
from typing import Literal

from afterimage.data.arrays import open_npz, open_synthetic
from afterimage.data.catalogue import open_tfds
from afterimage.data.digits import open_digits
from afterimage.data.header import MAX_SAMPLES
from afterimage.data.images import open_folder, open_zip
from afterimage.data.samples import parse_range
from afterimage.data.sets import Splits
from afterimage.data.split_names import OPTIONS
from afterimage.data.table import open_csv
from afterimage.errors import UserError, did_you_mean
from afterimage.reading import ReadingOptions

OnBadImage = Literal["fail", "skip"]

# kind -> (what follows the colon, the function that opens it)
SOURCES: dict[str, tuple[str, Callable[..., Splits]]] = {
    "digits": ("", open_digits),
    "tfds": ("NAME[/CONFIG][:VERSION]", open_tfds),
    "folder": ("PATH", open_folder),
    "zip": ("PATH[,PATH...]", open_zip),
    "csv": ("PATH", open_csv),
    "npz": ("PATH", open_npz),
    "synthetic": ("HxWxC", open_synthetic),
}


def open_data(
    spec: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    value_range: str | tuple[float, float] | None = None,
    on_bad_image: OnBadImage = "fail",
    cache: bool = True,
    tasks: Sequence[str] = (),
    reading: ReadingOptions | None = None,
    strict: bool = True,
) -> Splits:
    """The splits that `spec` names: `digits`, `tfds:NAME`, `folder:PATH`, `zip:PATH`, …

    `image_size` resizes to a square: the short side is scaled, the centre is cropped;
    None keeps the size that all images share. `channels` is 1 (grey), 3 (RGB), or the
    number of bands that the images have; None keeps grey and colour as they are.
    `value_range` is what becomes black and white in images of more than 8 bits:
    (LOW, HIGH), "LOW,HIGH", or "auto", the 0.1 and 99.9 % quantiles of the training
    images; None is the range of their type. 8-bit images are left alone.
    `on_bad_image` "skip" leaves out files that are not images and lists them in
    `ImageSet.skipped`. `cache` keeps decoded images on disk. `tasks` names further
    labels to read, which only npz and csv files have. `reading` says what
    names of folders and cells of tables mean; if not `strict`, the folders that it
    names for splits may be missing. Raises UserError for an unknown spec and DataError
    for data that does not fit it.
    """
    reading = reading or ReadingOptions()
    kind, _, rest = spec.partition(":")
    if kind not in SOURCES or bool(rest) != bool(SOURCES[kind][0]):
        raise UserError(_unknown(spec, kind))
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size {image_size} is not positive")
    if channels is not None and not 1 <= channels <= MAX_SAMPLES:
        raise UserError(
            f"channels {channels}; expected 1 (grey), 3 (RGB) or the number of bands, "
            f"at most {MAX_SAMPLES}"
        )
    if on_bad_image not in ("fail", "skip"):
        raise UserError(f"on_bad_image {on_bad_image!r}; expected 'fail' or 'skip'")
    if tasks and not has_tasks(spec):
        raise UserError(
            f"tasks {', '.join(tasks)}: {spec} has one label an image; list the images "
            "in a table with a column a task, csv:PATH, or give an npz file with the "
            "labels of each, e.g. y_train_NAME beside x_train"
        )
    if reading.split_folders and strict and kind not in ("folder", "zip", "csv"):
        options = ", ".join(OPTIONS[split] for split in reading.split_folders)
        raise UserError(
            f"{options}: {spec} has no folders; these options name folders in folder: "
            "and zip: data, or values of the column split in csv: data"
        )
    return SOURCES[kind][1](
        rest,
        image_size=image_size,
        channels=channels,
        value_range=parse_range(value_range),
        on_bad_image=on_bad_image,
        cache=cache,
        reading=reading,
        strict=strict,
        **({"tasks": tasks} if tasks else {}),
    )


def has_tasks(spec: str) -> bool:
    """Whether data of this kind may have labels of several tasks."""
    return spec.partition(":")[0] in ("csv", "npz")


def forms() -> list[str]:
    """Every form a data spec can take."""
    return [f"{kind}:{rest}" if rest else kind for kind, (rest, _) in SOURCES.items()]


def _unknown(spec: str, kind: str) -> str:
    known = ", ".join(forms())
    if kind in SOURCES:
        form = f"{kind}:{SOURCES[kind][0]}".rstrip(":")
        return f"data {spec!r} is not of the form {form}; expected one of {known}"
    hint = did_you_mean(kind.lower(), SOURCES)
    return f"data {spec!r} is of no known kind{hint} There are: {known}"
