"""Encoded bytes -> the picture as a person sees it, in uint8; or the reason it fails.

Corrects what Pillow's `convert("RGB")` gets wrong (docs/design/images.md): 16-bit
samples are scaled instead of clipped or cut, EXIF orientation is applied, alpha is
composited on white, sizes are checked in the header. libjpeg-turbo decodes JPEGs if it
is sure to give the right bytes; TIFFs never go through Pillow (`tiff`).
"""

import contextlib
import io
import posixpath
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from afterimage.data.kinds import kind_of
from afterimage.data.pixels import (
    MAX_PIXELS,
    TURNS,
    Header,
    NotAnImage,
    Samples,
    change_channels,
    check_extent,
    seen,
    spaced,
    takes_bands,
)
from afterimage.data.sets import Range
from afterimage.data.tiff import decode_tiff, tiff_header
from afterimage.data.whole_photos import fitted

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif"}
    | {".tif", ".tiff"}
)
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF")
_ORIENTATION = 0x0112
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: (1, 1), 2: (3, 3), 4: (1, 2), 6: (3, 4)}  # (channels, samples)
_EXIF = b"Exif\0\0"
# Bytes per pixel that a decoder itself holds, besides Pillow's image.
_OWN = {"WEBP": 12, "GIF": 8, "JPEG": 3, "MPO": 3}
_BLOCK = 2**18  # pixels that are converted together


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Turn Pillow's warning of too many pixels into an error; use it around a pool."""
    from PIL import Image

    with warnings.catch_warnings():
        # Odd metadata is no reason to drop a picture or to warn about it.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_header(file: Any) -> Header:
    """Size and channels, from as few bytes as the format allows; decodes no pixels.

    `file` is a seekable binary file.
    """
    with _reasons():
        start = file.read(132)
        file.seek(0)
        if start[:4] in _TIFF:
            return tiff_header(file)
        with _open(file, start) as image:
            return _header(image, start)


def read_header_of(data: bytes) -> Header:
    """Like `read_header`, for an image in memory."""
    return read_header(io.BytesIO(data))


def decode(
    data: bytes,
    size: tuple[int, int] | None,
    channels: int,
    value_range: Range | None = None,
    *,
    whole: bool = False,
) -> UInt8[np.ndarray, "h w c"]:
    """The picture at `size` (covered and cropped, or packed if `whole`; None:
    unchanged), grey or RGB.

    Or its bands unchanged, if it has `channels` of them. Scaling: b-bit integers
    v -> round(255 v / (2^b - 1)); float [0, 1] -> round(255 v); images of more than 8
    bits by `value_range` if given; alpha over white; CMYK by Pillow's formula, without
    colour management.
    """
    with _reasons():
        wide = _wide(data)
        if wide is not None:
            samples, turn = wide
            pixels = turned(seen(samples, channels, value_range), turn)
        else:
            pixels = bare_jpeg(data, size)
            if pixels is None:
                pixels = _by_pillow(data, size, channels)
    if pixels.shape[2] != channels:
        takes_bands(pixels.shape[2], pixels.shape[2], channels)
        pixels = change_channels(pixels, channels)
    return fitted(pixels, size, whole=whole)


