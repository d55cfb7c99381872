"""The numbers in a file -> uint8 as a person sees them, in the range that is asked."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Shaped, UInt8

from afterimage.data.header import NotAnImage, takes_bands
from afterimage.data.resize import change_channels
from afterimage.errors import DataError, UserError

Range = tuple[float, float]
"""(low, high): what becomes 0 and what becomes 255."""

_BLOCK = 2**18  # pixels whose intermediate numbers are in memory together
_CURE = "set the values of black and white, value_range=(LOW, HIGH) or 'auto'"
_OPTION = "(--value-range LOW,HIGH or auto)"


@dataclasses.dataclass(frozen=True)
class Samples:
    """Decoded numbers, not yet a picture.

    `channels` is 1 for grey, 3 for colour, 0 for bands. `bits` of each are used where
    they are unsigned. `alpha` says what the last sample is, if it is transparency.
    `inverted` is for images in which 0 is white. `cmyk` has four samples for colour.
    """

    values: Shaped[np.ndarray, "h w s"]
    channels: int
    bits: int = 8
    alpha: Literal["", "straight", "premultiplied"] = ""
    inverted: bool = False
    cmyk: bool = False

    @property
    def colours(self) -> Shaped[np.ndarray, "h w c"]:
        """Without transparency."""
        return self.values[..., :-1] if self.alpha else self.values


def parse_range(text: str | Range | None) -> Range | Literal["auto"] | None:
    """ "LOW,HIGH" or "auto", or the two numbers themselves; UserError for others."""
    if text is None or text == "auto":
        return text
    try:
        parts = text.split(",") if isinstance(text, str) else text
        low, high = (float(part) for part in parts)
    except (TypeError, ValueError):
        low, high = 0.0, 0.0
    if not (np.isfinite([low, high]).all() and low < high):
        raise UserError(
            f"value_range={text!r}; expected LOW,HIGH with LOW below HIGH, e.g. "
            "0,4095 for 12 bits, or auto"
        )
    return low, high


def spaced(values: Shaped[np.ndarray, "*b c"], most: int = 2**13) -> np.ndarray:
    """At most about `most` of the numbers, of pixels at even distances."""
    pixels = values.reshape(-1, values.shape[-1])
    step = max(1, pixels.size // most)
    return pixels[::step].ravel()


def range_of(parts: Sequence[np.ndarray], name: str) -> Range:
    """The range that "auto" takes: the 0.1 and 99.9 % quantiles of all these numbers.

    Of all bands together. Where these are one number, the least and largest; DataError
    where those are one, too.
    """
    values = np.concatenate([np.empty(0), *parts])
    values = values[np.isfinite(values)]
    if not len(values):
        raise DataError(
            f"{name}: value_range='auto' finds no range: no value is a finite number"
        )
    found = np.quantile(values, [0, 0.001, 0.999, 1]).tolist()
    for low, high in ((1, 2), (0, 3)):
        if found[low] < found[high]:
            return found[low], found[high]
    raise DataError(
        f"{name}: value_range='auto' finds no range: every value is {found[0]:g}; give "
        "LOW,HIGH"
    )


def seen(
    samples: Samples, channels: int, value_range: Range | None
) -> UInt8[np.ndarray, "h w c"]:
    """What a person sees, grey or colour; or the bands as they are, scaled to 8 bits.

    `value_range` is for samples of more than 8 bits, and clips; without it, unsigned
    integers of b bits are divided by 2^b - 1, floats are in [0, 1], and others are
    NotAnImage. Transparency lies over white.
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
    # Transparency has the range of its type, whatever range the colours have.
    opaque = to_bytes(samples.values[..., -1:], samples.bits, None).astype(np.uint32)
    if samples.alpha == "premultiplied":
        return np.minimum(pixels + (255 - opaque), 255).astype(np.uint8)
    return _over_255(pixels * opaque + 255 * (255 - opaque))


def _over_255(product: np.ndarray) -> np.ndarray:
    return ((product + 127) // 255).astype(np.uint8)


def to_bytes(
    values: Shaped[np.ndarray, "*b"], bits: int, value_range: Range | None
) -> UInt8[np.ndarray, "*b"]:
    """Numbers of any type -> 0..255, rounded to the nearest."""
    if values.dtype == np.uint8 and bits == 8:
        return values
    if values.dtype.kind in "biu" and values.dtype.itemsize <= 2:
        scaled = None if values.dtype.itemsize == 1 and bits < 8 else value_range
        return _table(values.dtype.str, bits, scaled)[values.view(_plain(values))]
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise NotAnImage("some values are NaN; write a number there")
    if value_range is None:
        value_range = _default_range(values)
    low, high = value_range
    # A step at a time, clipped first: infinities and large integers are then harmless.
    scaled = np.clip(values.astype(np.float64), low, high) - low
    return np.rint(scaled * (255 / (high - low))).astype(np.uint8)


def _plain(values: np.ndarray) -> np.dtype:
    return np.dtype(f"u{values.dtype.itemsize}")


@functools.lru_cache(16)
def _table(dtype: str, bits: int, value_range: Range | None) -> np.ndarray:
    """The byte of each number of at most 16 bits, by its bit pattern."""
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
            f"float values from {low:g} to {high:g}, not in [0, 1]; {_CURE} {_OPTION}"
        )
    return 0.0, 1.0


def _no_range(dtype: np.dtype) -> str:
    return f"{dtype.name} values, which have no default range; {_CURE} {_OPTION}"
