"""The form of all data: images of one shape, labels, a fingerprint."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64, Integer, UInt8

from afterimage.errors import DataError, UserError
from afterimage.reading import NumberReading, ReadingOptions

UNLABELLED = -1
"""The label of an image of unknown class."""

Part = TypeVar("Part")
Range = tuple[float, float]
"""(low, high): the values mapped to 0 and 255."""
Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
"""Allocates memory for an array, like np.empty."""
Sizes = Sequence[tuple[int, int]]
"""(height, width) of images."""
SizeRule = Callable[[Sizes], int | None]
"""Chooses the side that images of these sizes are resized to; None keeps their size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """How to read data; `open_data` documents each setting."""

    image_size: int | SizeRule | None = None
    channels: int | None = None
    value_range: Range | Literal["auto"] | None = None
    rendering: str = ""
    on_bad_image: Literal["fail", "skip"] = "fail"
    cache: bool = True
    tasks: tuple[str, ...] = ()
    numbers: NumberReading | None = None
    reading: ReadingOptions
    strict: bool = True
    once: bool = False
    lazily: bool = False
    whole: bool = False

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) to resize to; None keeps the size of the images."""
        if callable(self.image_size):
            raise TypeError("a rule for the size was not applied: see `sized`")
        return None if self.image_size is None else (self.image_size, self.image_size)

    @property
    def packs(self) -> bool:
        """Whether photos are stored packed (`whole_photos`): whole, if resized."""
        return self.whole and self.size is not None

    def sized(self, sizes: Callable[[], Sizes]) -> "Request":
        """The same request, with the side that its rule chooses if it has a rule.

        `sizes` gives the sizes of the images, and is called only then.
        """
        if not callable(self.image_size):
            return self
        return dataclasses.replace(self, image_size=self.image_size(sizes()))


@runtime_checkable
class Images(Protocol):
    """Random access to uint8 images: an array, a memmap, or a lazy decoder."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@runtime_checkable
class Rows(Protocol):
    """What batches are made of: an `ImageSet`, a `Columns`, or a package's own set."""

    @property
    def name(self) -> str: ...

    @property
    def ids(self) -> Sequence[str]:
        """The name of each row, for messages."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether reading rows costs no disk access."""
        ...

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's inputs, which may stay on the devices."""
        ...

    def __len__(self) -> int: ...

    def inputs(
        self, rows: Int[np.ndarray, " b"], empty: Empty | None = None
    ) -> dict[str, np.ndarray]:
        """{name: array [b, …]} of these rows' inputs, e.g. `image`."""
        ...

    def targets(self, rows: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """{name: array [b, …]} of what is known about them, e.g. `label`."""
        ...


class Joined:
    """Images of several sets of one shape, concatenated without a copy."""

    def __init__(self, parts: Sequence[Images]):
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any, /) -> Any:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return self[rows[None]][0]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for mine, part, own in self.owners(rows):
            out[mine] = np.asarray(part[own])
        return out

    def owners(
        self, rows: np.ndarray
    ) -> Iterator[tuple[Bool[np.ndarray, " b"], Images, np.ndarray]]:
        """(which of these rows, their part, their rows in it) for each part."""
        owner = np.searchsorted(self._ends, rows, side="right")
        for number, part in enumerate(self._parts):
            mine = owner == number
            if mine.any():
                yield mine, part, rows[mine] - (self._ends[number] - len(part))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[np.arange(len(self))], dtype)


class Names(Sequence[str]):
    """Names that are made when they are asked for: ten million would fill memory."""

    def __init__(self, name: Callable[[int], str], rows: Int[np.ndarray, " n"] | range):
        self._name, self._rows = name, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any, /) -> Any:
        if isinstance(index, slice):
            return Names(self._name, self._rows[index])
        return self._name(int(self._rows[index]))

    def take(self, rows: Int[np.ndarray, " n"]) -> "Names":
        """The names at these positions, in this order."""
        own = self._rows
        every = isinstance(own, range) and own == range(len(own))
        return Names(self._name, rows if every else np.take(own, rows))


@dataclasses.dataclass(frozen=True)
class BadImage:
    """A file that is not the image its name promises, and the reason."""

    path: str
    reason: str


