"""Encoded bytes -> what a person sees, as uint8; or why that cannot be.

What Pillow's `convert("RGB")` gets wrong is done here (research/performance.md §4):
16-bit grey is scaled instead of clipped, floats in [0, 1] do not become zeros, EXIF
orientation is applied, alpha is composited on white, sizes are judged from the header.
"""

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from afterimage.data.resize import change_channels, cover_and_crop

MAX_PIXELS = 89_478_485
"""Largest image decoded: a quarter of a gigabyte as RGB (Pillow's own limit)."""
MAX_ASPECT = 100
"""Longest side over shortest: anything beyond is a strip, not a picture."""
MAX_BYTES = 2**29
"""Largest encoded file read."""
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif"}
    | {".tif", ".tiff"}
)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
_ORIENTATION = 0x0112
_SCAN = b"\xff\xda"  # the marker before a JPEG's pixels
_NO_SEGMENT = (b"\xda", b"\xff")  # what may follow 0xff there: the scan, or filling
_ORIENTED = (b"Exif", b"rientation")  # EXIF, or XMP with a word of it
# EXIF orientation -> (transpose rows and columns first, flip rows, flip columns)
_TURNS = {
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
    """These bytes cannot become a picture; the message says why."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Size as seen, orientation applied; 1 channel for grey, 3 for colour."""

    height: int
    width: int
    channels: int


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Pillow's warning of too many pixels is an error; around a pool, not inside it."""
    from PIL import Image

    with warnings.catch_warnings():
        # Odd metadata is no reason to drop, or to speak of, a picture.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_header(file: io.BufferedIOBase) -> Header:
    """Size and channels, from as few bytes as the format allows."""
    with _reasons(), _open(file) as image:
        width, height = image.size
        if _TURNS[_orientation(image)][0]:
            height, width = width, height
        return Header(height, width, 1 if _is_grey(image) else 3)


def decode(
    data: bytes, size: tuple[int, int] | None, channels: int
) -> UInt8[np.ndarray, "h w c"]:
    """The picture at `size` (covered and cropped; None: as it is), grey or RGB.

    Scales: 16-bit v -> round(v / 257); float [0, 1] -> round(255 v); 1-bit -> 0 and
    255; alpha over white; CMYK by Pillow's formula, without colour management.
    """
    with _reasons():
        pixels = _bare_jpeg(data, size)
        if pixels is None:
            pixels = _by_pillow(data, size)
    pixels = change_channels(pixels, channels)
    return (
        np.ascontiguousarray(pixels) if size is None else cover_and_crop(pixels, size)
    )


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Whatever a decoder raises on broken bytes becomes NotAnImage with a reason."""
    try:
        yield
    except (NotAnImage, MemoryError):
        raise
    except Exception as error:  # struct.error, SyntaxError, OSError, zlib.error, …
        kind = type(error).__name__
        if "DecompressionBomb" in kind:
            message = f"more than {MAX_PIXELS:,} pixels"
        else:
            message = f"{error}" or kind
        raise NotAnImage(message) from error


def _open(file: Any) -> Any:
    from PIL import Image

    start = file.read(64)
    if not start:
        raise NotAnImage("empty file")
    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise NotAnImage(
            "a web page, not an image"
            if start.lstrip().lower().startswith((b"<html", b"<!doctype"))
            else "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise NotAnImage(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise NotAnImage(f"{width}x{height} is a strip, longer than {MAX_ASPECT} to 1")
    return image


def _orientation(image: Any) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata says nothing about the pixels
        return 1
    return value if value in _TURNS else 1


def _is_grey(image: Any) -> bool:
    if image.mode in ("P", "PA"):
        order, values = image.palette.getdata()  # as the file has it, before loading
        palette = np.frombuffer(bytes(values), np.uint8)
        if order.endswith(";L"):  # all of one colour, then all of the next
            colours = palette.reshape(len(order) - len(";L"), -1).T[:, :3]
        else:
            colours = palette.reshape(-1, len(order))[:, :3]
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")


def _by_pillow(data: bytes, size: tuple[int, int] | None) -> np.ndarray:
    with _open(io.BytesIO(data)) as image:
        turn = _TURNS[_orientation(image)]
        pixels = None
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            pixels = _fast_jpeg(data, image.size, image.mode == "L", size, turn)
        if pixels is None:
            image.load()
            # Pillow turns TIFFs itself while loading.
            turn = _TURNS[1] if image.format == "TIFF" else turn
            pixels = _turned(_as_seen(image), turn)
        return pixels


def _bare_jpeg(data: bytes, size: tuple[int, int] | None) -> np.ndarray | None:
    """A JPEG of a usual kind that says nothing of orientation; else None.

    Without Pillow, whose look at the header holds Python's lock: other threads decode.
    """
    import simplejpeg

    if not data.startswith(b"\xff\xd8"):
        return None
    before = _before_scan(data)
    if any(word in before for word in _ORIENTED):
        return None
    try:
        *extent, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    height, width = map(int, extent)
    if (
        colours not in ("Gray", "YCbCr", "RGB")
        or height * width > MAX_PIXELS
        or max(height, width) > MAX_ASPECT * min(height, width)
    ):
        return None
    return _fast_jpeg(data, (width, height), colours == "Gray", size, _TURNS[1])


def _before_scan(data: bytes) -> bytes:
    """A JPEG's segments before its first scan; all of it where they do not add up."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in _NO_SEGMENT:
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[:at] if data[at : at + 2] == _SCAN else data


def _fast_jpeg(
    data: bytes,
    extent: tuple[int, int],
    grey: bool,
    size: tuple[int, int] | None,
    turn: tuple[bool, bool, bool],
) -> np.ndarray | None:
    """A JPEG through libjpeg-turbo, shrunk by 2, 4 or 8 on the way where it may be.

    None where that is not certain of every byte: Pillow then decides.
    """
    import simplejpeg

    width, height = extent
    high, wide = size or (0, 0)
    wanted = (wide, high) if turn[0] else (high, wide)
    factor = 1
    while size and factor < 8 and _shrinks(extent, wanted, 2.0 * factor):
        factor *= 2
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY" if grey else "RGB",
            min_height=height // factor if factor > 1 else 0,
            min_width=width // factor if factor > 1 else 0,
            min_factor=1,
            # Colours at half the size are smoothed by the resize that follows.
            fastupsample=bool(size) and _shrinks(extent, wanted, 1.25),
        )
    except ValueError:
        return None
    return _turned(pixels, turn)


def _shrinks(extent: tuple[int, int], wanted: tuple[int, int], factor: float) -> bool:
    """Whether width x height covers `wanted` (height, width) so many times."""
    width, height = extent
    return min(height / wanted[0], width / wanted[1]) >= factor


def _turned(pixels: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    swap, rows, columns = turn
    if swap:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _as_seen(image: Any) -> np.ndarray:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return _wide(np.asarray(image))[..., None]
    grey = _is_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _wide(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise NotAnImage(f"float values from {low:g} to {high:g}, not in [0, 1]")
        return np.rint(values * 255).astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise NotAnImage(f"integers from {low} to {high}, wider than 16 bits")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
