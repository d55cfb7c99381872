"""JPEG through libjpeg-turbo, without Pillow: where that is certain of every byte."""

import numpy as np

from afterimage.data.header import TURNS, check_extent

_SCAN = b"\xff\xda"  # the marker before a JPEG's pixels
_NO_SEGMENT = (b"\xda", b"\xff")  # what may follow 0xff there: the scan, or filling
_ORIENTED = (b"Exif", b"rientation")  # EXIF, or XMP with a word of it


def bare_jpeg(data: bytes, size: tuple[int, int] | None) -> np.ndarray | None:
    """A JPEG of a usual kind that says nothing of orientation; else None.

    Without Pillow, whose header reading holds Python's lock and blocks other threads.
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
    check_extent(width, height)
    if colours not in ("Gray", "YCbCr", "RGB"):
        return None
    return fast_jpeg(data, (width, height), colours == "Gray", size, TURNS[1])


def _before_scan(data: bytes) -> bytes:
    """A JPEG's segments before its first scan; all of it where they do not add up."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in _NO_SEGMENT:
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[:at] if data[at : at + 2] == _SCAN else data


def fast_jpeg(
    data: bytes,
    extent: tuple[int, int],
    grey: bool,
    size: tuple[int, int] | None,
    turn: tuple[bool, bool, bool],
) -> np.ndarray | None:
    """A JPEG through libjpeg-turbo, shrunk by 2, 4 or 8 on the way where it may be.

    None if that is not certain of every byte: Pillow then decodes it.
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
    return turned(pixels, turn)


def _shrinks(extent: tuple[int, int], wanted: tuple[int, int], factor: float) -> bool:
    """Whether width x height covers `wanted` (height, width) `factor` times."""
    width, height = extent
    return min(height / wanted[0], width / wanted[1]) >= factor


def turned(pixels: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """Pixels [h, w, c] as an orientation (`header.TURNS`) says: a view."""
    swap, rows, columns = turn
    if swap:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]
