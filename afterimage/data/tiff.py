"""TIFF, read with tifffile: the header bounds every size before decoding.

Supports TIFF 6.0 and Adobe's supplements for floats and predictors. tifffile returns
the values as stored, so this module interprets the tags.
"""

import contextlib
import dataclasses
import io
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from afterimage.checkpoints.schemas import MOST_CHANNELS
from afterimage.data.pixels import (
    TURNS,
    Header,
    NotAnImage,
    Samples,
    check_extent,
)

_ORIENTATION = 274
_MAX_SEGMENTS = 2**20
_MOST_PAGES = 16  # to count: a hostile file may have millions
_GREY, _RGB, _PALETTE, _CMYK, _YCBCR = (0, 1), 2, 3, 5, 6
_JPEG = 7
# Those whose output size the header bounds. JPEG 2000, LERC, WebP, PNG and JPEG XL
# streams carry their own sizes.
_COMPRESSIONS = {1, 2, 3, 4, 5, _JPEG, 8, 32773, 32946, 34925, 50000}
_COLOURS = {  # unsupported PhotometricInterpretation -> its description
    4: "a transparency mask",
    8: "CIELAB colours",
    9: "ICC LAB colours",
    10: "ITU LAB colours",
    32803: "the mosaic of a camera's sensor",
    32844: "LogL luminances",
    32845: "LogLuv colours",
    34892: "linear raw data of a camera",
}
_ALPHA = {1: "premultiplied", 2: "straight"}


def tiff_header(file: Any) -> Header:
    """Size, bands and cost of the first page, from its tags."""
    with _page(file) as page:
        return dataclasses.replace(_header(page), pages=_pages(page))


def decode_tiff(data: bytes) -> tuple[Samples, tuple[bool, bool, bool]]:
    """(values of the first page, its orientation)."""
    with _page(io.BytesIO(data)) as page:
        _header(page)
        _check_segments(page, data)
        values = page.asarray(squeeze=False, maxworkers=1)
        return _samples(page, _as_image(values)), _turn(page)


@contextlib.contextmanager
def _page(file: Any) -> Iterator[Any]:
    import tifffile

    # Its warnings do not help our users; it raises errors.
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    with tifffile.TiffFile(file, name="image") as tiff:
        yield tiff.pages.first


def _pages(first: Any) -> int:
    """Number of pages with the size of the first, without thumbnails and the like."""
    count = 1
    # Errors after the first page do not affect it.
    with contextlib.suppress(Exception):
        for number in range(1, _MOST_PAGES):
            page = first.parent.pages[number]
            count += page.shape == first.shape and not page.is_reduced
    return count


def _header(page: Any) -> Header:
    width, height = int(page.imagewidth), int(page.imagelength)
    check_extent(width, height)
    if page.imagedepth != 1:
        raise NotAnImage(f"a volume of {page.imagedepth} layers, not a picture")
    _check_kind(page)
    channels, _ = _meaning(page)
    samples, size = int(page.samplesperpixel), page.dtype.itemsize
    swap = TURNS[_orientation(page)][0]
    height, width = (width, height) if swap else (height, width)
    chunk = _chunk(page)
    # Values in stored and in our order, a tile before and after its predictor, result.
    cost = height * width * (2 * samples * size + 6) + 3 * chunk * size
    wide = page.bitspersample > 8 or page.dtype.kind in "if"
    return Header(height, width, channels, samples, wide, cost)


def _check_kind(page: Any) -> None:
    """Raise NotAnImage, with the reason, for an unsupported TIFF."""
    import tifffile

    compression, photometric = int(page.compression), int(page.photometric)
    if compression not in _COMPRESSIONS:
        with contextlib.suppress(ValueError):
            compression = tifffile.COMPRESSION(compression).name
        raise NotAnImage(
            f"a TIFF with {compression} compression, which is not supported; save it "
            "with deflate, LZW or no compression"
        )
    if photometric in _COLOURS:
        raise NotAnImage(
            f"an unsupported kind of TIFF ({_COLOURS[photometric]}); convert it to "
            "grey or RGB"
        )
    if page.dtype is None or page.dtype.kind not in "biuf":
        raise NotAnImage(
            f"a TIFF of {page.bitspersample}-bit samples in format "
            f"{int(page.sampleformat)}, which is not supported; save it with unsigned "
            "integers or floats"
        )
    if page.dtype.kind == "b" and page.samplesperpixel > 1:
        raise NotAnImage(  # writers do not agree on the order of their bits
            f"a TIFF with {page.samplesperpixel} samples of 1 bit, which is not "
            "supported; save it with 8 bits"
        )
    if not 1 <= page.samplesperpixel <= MOST_CHANNELS:
        raise NotAnImage(
            f"{page.samplesperpixel} bands; at most {MOST_CHANNELS} are supported"
        )
    if photometric == _YCBCR and compression != _JPEG:
        raise NotAnImage(
            "a TIFF with YCbCr colours and no JPEG compression, which is not "
            "supported; convert it to RGB"
        )


