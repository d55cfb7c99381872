"""Encoded bytes -> what a person sees, as uint8; or why that cannot be.

What Pillow's `convert("RGB")` gets wrong is done here (docs/design/images.md):
16-bit samples are scaled instead of clipped or cut, EXIF orientation is applied, alpha
is composited on white, sizes are judged from the header. JPEGs go through libjpeg-turbo
where every byte is certain; TIFFs are not Pillow's at all (`tiff`).
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
    cover_and_crop,
    seen,
    spaced,
    takes_bands,
)
from afterimage.data.sets import Range
from afterimage.data.tiff import decode_tiff, tiff_header

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
# What a decoder itself keeps of each pixel, in bytes, beside Pillow's image.
_OWN = {"WEBP": 12, "GIF": 8, "JPEG": 3, "MPO": 3}
_BLOCK = 2**18  # pixels that are converted together


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Pillow's warning of too many pixels is an error; around a pool, not inside it."""
    from PIL import Image

    with warnings.catch_warnings():
        # Odd metadata is no reason to drop, or to speak of, a picture.
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_header(file: Any) -> Header:
    """Size and channels, from as few bytes as the format allows; no pixel is decoded.

    `file` is open for reading bytes, and seekable.
    """
    with _reasons():
        start = file.read(132)
        file.seek(0)
        if start[:4] in _TIFF:
            return tiff_header(file)
        with _open(file, start) as image:
            return _header(image, start)


def read_header_of(data: bytes) -> Header:
    """The same of an image in memory."""
    return read_header(io.BytesIO(data))


def decode(
    data: bytes,
    size: tuple[int, int] | None,
    channels: int,
    value_range: Range | None = None,
) -> UInt8[np.ndarray, "h w c"]:
    """The picture at `size` (covered and cropped; None: as it is), grey or RGB.

    Or its bands as they are, where there are `channels` of them. Scales: b-bit integers
    v -> round(255 v / (2^b - 1)); float [0, 1] -> round(255 v); those of more than 8
    bits by `value_range` where given; alpha over white; CMYK by Pillow's formula,
    without colour management.
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
    return (
        np.ascontiguousarray(pixels) if size is None else cover_and_crop(pixels, size)
    )


def some_values(data: bytes) -> np.ndarray:
    """Evenly spaced numbers of an image of more than 8 bits; no transparency."""
    with _reasons():
        wide = _wide(data)
        return spaced(wide[0].colours) if wide else np.empty(0)


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
        elif isinstance(error, LookupError | struct.error):
            message = f"damaged ({kind}: {error})"
        else:
            message = f"{error}" or kind
        raise NotAnImage(message) from error


def _wide(data: bytes) -> tuple[Samples, tuple[bool, bool, bool]] | None:
    """Numbers and turn of a TIFF, or of a PNG with 16 bits; None for other images."""
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
    """Of a PNG; 8 for everything else."""
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
    if wide:  # Pillow's mode is of 8 bits; the colour type tells
        channels, samples = _COLOUR_TYPES.get(start[25], (3, 3))
        each = 4 * samples + 2  # libpng may add transparency
    else:
        channels = 1 if _is_grey(image) else 3
        samples = _samples(image, channels)
        each = {"1": 1, "L": 1, "P": 1}.get(image.mode, 4) + _OWN.get(image.format, 0)
    # The result too, before and after it is turned.
    cost = height * width * (each + 2 * channels)
    return Header(height, width, channels, samples, wide, cost)


def _samples(image: Any, channels: int) -> int:
    """How many a pixel has: transparency counts where it is a channel of its own."""
    return {"LA": 2, "RGBA": 4}.get(image.mode, channels)


def _orientation(image: Any) -> int:
    """EXIF's, or XMP's; read without decoding a pixel."""
    from PIL import Image

    try:
        if image.format == "PNG" and "exif" not in image.info:
            late = _late_exif(image.fp)
            if late:
                image.info["exif"] = _EXIF + late
        # PngImageFile's own would decode the pixels to see what follows them.
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
            file.seek(length + 4, io.SEEK_CUR)  # and its checksum
        return b""
    finally:
        file.seek(here)


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


def _by_pillow(data: bytes, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    with _open(io.BytesIO(data), data) as image:
        turn = TURNS[_orientation(image)]
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            pixels = fast_jpeg(data, image.size, image.mode == "L", size, turn)
            if pixels is not None:
                return pixels
        return turned(_eight_bits(image, channels, _bit_depth(data)), turn)


def _eight_bits(image: Any, channels: int | None, bits: int) -> np.ndarray:
    """An opened image of Pillow's as uint8, not turned; `bits` as in its file."""
    grey = _is_grey(image)  # before loading
    samples = _samples(image, 1 if grey else 3)
    image.load()
    _scale_key(image, bits)
    if samples in (2, 4) and channels == samples:
        return _in_blocks(image, samples, np.asarray)
    mode = "L" if grey else "RGB"
    return _in_blocks(image, len(mode), lambda part: _as_seen(part, mode))


def from_pillow(image: Any, channels: int | None = None) -> np.ndarray:
    """An image of Pillow's as it is seen, turned: [h, w, c]; wide numbers unscaled."""
    with _reasons():
        turn = TURNS[_orientation(image)]
        if image.mode == "F" or image.mode.startswith("I"):
            return turned(np.asarray(image)[..., None], turn)
        return turned(_eight_bits(image, channels, 8), turn)


def _scale_key(image: Any, bits: int) -> None:
    """Pillow scales grey of 2 and 4 bits to 8, but not the value that is clear."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and bits < 8 and key < 2**bits:
        image.info["transparency"] = key * 255 // (2**bits - 1)


def _in_blocks(
    image: Any, channels: int, convert: Callable[[Any], np.ndarray]
) -> np.ndarray:
    """`convert` of some rows at a time: several copies of all would be much memory."""
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


METADATA = ("metadata.csv", "metadata.jsonl")
"""Tables of labels inside a folder of images, as Hugging Face's `imagefolder` reads."""
# Thumbnails, recycle bins and metadata of cameras, file systems and NAS boxes; names
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
    """A suffix of a known format, and nothing hidden on the way."""
    parts = name.split("/")
    return not any(map(is_hidden, parts)) and suffix_of(name) in SUFFIXES


def is_hidden(part: str) -> bool:
    return part.startswith(".") or part.casefold() in _NOT_OURS


def suffix_of(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def is_metadata(name: str) -> bool:
    return posixpath.basename(name) in METADATA and not any(
        map(is_hidden, name.split("/"))
    )
