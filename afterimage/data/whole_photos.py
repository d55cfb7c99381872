"""Photos kept whole: stretched to a square, each beside the proportions that it had.

A view in training can then be cut from all of a photo, where other images keep only
their central square. Whatever is not training sees that square, as always. Decoders
`pack` both, with the proportions, into one array of bytes, so that caches, workers and
shards handle a photo like any other image.
"""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int, UInt8

from afterimage.data.pixels import cover_and_crop, scaled
from afterimage.data.sets import Empty, Images, ImageSet, Joined, Request, Selected


def packed_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape of a packed photo: two images of this shape, and one row."""
    height, width, channels = shape
    return 2 * height + 1, width, channels


def pack(
    image: UInt8[np.ndarray, "h w c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "_h _w c"]:
    """The photo stretched to `size`, its central square, and a row that begins with
    its width / height."""
    height, width, channels = image.shape
    packed = np.zeros(packed_shape((*size, channels)), np.uint8)
    packed[: size[0]] = scaled(image, size)
    packed[size[0] : -1] = cover_and_crop(image, size)
    aspect = np.float32(width / height).tobytes()
    packed[-1].reshape(-1)[: len(aspect)] = np.frombuffer(aspect, np.uint8)
    return packed


def fitted(
    image: UInt8[np.ndarray, "h w c"], size: tuple[int, int] | None, *, whole: bool
) -> UInt8[np.ndarray, "_h _w c"]:
    """An image as it is stored: its central square at `size`, or packed if `whole`;
    unchanged without a size."""
    if size is None:
        return np.ascontiguousarray(image)
    return pack(image, size) if whole else cover_and_crop(image, size)


def shown(images: Images, request: Request) -> Images:
    """Stored images as a set shows them: of packed photos, the central squares."""
    return Centred(images) if request.packs else images


class Centred:
    """The central squares of packed photos, as images."""

    def __init__(self, packed: Images):
        self.packed = packed

    @property
    def shape(self) -> tuple[int, ...]:
        count, height, width, channels = self.packed.shape
        return count, (height - 1) // 2, width, channels

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: Any, /) -> UInt8[np.ndarray, "*b h w c"]:
        rows = np.arange(len(self))[index]
        side = self.shape[1]
        (found,) = self._parts(np.atleast_1d(rows), slice(side, 2 * side))
        return found if rows.ndim else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[np.arange(len(self))], dtype)

    def stretched(
        self, rows: Int[np.ndarray, " b"]
    ) -> tuple[UInt8[np.ndarray, "b h w c"], Float32[np.ndarray, " b"]]:
        """The whole photos, stretched, and their width / height."""
        _, side, width, channels = self.shape
        last = slice(2 * side, 2 * side + 1)
        pixels, row = self._parts(rows, slice(side), last)
        bytes_ = np.ascontiguousarray(row.reshape(len(rows), width * channels)[:, :4])
        return pixels, bytes_.view(np.float32)[:, 0]

    def _parts(self, rows: np.ndarray, *parts: slice) -> list[np.ndarray]:
        """These lines of some packed photos; of files, no others are read."""
        if isinstance(self.packed, np.ndarray):
            return [self.packed[rows, part] for part in parts]
        read = np.asarray(self.packed[rows])
        return [np.ascontiguousarray(read[:, part]) for part in parts]


class WholePhotos:
    """What training on whole photos reads: `image`, stretched, and `aspect`, the
    photo's width / height. `images` are those of data opened with `whole=True`."""

    def __init__(self, images: ImageSet):
        self._images = images
        self.name, self.ids = images.name, images.ids

    @property
    def in_memory(self) -> bool:
        """Whether the photos are an array, not on disk."""
        own = _unselected(self._images.images)
        return type(own.packed if isinstance(own, Centred) else own) is np.ndarray

    @property
    def row_bytes(self) -> int:
        """Bytes of a photo and its proportions."""
        return self._images.row_bytes + 4

    def __len__(self) -> int:
        return len(self._images)

    def inputs(
        self, rows: Int[np.ndarray, " b"], empty: Empty | None = None
    ) -> dict[str, np.ndarray]:
        """{"image": uint8 [b, H, W, C], "aspect": float32 [b]}."""
        del empty
        pixels, aspects = _stretched(self._images.images, np.asarray(rows, np.int64))
        return {"image": pixels, "aspect": aspects}

    def targets(self, rows: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """Those of the images."""
        return self._images.targets(rows)


def _unselected(images: Images) -> Images:
    return images.source if isinstance(images, Selected) else images


def _stretched(
    images: Images, rows: np.ndarray
) -> tuple[np.ndarray, Float32[np.ndarray, " b"]]:
    """Pixels and proportions; those of images that are not packed are their own."""
    if isinstance(images, Selected):
        return _stretched(images.source, images.rows[rows])
    if isinstance(images, Joined):
        pixels = np.empty((len(rows), *images.shape[1:]), np.uint8)
        aspects = np.empty(len(rows), np.float32)
        for mine, part, own in images.owners(rows):
            pixels[mine], aspects[mine] = _stretched(part, own)
        return pixels, aspects
    if isinstance(images, Centred):
        return images.stretched(rows)
    _, height, width, _ = images.shape
    return np.asarray(images[rows]), np.full(len(rows), width / height, np.float32)