def _meaning(page: Any) -> tuple[int, str]:
    """(displayed channels, kind of transparency in the last sample, if any)."""
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    colours = {_RGB: 3, _YCBCR: 3, _CMYK: 4, _PALETTE: 1}.get(photometric, 1)
    if photometric not in (*_GREY, _RGB, _YCBCR, _CMYK, _PALETTE):
        raise NotAnImage(
            f"a TIFF with unknown photometric interpretation {photometric}"
        )
    extra = samples - colours
    if extra < 0 or (extra and photometric in (_PALETTE, _CMYK, _YCBCR)):
        raise NotAnImage(
            f"a TIFF with {samples} samples per pixel; its colours need {colours}"
        )
    if photometric == _CMYK and page.tags.valueof(332, 1) != 1:
        raise NotAnImage(
            "a TIFF with inks other than CMYK, which is not supported; convert it to "
            "RGB"
        )
    kinds = list(page.extrasamples or ())
    alpha = _ALPHA.get(int(kinds[0]), "") if extra == len(kinds) == 1 else ""
    if extra and not alpha:
        if photometric == 0:
            raise NotAnImage(f"{samples} bands where 0 is white (MINISWHITE)")
        return 0, ""
    if photometric == _PALETTE:
        return (1 if _is_grey(_palette(page)) else 3), alpha
    return (1 if photometric in _GREY else 3), alpha


def _palette(page: Any) -> np.ndarray:
    """[entries, 3] of uint8; NotAnImage if there are too few."""
    table = page.colormap
    bits = int(page.bitspersample)
    if table is None or bits > 16 or page.dtype.kind not in "bu":
        raise NotAnImage("a palette TIFF without a usable palette")
    table = np.asarray(table).reshape(3, -1).T.astype(np.uint32)
    if len(table) < 2**bits:
        raise NotAnImage(f"a palette of {len(table)} colours; {bits} bits need more")
    # Some writers store 8-bit values as 16-bit; like libtiff, detect that.
    top = 257 if table.max() > 255 else 1
    return ((table + top // 2) // top).astype(np.uint8)


def _is_grey(palette: np.ndarray) -> bool:
    return bool((palette == palette[:, :1]).all())


def _chunk(page: Any) -> int:
    """Number of values in a strip or tile, which is decoded as a whole."""
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    rows = page.tilelength if page.is_tiled else page.rowsperstrip
    columns = page.tilewidth if page.is_tiled else page.imagewidth
    image = page.imagelength * page.imagewidth
    # A tile may extend beyond a small image, but not by much.
    if not 0 < rows * columns <= 2 * image + 2**22 or (page.tiledepth or 1) != 1:
        raise NotAnImage(f"a TIFF with impossible tiles of {columns}x{rows} pixels")
    return int(rows * columns * samples)


def _check_segments(page: Any, data: bytes) -> None:
    """Check that each strip or tile exists, is inside the file and not too large."""
    import tifffile

    needed = math.prod(page.chunked)
    offsets, counts = page.dataoffsets, page.databytecounts
    if needed > _MAX_SEGMENTS or not needed <= min(len(offsets), len(counts)):
        raise NotAnImage(f"a TIFF with {len(offsets)} of {needed} strips or tiles")
    for offset, length in zip(offsets[:needed], counts[:needed], strict=True):
        if length < 1 or offset < 8 or offset + length > len(data):
            raise NotAnImage("truncated, or a strip or tile is missing")
    if int(page.compression) == _JPEG:
        rows = page.tilelength if page.is_tiled else page.rowsperstrip
        columns = page.tilewidth if page.is_tiled else page.imagewidth
        for offset, length in zip(offsets[:needed], counts[:needed], strict=True):
            _, height, width, _ = tifffile.tifffile.jpeg_shape(
                data[offset : offset + length]
            )
            if height > rows + 64 or width > columns + 64:
                raise NotAnImage(f"a TIFF whose tiles contain a {width}x{height} JPEG")
    elif int(page.compression) == 1:
        bits = _chunk(page) * int(page.bitspersample)
        whole = math.prod(page.shaped) * int(page.bitspersample)
        if 8 * sum(counts[:needed]) < min(bits * needed, whole):
            raise NotAnImage("truncated: fewer bytes than pixels")


def _as_image(values: np.ndarray) -> np.ndarray:
    """(planes, 1, h, w, samples) -> (h, w, all samples)."""
    values = values[:, 0]
    if len(values) == 1:
        return values[0]
    return np.ascontiguousarray(np.moveaxis(values[..., 0], 0, -1))


def _samples(page: Any, values: np.ndarray) -> Samples:
    channels, alpha = _meaning(page)
    photometric, bits = int(page.photometric), int(page.bitspersample)
    if photometric == _PALETTE:
        table = _palette(page)[:, : channels or 3]
        pixels = np.empty((*values.shape[:2], table.shape[1]), np.uint8)
        for row, indices in enumerate(values[..., 0]):  # by rows, to save memory
            pixels[row] = table[indices.astype(np.intp)]
        return Samples(pixels, channels)
    return Samples(
        values,
        channels,
        bits,
        alpha,  # pyright: ignore[reportArgumentType]
        inverted=photometric == 0,
        cmyk=photometric == _CMYK,
    )


def _orientation(page: Any) -> int:
    value = page.tags.valueof(_ORIENTATION, 1)
    return value if value in TURNS else 1


def _turn(page: Any) -> tuple[bool, bool, bool]:
    return TURNS[_orientation(page)]
