"""The meaning of pixel values, and their conversion to uint8 of one size."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Num, Shaped, UInt8

from afterimage.data.sets import Range
from afterimage.errors import DataError, UserError

MAX_PIXELS = 89_478_485
"""Largest image decoded: a quarter of a gigabyte as RGB (Pillow's own limit)."""
MAX_ASPECT = 100
"""Maximum ratio of the longest to the shortest side."""
MAX_BYTES = 2**29
"""Size of the largest encoded file that is read, in bytes."""
# EXIF orientation -> (transpose rows and columns first, flip rows, flip columns)
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class NotAnImage(ValueError):
    """These bytes are not a usable picture; the message says why."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Displayed size, with orientation applied, and the kind of pixels.

    `channels` is 1 for grey, 3 for colour, and 0 for bands that are neither. `samples`
    is the number of values per pixel in the file, including transparency. `wide` means
    that they have more than 8 bits. `cost` is an upper bound on the bytes that decoding
    takes. `pages` counts pages of the same size, up to a few; only the first is read.
    """

    height: int
    width: int
    channels: int
    samples: int
    wide: bool
    cost: int
    pages: int = 1


def check_extent(width: int, height: int) -> None:
    """Raise NotAnImage for sizes that no picture has."""
    if min(width, height) < 1:
        raise NotAnImage(f"{width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise NotAnImage(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise NotAnImage(
            f"{width}x{height}: the longer side is more than {MAX_ASPECT} times the "
            "shorter"
        )


def takes_bands(channels: int, samples: int, asked: int) -> bool:
    """Whether `asked` channels are the file's samples unchanged: any number of bands.

    Otherwise grey or colour as displayed. NotAnImage if neither is possible.
    """
    if asked == samples and (asked not in (1, 3) or channels == 0):
        return True
    if channels in (1, 3) and asked in (1, 3):
        return False
    raise NotAnImage(f"{count(channels, samples)}, but channels={asked} needs {asked}")


def check_seen(header: Header) -> None:
    """Raise NotAnImage for bands if no number of channels was given."""
    if not header.channels:
        raise NotAnImage(
            f"{header.samples} bands, but grey has 1 and RGB 3; set "
            f"channels={header.samples} (--channels {header.samples}) to use them "
            "unchanged"
        )


def count(channels: int, samples: int) -> str:
    """ "grey", "colour" or "5 bands"."""
    return {1: "grey", 3: "colour"}.get(channels, f"{samples} bands")


_BLOCK = 2**18  # pixels whose intermediate values are in memory at the same time
_CURE = "set the values of black and white, value_range=(LOW, HIGH) or 'auto'"
_OPTION = "(--value-range LOW,HIGH or auto)"


@dataclasses.dataclass(frozen=True)
class Samples:
    """Decoded values, not yet a picture.

    `channels` is 1 for grey, 3 for colour, 0 for bands. Unsigned values use `bits` bits
    each. `alpha` gives the kind of transparency in the last sample, if any. `inverted`
    means that 0 is white. `cmyk` means four samples for colour.
    """

    values: Shaped[np.ndarray, "h w s"]
    channels: int
    bits: int = 8
    alpha: Literal["", "straight", "premultiplied"] = ""
    inverted: bool = False
    cmyk: bool = False

    @property
    def colours(self) -> Shaped[np.ndarray, "h w c"]:
        """The values without transparency."""
        return self.values[..., :-1] if self.alpha else self.values


def parse_range(text: str | Range | None) -> Range | Literal["auto"] | None:
    """Parse "LOW,HIGH", "auto" or a pair of numbers; UserError for anything else."""
    if text is None or text == "auto":
        return text
    try:
        parts = text.split(",") if isinstance(text, str) else text
        low, high = (float(part) for part in parts)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (np.isfinite([low, high]).all() and low < high):
        raise UserError(
            f"value_range={text!r}; expected auto, or LOW,HIGH with LOW less than "
            "HIGH, e.g. 0,4095 for 12 bits"
        )
    return low, high


def spaced(values: Shaped[np.ndarray, "*b c"], most: int = 2**13) -> np.ndarray:
    """At most about `most` of the values, from evenly spaced pixels."""
    pixels = values.reshape(-1, values.shape[-1])
    step = max(1, pixels.size // most)
    return pixels[::step].ravel()


def range_of(parts: Sequence[np.ndarray], name: str) -> Range:
    """The range for "auto": the 0.1 and 99.9 % quantiles of all these values.

    All bands count together. If the quantiles are equal, the minimum and maximum;
    DataError if these are equal too.
    """
    values = np.concatenate([np.empty(0), *parts])
    values = values[np.isfinite(values)]
    if not len(values):
        raise DataError(
            f"{name}: value_range='auto' found no range: no value is a finite number"
        )
    found = np.quantile(values, [0, 0.001, 0.999, 1]).tolist()
    for low, high in ((1, 2), (0, 3)):
        if found[low] < found[high]:
            return found[low], found[high]
    raise DataError(
        f"{name}: value_range='auto' found no range: every value is {found[0]:g}; set "
        "LOW,HIGH"
    )


def seen(
    samples: Samples, channels: int, value_range: Range | None
) -> UInt8[np.ndarray, "h w c"]:
    """The picture as displayed, grey or colour; or its bands, scaled to 8 bits.

    `value_range` applies to samples of more than 8 bits, and clips. Without it,
    unsigned integers of b bits are divided by 2^b - 1, floats must be in [0, 1], and
    other types raise NotAnImage. Transparency is composited on white.
    """
    values = samples.values
    bands = takes_bands(samples.channels, values.shape[2], channels)
    out = np.empty((*values.shape[:2], channels), np.uint8)
    for rows in _blocks(values):
        part = dataclasses.replace(samples, values=values[rows])
        out[rows] = (
            _bands(part, value_range)
            if bands
            else change_channels(_picture(part, value_range), channels)
        )
    return out


def _blocks(values: np.ndarray) -> Iterator[slice]:
    step = max(1, _BLOCK // values.shape[1])
    for top in range(0, len(values), step):
        yield slice(top, top + step)


def _bands(samples: Samples, value_range: Range | None) -> np.ndarray:
    return to_bytes(samples.values, samples.bits, value_range)


def _picture(samples: Samples, value_range: Range | None) -> np.ndarray:
    pixels = to_bytes(samples.colours, samples.bits, value_range)
    if samples.inverted:
        pixels = 255 - pixels
    if samples.cmyk:
        rest = 255 - pixels.astype(np.uint32)
        pixels = _over_255(rest[..., :3] * rest[..., 3:])
    if not samples.alpha:
        return pixels
    # Transparency uses the range of its type, whatever the range of the colours.
    opaque = to_bytes(samples.values[..., -1:], samples.bits, None).astype(np.uint32)
    if samples.alpha == "premultiplied":
        return np.minimum(pixels + (255 - opaque), 255).astype(np.uint8)
    return _over_255(pixels * opaque + 255 * (255 - opaque))


def _over_255(product: np.ndarray) -> np.ndarray:
    return ((product + 127) // 255).astype(np.uint8)


def to_bytes(
    values: Shaped[np.ndarray, "*b"], bits: int, value_range: Range | None
) -> UInt8[np.ndarray, "*b"]:
    """Values of any type -> 0..255, rounded to the nearest."""
    if values.dtype == np.uint8 and bits == 8:
        return values
    if values.dtype.kind in "biu" and values.dtype.itemsize <= 2:
        scaled = None if values.dtype.itemsize == 1 and bits < 8 else value_range
        return _table(values.dtype.str, bits, scaled)[values.view(_plain(values))]
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise NotAnImage("some values are NaN; replace them with numbers")
    if value_range is None:
        value_range = _default_range(values)
    low, high = value_range
    # Clip first, one step at a time: infinities and large integers are then harmless.
    scaled = np.clip(values.astype(np.float64), low, high) - low
    return np.rint(scaled * (255 / (high - low))).astype(np.uint8)


def _plain(values: np.ndarray) -> np.dtype:
    return np.dtype(f"u{values.dtype.itemsize}")


@functools.lru_cache(16)
def _table(dtype: str, bits: int, value_range: Range | None) -> np.ndarray:
    """A byte for each value of at most 16 bits, indexed by its bit pattern."""
    kind = np.dtype(dtype)
    plain = np.arange(2 ** (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    values = plain.astype(kind) if kind.kind == "b" else plain.view(kind)
    if value_range is None:
        if kind.kind == "i":
            raise NotAnImage(_no_range(kind))
        value_range = (0.0, 1.0 if kind.kind == "b" else 2.0**bits - 1)
    low, high = value_range
    scaled = (np.clip(values.astype(np.float64), low, high) - low) * (
        255 / (high - low)
    )
    return np.rint(scaled).astype(np.uint8)


def _default_range(values: np.ndarray) -> Range:
    if values.dtype.kind != "f":
        raise NotAnImage(_no_range(values.dtype))
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise NotAnImage(
            f"float values from {low:g} to {high:g}; expected [0, 1]. Otherwise "
            f"{_CURE} {_OPTION}"
        )
    return 0.0, 1.0


def _no_range(dtype: np.dtype) -> str:
    return f"{dtype.name} values, which have no standard range; {_CURE} {_OPTION}"


def cover_box(
    height: int, width: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The centred box (top, left, height, width) with the proportions of `size`."""
    scale = min(height / size[0], width / size[1])
    box_height = min(height, max(1, round(size[0] * scale)))
    box_width = min(width, max(1, round(size[1] * scale)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def cover_and_crop(
    image: Num[np.ndarray, "h w c"], size: tuple[int, int]
) -> Num[np.ndarray, "hh ww c"]:
    """Scale to cover `size` and crop the centre, without distortion.

    Shrinking to half or less averages over area. Shrinking less interpolates linearly
    between neighbours, without an antialiasing filter, so fine patterns may alias
    (averaging costs five times as much). Enlarging is bicubic, clipped to the range of
    the input's type.
    """
    top, left, height, width = cover_box(image.shape[0], image.shape[1], size)
    return scaled(image[top : top + height, left : left + width], size)


def scaled(
    part: Num[np.ndarray, "h w c"], size: tuple[int, int]
) -> Num[np.ndarray, "hh ww c"]:
    """Scale to `size`, whatever the proportions; interpolated as `cover_and_crop`."""
    import cv2

    height, width, _ = part.shape
    if (height, width) == size:
        return np.ascontiguousarray(part)
    ratio = min(height / size[0], width / size[1])
    how = cv2.INTER_CUBIC if ratio < 1 else cv2.INTER_LINEAR
    how = cv2.INTER_AREA if ratio >= 2 else how
    # OpenCV resizes up to four channels together, and accepts a crop without a copy.
    groups = [part[..., i : i + 4] for i in range(0, part.shape[2], 4)]
    done = [
        cv2.resize(group, size[::-1], interpolation=how).reshape(*size, -1)
        for group in groups
    ]
    result = done[0] if len(done) == 1 else np.concatenate(done, -1)
    return result if part.dtype == np.uint8 else np.clip(result, 0, 1)


_LUMA_BLOCK = 2**20  # pixels made grey together, with wider intermediate values


def looks_channels_first(shape: tuple[int, ...], channels: int | None) -> bool:
    """Whether images given as [N, H, W, C] are probably [N, C, H, W].

    `channels` is the expected number. No picture is 1 to 4 pixels high, and few have
    that many channels unless they were requested.
    """
    if len(shape) != 4 or shape[3] in (1, 3):
        return False
    few = 1 <= shape[1] <= 4 and min(shape[2:]) > 4
    return few or (channels not in (None, shape[3]) and shape[1] == channels)


def transposed_hint(shape: tuple[int, ...]) -> str:
    """The hint for such images."""
    return (
        f"images have shape {shape}; channels seem to come first. Pass "
        "images.transpose(0, 2, 3, 1), which is [N, H, W, C]"
    )


def change_channels(
    images: Num[np.ndarray, "*b h w c"], channels: int
) -> Num[np.ndarray, "*b h w cc"]:
    """Grey <-> RGB; grey is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as Pillow)."""
    have = images.shape[-1]
    if looks_channels_first(images.shape, channels):
        raise UserError(transposed_hint(images.shape))
    if have == channels:
        return images
    if have == 1 and channels == 3:
        return np.repeat(images, 3, -1)
    if have == 3 and channels == 1:
        if images.dtype == np.uint8:
            return _luma(images)
        luma = images @ np.array([0.299, 0.587, 0.114], images.dtype)
        return luma[..., None]
    raise UserError(
        f"images have {have} channel{'s' * (have != 1)}; expected {channels}. Only "
        "grey (1) and RGB (3) can be converted to each other. Use data with "
        f"{channels} channels"
    )


def _luma(images: np.ndarray) -> np.ndarray:
    # Pillow's integer weights, so that both paths give the same bytes.
    weights = np.array([19595, 38470, 7471], np.uint32)
    pixels = images.reshape(-1, 3)
    grey = np.empty(len(pixels), np.uint8)
    for start in range(0, len(pixels), _LUMA_BLOCK):
        block = slice(start, start + _LUMA_BLOCK)
        grey[block] = (pixels[block] @ weights + 0x8000) >> 16
    return grey.reshape(*images.shape[:-1], 1)