class Selected:
    """Some rows of other images, by index and without a copy."""

    def __init__(self, images: Images, rows: Int[np.ndarray, " n"]):
        # A selection of a selection needs one lookup, not two.
        if isinstance(images, Selected):
            images, rows = images.source, images.rows[rows]
        self.source, self.rows = images, rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.source.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any, /) -> Any:
        return self.source[self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[np.arange(len(self))], dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Labels of one task: class indices, -1 where unknown, and the classes' names."""

    values: Int32[np.ndarray, " n"]
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
    """Labels that are numbers: 0 or 1 for each of several labels, or measurements."""

    values: Float32[np.ndarray, "n k"]
    """NaN where unknown."""
    names: tuple[str, ...]

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Whether an image has a label: any number that is known."""
        return ~np.isnan(self.values).all(axis=1)

    def rows(self, chosen: np.ndarray) -> "Numbers":
        """The numbers of these images, in this order."""
        return dataclasses.replace(self, values=self.values[chosen])


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set, with all images of the same shape.

    `images` is uint8 [N, H, W, C] and may be on disk: read it with `gather`. `labels`
    are class indices into `class_names`, -1 where unknown; None if nothing is labelled.
    `fingerprint` is a SHA-256 of content, order, labels and shape: two sets with the
    same fingerprint hold the same images, wherever they come from. `skipped` lists the
    skipped files. `tasks` are further labels of the same images, by name. `value_range`
    holds the values mapped to 0 and 255 in images of more than 8 bits. `rendering` says
    how the images were made from something else, such as sound; empty for pictures.
    Where labels are `numbers`, the set has no classes.
    """

    images: Images
    labels: Int32[np.ndarray, " n"] | None
    ids: Sequence[str]
    class_names: tuple[str, ...] | None
    name: str
    fingerprint: str
    skipped: tuple[BadImage, ...] = ()
    tasks: Mapping[str, Labels] = dataclasses.field(default_factory=dict)
    value_range: Range | None = None
    rendering: str = ""
    numbers: Numbers | None = None

    def __post_init__(self):
        counts = {len(self.images), len(self.ids)}
        counts |= {len(task.values) for task in self.tasks.values()}
        counts |= set() if self.labels is None else {len(self.labels)}
        counts |= set() if self.numbers is None else {len(self.numbers.values)}
        if len(counts) != 1 or len(self.images.shape) != 4:
            raise DataError(
                f"{self.name}: {self.images.shape} images, {len(self.ids)} ids and "
                f"{None if self.labels is None else len(self.labels)} labels do not "
                "match; expected images [N, H, W, C], N ids and N labels"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether the images are an array or rows of one, not on disk."""
        images = self.images
        images = images.source if isinstance(images, Selected) else images
        return type(images) is np.ndarray  # a memory map is a subclass

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    @property
    def identity(self) -> dict[str, str]:
        """`name` and `fingerprint`, for manifests."""
        return {"name": self.name, "fingerprint": self.fingerprint}

    @property
    def truth(self) -> np.ndarray | None:
        """What is learned: the classes [n], or the numbers [n, k]."""
        return self.labels if self.numbers is None else self.numbers.values

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape)

    def inputs(
        self, rows: Int[np.ndarray, " b"], empty: Empty | None = None
    ) -> dict[str, np.ndarray]:
        """{"image": uint8 [b, H, W, C]}."""
        return {"image": self.gather(rows, empty)}

    def targets(self, rows: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """{"label": the set's `truth` where it is labelled, "label.NAME" of tasks}."""
        found = {} if self.truth is None else {"label": self.truth[rows]}
        tasks = {f"label.{name}": t.values[rows] for name, t in self.tasks.items()}
        return found | tasks

    def gather(
        self,
        indices: Integer[np.ndarray, " b"] | Sequence[int],
        empty: Empty | None = None,
    ) -> UInt8[np.ndarray, "b h w c"]:
        """The images at these positions, in this order, as one array in memory.

        `empty`, a function like np.empty, allocates its memory if the images are an
        array or memory-mapped.
        """
        images, rows = self.images, np.asarray(indices, np.int64)
        if isinstance(images, Selected):
            images, rows = images.source, images.rows[rows]
        if not isinstance(images, np.ndarray):
            return np.asarray(images[rows])
        if empty is None:  # `take` is faster than an index
            return np.asarray(images.take(rows, 0))
        if rows.min() < -len(images) or rows.max() >= len(images):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(images)} images")
        out = empty((len(rows), *images.shape[1:]), images.dtype)
        # "wrap" counts negative rows from the end, and needs no second buffer.
        return np.take(images, rows, 0, out, mode="wrap")

    def subset(self, indices: Integer[np.ndarray, " b"] | Sequence[int]) -> "ImageSet":
        """The set of images at these positions, in this order; shares the pixels."""
        rows = np.asarray(indices, np.int64)
        digest = hashlib.sha256(self.fingerprint.encode() + rows.tobytes())
        return dataclasses.replace(
            self,
            images=Selected(self.images, rows),
            labels=None if self.labels is None else self.labels[rows],
            ids=self.ids.take(rows)
            if isinstance(self.ids, Names)
            else [self.ids[row] for row in rows],
            fingerprint=digest.hexdigest(),
            tasks={
                name: dataclasses.replace(task, values=task.values[rows])
                for name, task in self.tasks.items()
            },
            numbers=None if self.numbers is None else self.numbers.rows(rows),
        )

    def of_task(self, name: str) -> "ImageSet":
        """The same images with the labels of a task; without labels if it has none."""
        task = self.tasks.get(name)
        return dataclasses.replace(
            self,
            labels=None if task is None else task.values,
            class_names=None if task is None else task.class_names,
            name=f"{self.name}, task {name}",
            tasks={},
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """Rows of any kind: named arrays in memory of equal length, e.g. `tokens` [N, L].

    `label`, and names that start with `label.`, are targets; the others are inputs.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    ids: Sequence[str]

    def __post_init__(self):
        lengths = {name: len(array) for name, array in self.arrays.items()}
        lengths["ids"] = len(self.ids)
        if taken := {"index", "mask", "step"} & set(self.arrays):
            raise DataError(
                f"{self.name}: a batch has its own {', '.join(sorted(taken))}; give "
                "the column another name"
            )
        if len(set(lengths.values())) != 1:
            raise DataError(f"{self.name}: columns of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def in_memory(self) -> bool:
        """Always: no file is read for a row."""
        return True

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's inputs."""
        inputs = [a for name, a in self.arrays.items() if not _is_target(name)]
        return sum(a.dtype.itemsize * math.prod(a.shape[1:]) for a in inputs)

    def inputs(
        self, rows: Int[np.ndarray, " b"], empty: Empty | None = None
    ) -> dict[str, np.ndarray]:
        """The arrays that are not targets, at these rows."""
        del empty
        return {n: a[rows] for n, a in self.arrays.items() if not _is_target(n)}

    def targets(self, rows: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """The targets, at these rows."""
        return {n: a[rows] for n, a in self.arrays.items() if _is_target(n)}


def _is_target(name: str) -> bool:
    return name == "label" or name.startswith("label.")


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """The splits of a data source: training images and, if given, the others.

    Use a given test split only for testing; cut validation from train with `hold_out`.
    """

    train: ImageSet
    validation: ImageSet | None = None
    test: ImageSet | None = None

    @property
    def skipped(self) -> tuple[BadImage, ...]:
        """The files skipped in any split, each listed once."""
        sets = (self.train, self.validation, self.test)
        found = (bad for images in sets if images for bad in images.skipped)
        return tuple(dict.fromkeys(found))


def content_fingerprint(
    pixels: Sequence[bytes] | np.ndarray,
    labels: np.ndarray | None,
    ids: Sequence[str],
    shape: tuple[int, ...],
    tasks: Mapping[str, Labels] | None = None,
    numbers: Numbers | None = None,
) -> str:
    """SHA-256 of pixels (an array, or a digest of each file), labels, ids and shape.

    Includes the labels of further tasks, and labels that are numbers.
    """
    digest = hashlib.sha256(repr(tuple(int(n) for n in shape)).encode())
    if isinstance(pixels, np.ndarray):
        digest.update(np.ascontiguousarray(pixels).data)
    else:
        digest.update(b"".join(pixels))
    digest.update(b"" if labels is None else labels.astype("<i4").tobytes())
    digest.update("\0".join(ids).encode())
    fingerprint = digest.hexdigest()
    for key, task in sorted((tasks or {}).items()):
        more = f"{fingerprint} {key} {task.class_names}".encode()
        more += task.values.astype("<i4").tobytes()
        fingerprint = hashlib.sha256(more).hexdigest()
    if numbers is not None:
        more = f"{fingerprint} {numbers.names}".encode()
        more += numbers.values.astype("<f4").tobytes()
        fingerprint = hashlib.sha256(more).hexdigest()
    return fingerprint


def array_set(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int32[np.ndarray, " m"] | None,
    class_names: tuple[str, ...] | None,
    name: str,
    ids: Sequence[str] | None = None,
    tasks: Mapping[str, Labels] | None = None,
    value_range: Range | None = None,
    numbers: Numbers | None = None,
) -> ImageSet:
    """An ImageSet from an array in memory; ids default to positions."""
    ids = [str(i) for i in range(len(images))] if ids is None else ids
    tasks = tasks or {}
    fingerprint = content_fingerprint(images, labels, ids, images.shape, tasks, numbers)
    return ImageSet(
        images,
        labels,
        ids,
        class_names,
        name,
        fingerprint,
        tasks=tasks,
        value_range=value_range,
        numbers=numbers,
    )


def stratified(
    labels: np.ndarray | None, size: int, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    """Sorted positions (kept, held): holds out `fraction` of each class, by seed.

    Each class gives its share to within one image (largest remainders first) and keeps
    at least one; unlabelled images count as one more class.
    """
    rng = np.random.default_rng(seed)
    labels = np.full(size, UNLABELLED) if labels is None else labels
    classes, counts = np.unique(labels, return_counts=True)
    share = fraction * counts
    held_counts = np.floor(share).astype(int)
    missing = max(round(fraction * size), 1) - held_counts.sum()
    for position in np.argsort(held_counts - share, kind="stable")[:missing]:
        held_counts[position] += 1
    held_counts = np.minimum(held_counts, counts - 1)
    held = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, held_counts, strict=True)
    ]
    chosen = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(size), chosen), chosen


def with_held_out(
    parts: Mapping[str, Part],
    shares: Mapping[str, float],
    seed: int,
    take: Callable[[Part, Int64[np.ndarray, " n"]], Part],
    *,
    source: str,
    what: str = "images",
    fewest: int = 1,
) -> dict[str, Part]:
    """The parts {train, …}, and those of `shares` drawn by seed that are not given.

    `take(part, rows)` gives some rows of a part. A share of 0 is left out. Raises
    DataError where fewer than `fewest` rows would be held out.
    """
    found = dict(parts)
    for name, share in shares.items():
        if name in found or not share:
            continue
        train = found["train"]
        size = len(train)  # pyright: ignore[reportArgumentType]
        kept, held = stratified(None, size, share, seed)
        if len(held) < fewest:
            raise DataError(
                f"{source}: {size:,} {what} are too few to hold out {share:.0%} for "
                f"{name}: that gives {len(held)}, and at least {fewest} must be; add "
                f"{what}" + ("" if fewest > 1 else ", or set this share to 0")
            )
        found["train"], found[name] = take(train, kept), take(train, held)
    return found


def hold_out(
    images: ImageSet, fraction: float, seed: int, strata: np.ndarray | None = None
) -> tuple[ImageSet, ImageSet]:
    """Cut a validation set: (train, validation), stratified where labelled, by seed.

    `fraction` in (0, 1) of each class goes to validation, or of each of the `strata`.
    A set too small to hold out one image raises DataError.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"validation={fraction}: must be between 0 and 1; 0.1 holds out one image "
            "in ten"
        )
    strata = images.labels if strata is None else strata
    kept, held = stratified(strata, len(images), fraction, seed)
    if not len(held):
        raise DataError(
            f"{images.name}: {len(images)} images are too few to hold out "
            f"{fraction:.0%} for validation, as each class must keep at least one"
        )
    return images.subset(kept), images.subset(held)


def choose_labels(
    images: ImageSet,
    *,
    labels: int | None = None,
    per_class: int | None = None,
    classes: Sequence[int] | None = None,
    seed: int,
) -> Int64[np.ndarray, " k"]:
    """Sorted positions of a balanced subset of the labelled images, by seed.

    `labels` in total (spread over the classes to within one), or `per_class` of each.
    `classes` limits it to these class numbers, without changing their share. With the
    same seed, a larger choice contains every smaller one. Raises DataError that names
    any class with too few images.
    """
    if (labels is None) == (per_class is None):
        raise UserError("give either labels or per_class")
    if images.labels is None or images.class_names is None:
        raise DataError(f"{images.name} has no labels to choose from")
    count = len(images.class_names)
    rng = np.random.default_rng(seed)
    # The seed also decides which classes get one more, so it is not always the first.
    order = rng.permutation(count)
    if per_class is not None:
        wanted = np.full(count, per_class)
    else:
        assert labels is not None
        wanted = np.full(count, labels // count)
        wanted[order[: labels % count]] += 1
    if wanted.min() < 1:
        asked = f"labels={labels}" if per_class is None else f"per_class={per_class}"
        raise UserError(
            f"{asked} leaves a class of {images.name} without an image; its {count} "
            f"classes need at least {count} labels"
        )
    if classes is not None:
        wanted[np.setdiff1d(np.arange(count), classes)] = 0
    have = np.bincount(images.labels[images.labels >= 0], minlength=count)
    short = [
        f"{images.class_names[c]!r} has {have[c]}, {wanted[c]} requested"
        for c in np.flatnonzero(have < wanted)
    ]
    if short:
        raise DataError(
            f"{images.name} has too few labelled images: {'; '.join(short)}. Request "
            "fewer labels"
        )
    chosen = [
        rng.permutation(np.flatnonzero(images.labels == c))[: wanted[c]]
        for c in range(count)
    ]
    return np.sort(np.concatenate(chosen))