def some_values(data: bytes) -> np.ndarray:
    """Evenly spaced values from an image of more than 8 bits, without transparency."""
    with _reasons():
        wide = _wide(data)
        return spaced(wide[0].colours) if wide else np.empty(0)


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a decoder raises on broken bytes into NotAnImage with a reason."""
    try:
        yield
    except (NotAnImage, MemoryError):
        raise
    except Exception as error:  # struct.error, SyntaxError, OSError, zlib.error, …
        kind = type(error).__name__
        if "DecompressionBomb" in kind:
            message = f"has more than {MAX_PIXELS:,} pixels"
        elif isinstance(error, LookupError | struct.error):
            message = f"damaged ({kind}: {error})"
        else:
            message = f"{error}" or kind
        raise NotAnImage(message) from error


def _wide(data: bytes) -> tuple[Samples, tuple[bool, bool, bool]] | None:
    """Values and orientation of a TIFF or a 16-bit PNG; None for other images."""
    if data[:4] in _TIFF:
        return decode_tiff(data)
    if _bit_depth(data) != 16:
        return None
    import imagecodecs

    with _open(io.BytesIO(data), data) as image:
        turn = TURNS[_orientation(image)]
    values = imagecodecs.png_decode(data)
    values = values.reshape(*values.shape[:2], -1)
    alpha = "straight" if values.shape[2] in (2, 4) else ""
    return Samples(values, 1 if values.shape[2] < 3 else 3, 16, alpha), turn


def _bit_depth(start: bytes) -> int:
    """Bit depth of a PNG; 8 for all other formats."""
    return start[24] if start.startswith(_PNG) and len(start) > 24 else 8


def _open(file: Any, start: bytes) -> Any:
    from PIL import Image

    if not start:
        raise NotAnImage("empty file")
    try:
        image = Image.open(file, formats=_FORMATS)
    except Image.UnidentifiedImageError:
        raise NotAnImage(kind_of(start[:132])) from None
    check_extent(*image.size)
    return image


def _header(image: Any, start: bytes) -> Header:
    width, height = image.size
    if TURNS[_orientation(image)][0]:
        height, width = width, height
    wide = _bit_depth(start) == 16
    if wide:  # Pillow's mode has 8 bits; use the colour type
        channels, samples = _COLOUR_TYPES.get(start[25], (3, 3))
        each = 4 * samples + 2  # libpng may add transparency
    else:
        channels = 1 if _is_grey(image) else 3
        samples = _samples(image, channels)
        each = {"1": 1, "L": 1, "P": 1}.get(image.mode, 4) + _OWN.get(image.format, 0)
    # Include the result, before and after rotation.
    cost = height * width * (each + 2 * channels)
    return Header(height, width, channels, samples, wide, cost)


def _samples(image: Any, channels: int) -> int:
    """Samples per pixel; transparency counts if it is a separate channel."""
    return {"LA": 2, "RGBA": 4}.get(image.mode, channels)


def _orientation(image: Any) -> int:
    """The orientation in EXIF or XMP, read without decoding a pixel."""
    from PIL import Image

    try:
        if image.format == "PNG" and "exif" not in image.info:
            late = _late_exif(image.fp)
            if late:
                image.info["exif"] = _EXIF + late
        # PngImageFile.getexif would decode the pixels to reach what follows them.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # broken metadata says nothing about the pixels
        return 1
    return value if value in TURNS else 1


def _late_exif(file: Any) -> bytes:
    """The eXIf chunk of a PNG, wherever it is; the file's position is restored."""
    here = file.tell()
    try:
        file.seek(len(_PNG))
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            (length,) = struct.unpack(">I", head[:4])
            if head[4:] == b"eXIf":
                return file.read(min(length, 2**20))
            file.seek(length + 4, io.SEEK_CUR)  # data and checksum
        return b""
    finally:
        file.seek(here)


def _is_grey(image: Any) -> bool:
    if image.mode in ("P", "PA"):
        order, values = image.palette.getdata()  # as in the file, before loading
        palette = np.frombuffer(bytes(values), np.uint8)
        if order.endswith(";L"):  # planar: all values of one colour, then the next
            colours = palette.reshape(len(order) - len(";L"), -1).T[:, :3]
        else:
            colours = palette.reshape(-1, len(order))[:, :3]
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")


