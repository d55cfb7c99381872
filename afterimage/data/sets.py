"""What every data source becomes: images of one shape, labels, names, a fingerprint."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Integer, UInt8

from afterimage.data.buffers import Buffers
from afterimage.errors import DataError

UNLABELLED = -1
"""The label of an image whose class is not known."""


@runtime_checkable
class Images(Protocol):
    """Random access to uint8 images: an array, a memmap, or a lazy decoder."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class Joined:
    """Images of several sets of one shape, one after the other, without a copy."""

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
        owner = np.searchsorted(self._ends, rows, side="right")
        for number, part in enumerate(self._parts):
            mine = owner == number
            if mine.any():
                first = self._ends[number] - len(part)
                out[mine] = np.asarray(part[rows[mine] - first])
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[np.arange(len(self))], dtype)


@dataclasses.dataclass(frozen=True)
class BadImage:
    """A file that is not the image its name promises, and why."""

    path: str
    reason: str


class Selected:
    """Some rows of other images, by index and without a copy."""

    def __init__(self, images: Images, rows: Int[np.ndarray, " n"]):
        # A selection of a selection looks up once, not twice.
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
class ImageSet:
    """One split of a data set, every image with the same shape.

    `images` is uint8 [N, H, W, C] and may live on disk: read through `gather`. `labels`
    are class indices into `class_names`, -1 where unknown; None when nothing is
    labelled. `fingerprint` is a SHA-256 of content, order, labels and shape: two sets
    with the same one hold the same images, wherever they were read from. `skipped`
    names the files left out. `tasks` are further labels of the same images, by name.
    `value_range` is what became 0 and 255 in images of more than 8 bits.
    """

    images: Images
    labels: Int32[np.ndarray, " n"] | None
    ids: Sequence[str]
    class_names: tuple[str, ...] | None
    name: str
    fingerprint: str
    skipped: tuple[BadImage, ...] = ()
    tasks: Mapping[str, Labels] = dataclasses.field(default_factory=dict)
    value_range: tuple[float, float] | None = None

    def __post_init__(self):
        counts = {len(self.images), len(self.ids)}
        counts |= {len(task.values) for task in self.tasks.values()}
        counts |= set() if self.labels is None else {len(self.labels)}
        if len(counts) != 1 or len(self.images.shape) != 4:
            raise DataError(
                f"{self.name}: {self.images.shape} images, {len(self.ids)} ids and "
                f"{None if self.labels is None else len(self.labels)} labels do not "
                "fit together; expected images [N, H, W, C] and N of the others"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether the images are an array, or rows of one, and not on disk."""
        images = self.images
        images = images.source if isinstance(images, Selected) else images
        return type(images) is np.ndarray  # a memory map is a subclass

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def gather(
        self,
        indices: Integer[np.ndarray, " b"] | Sequence[int],
        buffers: Buffers | None = None,
    ) -> UInt8[np.ndarray, "b h w c"]:
        """The images at these positions, in this order, as one array in memory.

        With `buffers` it is one of these, where the images are an array or mapped.
        """
        images, rows = self.images, np.asarray(indices, np.int64)
        if isinstance(images, Selected):
            images, rows = images.source, images.rows[rows]
        if not isinstance(images, np.ndarray):
            return np.asarray(images[rows])
        if buffers is None:  # `take` is faster than an index
            return np.asarray(images.take(rows, 0))
        if rows.min() < -len(images) or rows.max() >= len(images):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(images)} images")
        out = buffers.take((len(rows), *images.shape[1:]), images.dtype)
        # "wrap" counts negative rows from the end, and needs no second buffer.
        return np.take(images, rows, 0, out, mode="wrap")

    def subset(self, indices: Integer[np.ndarray, " b"] | Sequence[int]) -> "ImageSet":
        """The set of these positions, in this order; shares the pixels."""
        rows = np.asarray(indices, np.int64)
        digest = hashlib.sha256(self.fingerprint.encode() + rows.tobytes())
        return dataclasses.replace(
            self,
            images=Selected(self.images, rows),
            labels=None if self.labels is None else self.labels[rows],
            ids=[self.ids[row] for row in rows],
            fingerprint=digest.hexdigest(),
            tasks={
                name: dataclasses.replace(task, values=task.values[rows])
                for name, task in self.tasks.items()
            },
        )

    def of_task(self, name: str) -> "ImageSet":
        """The same images with a task's labels; without labels where it has none."""
        task = self.tasks.get(name)
        return dataclasses.replace(
            self,
            labels=None if task is None else task.values,
            class_names=None if task is None else task.class_names,
            name=f"{self.name}, task {name}",
            tasks={},
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """What a data source offers: training images and, where given, the others.

    A given test split is for testing only; cut validation from train with `hold_out`.
    """

    train: ImageSet
    validation: ImageSet | None = None
    test: ImageSet | None = None

    @property
    def skipped(self) -> tuple[BadImage, ...]:
        """What was left out of any split, each once."""
        sets = (self.train, self.validation, self.test)
        found = (bad for images in sets if images for bad in images.skipped)
        return tuple(dict.fromkeys(found))


def content_fingerprint(
    pixels: Sequence[bytes] | np.ndarray,
    labels: np.ndarray | None,
    ids: Sequence[str],
    shape: tuple[int, ...],
    tasks: Mapping[str, Labels] | None = None,
) -> str:
    """SHA-256 over pixels (an array, or a digest of each file), labels, ids, shape.

    And over the labels of further tasks.
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
    return fingerprint


def array_set(
    images: UInt8[np.ndarray, "n h w c"],
    labels: Int32[np.ndarray, " m"] | None,
    class_names: tuple[str, ...] | None,
    name: str,
    ids: Sequence[str] | None = None,
    tasks: Mapping[str, Labels] | None = None,
    value_range: tuple[float, float] | None = None,
) -> ImageSet:
    """An ImageSet of an array in memory; ids are positions where none are given."""
    ids = [str(i) for i in range(len(images))] if ids is None else ids
    tasks = tasks or {}
    fingerprint = content_fingerprint(images, labels, ids, images.shape, tasks)
    return ImageSet(
        images,
        labels,
        ids,
        class_names,
        name,
        fingerprint,
        tasks=tasks,
        value_range=value_range,
    )