def _by_pillow(data: bytes, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    with _open(io.BytesIO(data), data) as image:
        turn = TURNS[_orientation(image)]
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            pixels = fast_jpeg(data, image.size, image.mode == "L", size, turn)
            if pixels is not None:
                return pixels
        return turned(_eight_bits(image, channels, _bit_depth(data)), turn)


def _eight_bits(image: Any, channels: int | None, bits: int) -> np.ndarray:
    """An open Pillow image as uint8, not rotated; `bits` as in its file."""
    grey = _is_grey(image)  # before loading
    samples = _samples(image, 1 if grey else 3)
    image.load()
    _scale_key(image, bits)
    if samples in (2, 4) and channels == samples:
        return _in_blocks(image, samples, np.asarray)
    mode = "L" if grey else "RGB"
    return _in_blocks(image, len(mode), lambda part: _as_seen(part, mode))


def from_pillow(image: Any, channels: int | None = None) -> np.ndarray:
    """A Pillow image as displayed, rotated: [h, w, c]; wide values stay unscaled."""
    with _reasons():
        turn = TURNS[_orientation(image)]
        if image.mode == "F" or image.mode.startswith("I"):
            return turned(np.asarray(image)[..., None], turn)
        return turned(_eight_bits(image, channels, 8), turn)


def _scale_key(image: Any, bits: int) -> None:
    """Scale the transparent value: Pillow scales 2- and 4-bit grey to 8, but not it."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and bits < 8 and key < 2**bits:
        image.info["transparency"] = key * 255 // (2**bits - 1)


def _in_blocks(
    image: Any, channels: int, convert: Callable[[Any], np.ndarray]
) -> np.ndarray:
    """`convert` a few rows at a time: several copies of all rows take much memory."""
    width, height = image.size
    out = np.empty((height, width, channels), np.uint8)
    step = max(1, _BLOCK // width)
    for top in range(0, height, step):
        part = image.crop((0, top, width, min(top + step, height)))
        out[top : top + step] = convert(part).reshape(-1, width, channels)
    return out


def _as_seen(image: Any, mode: str) -> np.ndarray:
    from PIL import Image

    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert(mode))


_SCAN = b"\xff\xda"  # the marker before a JPEG's pixels
_NO_SEGMENT = (b"\xda", b"\xff")  # may follow 0xff there: the scan, or fill bytes
_ORIENTED = (b"Exif", b"rientation")  # EXIF, or XMP that mentions it


def bare_jpeg(data: bytes, size: tuple[int, int] | None) -> np.ndarray | None:
    """Decode a JPEG of a common kind without orientation; otherwise None.

    Avoids Pillow, which holds the GIL while reading headers and blocks other threads.
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
    """A JPEG's segments before its first scan; the whole file if they are malformed."""
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
    """Decode a JPEG with libjpeg-turbo, shrinking it by 2, 4 or 8 if possible.

    None if the bytes might be wrong: Pillow then decodes it.
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
            # The following resize smooths colours stored at half size.
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
    """Pixels [h, w, c] in the given orientation (`header.TURNS`), as a view."""
    swap, rows, columns = turn
    if swap:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


METADATA = ("metadata.csv", "metadata.jsonl")
"""Label tables in an image folder, in the format of Hugging Face's `imagefolder`."""
# Thumbnails, recycle bins and metadata of cameras, file systems and NAS devices; names
# that begin with a dot are hidden anyway.
_NOT_OURS = {
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@__thumb",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "recycler",
    "system volume information",
    "lost+found",
    "network trash folder",
    "temporary items",
    "__macosx",
    "thumbs.db",
    "desktop.ini",
}


def is_image_name(name: str) -> bool:
    """Whether a path has a known image suffix and no hidden part."""
    parts = name.split("/")
    return not any(map(is_hidden, parts)) and suffix_of(name) in SUFFIXES


def is_hidden(part: str) -> bool:
    """Whether a part of a path is hidden, or left by an operating system."""
    return part.startswith(".") or part.casefold() in _NOT_OURS


def suffix_of(name: str) -> str:
    """The suffix of a path in lower case, with its dot."""
    return posixpath.splitext(name)[1].lower()


def is_metadata(name: str) -> bool:
    """Whether a path is a metadata table, such as metadata.csv, and not hidden."""
    return posixpath.basename(name) in METADATA and not any(
        map(is_hidden, name.split("/"))
    )
