"""Every kind of picture: what a person sees, or a refusal with the true reason.

Expectations are computed from the array that was written, never from another decode.
"""

import io
import itertools
import struct
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from afterimage.data.decode import decode, read_header, strict
from afterimage.data.pixels import NotAnImage

H, W = 19, 26
RNG = np.random.default_rng(0)
TYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
BANDS = [1, 2, 3, 4, 5, 6, 16]
READ = [None, "lzw", "deflate", "packbits", "zstd", "lzma"]
NOT_READ = ["lerc", "jpeg2000", "png", "webp", "jpegxl"]


def numbers(dtype, *shape):
    """Random numbers over the whole range of 16 bits, or in [0, 1]."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RNG.random(shape).astype(kind)
    top = 1 if kind.kind == "b" else min(np.iinfo(kind).max, 65535)
    return RNG.integers(0, top + 1, shape).astype(kind)


def byte(values):
    """Of unsigned numbers and floats: the nearest of 0..255, in exact arithmetic."""
    top = {"?": 1, "B": 255, "H": 65535}.get(values.dtype.char, 1)
    return np.rint(values.astype(np.float64) * 255 / top).astype(np.uint8)


def over_white(colour, alpha, top):
    alpha = alpha.astype(float) / top
    return np.rint(byte(colour) * alpha + 255 * (1 - alpha))


def see(data, channels=None, value_range=None):
    with strict():
        header = read_header(io.BytesIO(data))
        channels = channels or header.channels or header.samples
        found = decode(data, None, channels, value_range)
    assert found.shape == (header.height, header.width, channels)
    return found


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def stored(image, planar):
    """[H, W, S] as tifffile takes it for this planar configuration."""
    if image.shape[2] == 1:
        return image[..., 0]
    return image if planar == "contig" else np.moveaxis(image, -1, 0)


def expected(image, photometric):
    """What a person sees; None for bands, which nobody does. Words for a refusal."""
    samples = image.shape[2]
    if image.dtype.kind == "b" and samples > 1:
        return f"{samples} samples of 1 bit"
    base = {"rgb": 3, "separated": 4}.get(photometric, 1)
    if samples < base or (photometric == "separated" and samples > base):
        return f"{samples} samples"
    if photometric == "miniswhite" and samples > 1:
        return "MINISWHITE"
    if image.dtype.kind == "i" or (image.dtype.kind == "u" and image.itemsize > 2):
        seen = samples == base or (photometric == "rgb" and samples == 4)
        return f"{image.dtype.name} values" if seen else None
    if photometric == "separated":
        ink = 1 - byte(image).astype(float) / 255
        return 255 * ink[..., :3] * ink[..., 3:]
    if samples == base:
        return 255 - byte(image) if photometric == "miniswhite" else byte(image)
    if photometric == "rgb" and samples == 4:  # tifffile says that it is transparency
        top = {"f": 1, "b": 1}.get(image.dtype.kind, 0) or np.iinfo(image.dtype).max
        return over_white(image[..., :3], image[..., 3:], top)
    return None


def check(data, wanted, tolerance=1):
    if isinstance(wanted, str):
        with pytest.raises(NotAnImage, match=wanted):
            see(data)
        return
    found = see(data)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted.astype(float)).max() <= tolerance


def check_tiff(image, photometric, planar, **options):
    """Whether such a file can be written; if so it is read right, or refused."""
    array = stored(image, planar)
    if image.shape[2] > 1:
        options["planarconfig"] = planar
    try:
        data = tiff(array, photometric=photometric, **options)
    except (ValueError, NotImplementedError, KeyError, TypeError, RuntimeError):
        return False
    compression = options.get("compression")
    wanted = expected(image, photometric)
    case = f"{image.dtype} {image.shape} {photometric} {planar} {options}"
    if compression in NOT_READ:
        wanted = compression.upper()
    elif wanted is None:  # bands: as they are, if so many are asked for
        samples = image.shape[2]
        header = read_header(io.BytesIO(data))
        assert (header.channels, header.samples) == (0, samples), case
        with pytest.raises(NotAnImage, match=f"{samples} bands"):
            decode(data, None, 1 if samples == 3 else 3)
        if image.dtype.kind == "i" or (image.dtype.kind == "u" and image.itemsize > 2):
            wanted = f"{image.dtype.name} values"
        else:
            wanted = byte(image)
    exact = image.dtype.kind != "f" and image.shape[2] != 4
    check(data, wanted, 0 if exact else 1)
    return True


KINDS = list(itertools.product(["minisblack", "miniswhite", "rgb", "separated"], BANDS))


@pytest.mark.parametrize(("photometric", "bands"), KINDS)
def test_tiff_of_every_sample_type(photometric, bands):
    done = [
        check_tiff(numbers(dtype, H, W, bands), photometric, planar)
        for dtype in TYPES
        for planar in ("contig", "separate")
    ]
    assert any(done) or photometric != "minisblack"


LAYOUTS = {
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "big-endian BigTIFF": {"byteorder": ">", "bigtiff": True},
    "strips": {"rowsperstrip": 3},
    "tiles": {"tile": (16, 16)},
    "predictor": {"predictor": True},
    "big-endian tiles, predictor": {
        "byteorder": ">",
        "tile": (16, 16),
        "predictor": True,
    },
}


@pytest.mark.parametrize("compression", READ + NOT_READ)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_of_every_layout(layout, compression):
    options = LAYOUTS[layout] | {"compression": compression}
    cases = itertools.product(["u1", "u2", "f4"], [1, 3, 5], ["contig", "separate"])
    for dtype, bands, planar in cases:
        photometric = {1: "miniswhite", 3: "rgb"}.get(bands, "minisblack")
        check_tiff(numbers(dtype, H, W, bands), photometric, planar, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f2", "f4", "f8"])
@pytest.mark.parametrize(
    ("photometric", "bands"), [kind for kind in KINDS if kind[1] not in (2, 6)]
)
def test_tiff_of_every_combination(photometric, bands, dtype):
    image = numbers(dtype, H, W, bands)
    for options in itertools.product(
        ["contig", "separate"],
        [None, "lzw", "deflate", "packbits", "zstd", "lerc"],
        [{}, {"byteorder": ">", "bigtiff": True}],
        [{}, {"rowsperstrip": 4}, {"tile": (16, 32)}],
        [{}, {"predictor": True}],
    ):
        planar, compression, *more = options
        layout = {key: value for part in more for key, value in part.items()}
        check_tiff(image, photometric, planar, compression=compression, **layout)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_tiff_palettes(dtype):
    indices = RNG.integers(0, 256, (H, W)).astype(dtype)
    colours = RNG.integers(0, 65536, (3, 2 ** (8 * indices.itemsize))).astype(np.uint16)
    data = tiff(indices, photometric="palette", colormap=colours)
    check(data, byte(colours.T[indices]), 0)
    grey = np.repeat(colours[:1], 3, 0)
    data = tiff(indices, photometric="palette", colormap=grey)
    check(data, byte(grey.T[indices][..., :1]), 0)


@pytest.mark.parametrize("value", [0, 1, 2])
def test_only_a_band_that_says_so_is_transparency(value):
    """Near-infrared beside RGB: ExtraSamples is unspecified by default."""
    image = numbers("u1", H, W, 4)
    image[..., :3] = np.minimum(image[..., :3], image[..., 3:])  # as premultiplied
    data = tiff(image, photometric="rgb", extrasamples=[value])
    np.testing.assert_array_equal(see(data, 4), image)
    if value == 0:
        with pytest.raises(NotAnImage, match="4 bands"):
            decode(data, None, 3)
        return
    colour, rest = image[..., :3].astype(float), 255 - image[..., 3:].astype(float)
    premultiplied = colour + rest
    straight = over_white(image[..., :3], image[..., 3:], 255)
    wanted = premultiplied if value == 1 else straight
    check(data, wanted)


UPRIGHT = RNG.integers(0, 256, (12, 20, 3)).astype(np.uint8)
STORED = {  # orientation -> how its pixels lie in the file (EXIF 2.32, 4.6.4)
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: UPRIGHT.swapaxes(0, 1)[::-1],
    7: UPRIGHT.swapaxes(0, 1)[::-1, ::-1],
    8: UPRIGHT.swapaxes(0, 1)[:, ::-1],
}


def oriented(image, kind, orientation):
    image = np.ascontiguousarray(image)
    if kind == "TIFF":
        return tiff(
            image, photometric="rgb", extratags=[(274, 3, 1, orientation, True)]
        )
    if kind == "late PNG":
        exif = Image.Exif()
        exif[0x0112] = orientation
        return png_chunks(encode(image, "PNG"), late=[(b"eXIf", exif.tobytes()[6:])])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif, **LOSSLESS.get(kind, {}))


LOSSLESS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "late PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_of_header_and_pixels(kind, orientation):
    data = oriented(STORED[orientation], kind, orientation)
    check(data, UPRIGHT, 12 if kind == "JPEG" else 0)


def encode(image, kind, **options):
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def png_chunks(data, late):
    """A PNG with further chunks behind its pixels."""
    end = chunk(b"IEND", b"")
    assert data.endswith(end)
    return data[: -len(end)] + b"".join(chunk(*part) for part in late) + end


def raw_png(rows, depth, colour, *chunks, width=W):
    """A PNG of rows of bytes that are packed already."""
    body = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def packed(values, depth):
    """Rows of numbers of `depth` bits as PNG packs them."""
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("transparent", [False, True])
def test_png_of_grey(depth, transparent):
    values = RNG.integers(0, 2**depth, (H, W))
    key = int(values[3, 4])
    chunks = [(b"tRNS", struct.pack(">H", key))] if transparent else []
    data = raw_png(packed(values, depth), depth, 0, *chunks)
    wanted = np.rint(values * 255 / (2**depth - 1))
    wanted[(values == key) & transparent] = 255
    check(data, wanted[..., None], 0)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("transparent", [False, True])
def test_png_of_colour(depth, transparent):
    values = RNG.integers(0, 2**depth, (H, W, 3)).astype(f">u{depth // 8}")
    key = values[3, 4]
    chunks = [(b"tRNS", key.astype(">u2").tobytes())] if transparent else []
    data = raw_png([row.tobytes() for row in values], depth, 2, *chunks)
    wanted = np.rint(values.astype(float) * 255 / (2**depth - 1))
    wanted[(values == key).all(-1) & transparent] = 255
    check(data, wanted, 0)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colours", [1, 3])
def test_png_with_an_alpha_channel(depth, colours):
    values = RNG.integers(0, 2**depth, (H, W, colours + 1)).astype(f">u{depth // 8}")
    data = raw_png([row.tobytes() for row in values], depth, 4 if colours == 1 else 6)
    native = values.astype(f"u{depth // 8}")
    check(data, over_white(native[..., :-1], native[..., -1:], 2**depth - 1))
    np.testing.assert_array_equal(see(data, colours + 1), byte(native))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_png_of_a_palette(depth, transparent):
    values = RNG.integers(0, 2**depth, (H, W))
    palette = RNG.integers(0, 256, (2**depth, 3)).astype(np.uint8)
    alpha = RNG.integers(0, 256, 2**depth).astype(np.uint8)
    chunks = [(b"PLTE", palette.tobytes())]
    chunks += [(b"tRNS", alpha.tobytes())] if transparent else []
    data = raw_png(packed(values, depth), depth, 3, *chunks)
    wanted = palette[values].astype(float)
    if transparent:
        wanted = over_white(palette[values], alpha[values][..., None], 255)
    check(data, wanted)


def vips(array, **options):
    image = pyvips.Image.new_from_array(np.ascontiguousarray(array))
    suffix = options.pop("suffix")
    return image.write_to_buffer(suffix, **options)


U1, U2 = numbers("u1", H, W, 3), numbers("u2", H, W, 3)
BINARY = (numbers("u1", H, W) > 127) * np.uint8(255)
SMOOTH = np.stack(
    [
        np.add.outer(np.arange(H) * 5, np.arange(W) * 5),
        np.add.outer(np.arange(H) * 9, np.arange(W)),
        np.add.outer(np.arange(H), np.arange(W) * 8),
    ],
    -1,
).astype(np.uint8)
RGBA = numbers("u1", H, W, 4)
# Who wrote what -> (bytes, what a person sees or why not, tolerance)
WRITTEN = {
    "libvips PNG interlaced": (vips(U1, suffix=".png", interlace=True), U1, 0),
    "libvips PNG 16": (vips(U2, suffix=".png", interlace=True), byte(U2), 0),
    "libvips WebP": (vips(U1, suffix=".webp", lossless=True), U1, 0),
    "libvips JPEG": (vips(SMOOTH, suffix=".jpg", Q=98), SMOOTH, 20),
    "libvips JPEG progressive": (
        vips(SMOOTH, suffix=".jpg", Q=98, interlace=True),
        SMOOTH,
        20,
    ),
    "libvips JPEG grey": (
        vips(SMOOTH[..., 0], suffix=".jpg", Q=98),
        SMOOTH[..., :1],
        20,
    ),
    "libvips pyramid": (vips(U1, suffix=".tif", tile=True, pyramid=True), U1, 0),
    "libvips MINISWHITE": (
        vips(U1[..., 0], suffix=".tif", miniswhite=True),
        U1[..., :1],
        0,
    ),
    "libvips 1 bit": (vips(BINARY, suffix=".tif", bitdepth=1), BINARY[..., None], 0),
    "libvips fax": (
        vips(BINARY, suffix=".tif", compression="ccittfax4", bitdepth=1),
        BINARY[..., None],
        0,
    ),
    "libvips TIFF JPEG": (
        vips(SMOOTH, suffix=".tif", compression="jpeg", Q=98),
        SMOOTH,
        20,
    ),
    "libvips TIFF JPEG tiles": (
        vips(SMOOTH, suffix=".tif", compression="jpeg", Q=98, tile=True),
        SMOOTH,
        20,
    ),
    "libvips float": (
        vips(U1.astype(np.float32) / 255, suffix=".tif", compression="deflate"),
        U1,
        0,
    ),
    "libvips double": (vips(U1[..., 0] / 255.0, suffix=".tif"), U1[..., :1], 0),
    "libvips GIF": (
        vips(BINARY, suffix=".gif"),
        np.repeat(BINARY[..., None], 3, -1),
        2,
    ),
    "OpenCV TIFF": (cv2.imencode(".tif", U1[..., ::-1])[1].tobytes(), U1, 0),
    "OpenCV TIFF 16": (
        cv2.imencode(".tif", U2[..., ::-1])[1].tobytes(),
        byte(U2),
        0,
    ),
    "OpenCV TIFF float": (
        cv2.imencode(".tif", U1[..., 0].astype(np.float32) / 255)[1].tobytes(),
        U1[..., :1],
        0,
    ),
    "OpenCV PNG 16": (cv2.imencode(".png", U2[..., ::-1])[1].tobytes(), byte(U2), 0),
    "OpenCV BMP": (cv2.imencode(".bmp", U1[..., ::-1])[1].tobytes(), U1, 0),
    "OpenCV JPEG 2000": (
        cv2.imencode(".jp2", np.tile(U1, (4, 4, 1)))[1].tobytes(),
        "JPEG 2000",
        0,
    ),
    "OpenCV PPM": (cv2.imencode(".ppm", U1)[1].tobytes(), "Netpbm", 0),
    "Pillow TIFF LZW": (encode(U1, "TIFF", compression="tiff_lzw"), U1, 0),
    "Pillow TIFF packbits": (encode(U1, "TIFF", compression="packbits"), U1, 0),
    "Pillow TIFF group 3": (
        encode(Image.fromarray(BINARY).convert("1"), "TIFF", compression="group3"),
        BINARY[..., None],
        0,
    ),
    "Pillow TIFF 1 bit": (
        encode(Image.fromarray(BINARY).convert("1"), "TIFF"),
        BINARY[..., None],
        0,
    ),
    "Pillow TIFF RGBA": (
        encode(RGBA, "TIFF"),
        over_white(RGBA[..., :3], RGBA[..., 3:], 255),
        1,
    ),
    "Pillow TIFF grey, alpha": (
        encode(RGBA[..., ::3], "TIFF"),
        over_white(RGBA[..., :1], RGBA[..., 3:], 255),
        1,
    ),
    "Pillow TIFF CIELAB": (
        encode(Image.merge("LAB", [Image.fromarray(U1[..., 0])] * 3), "TIFF"),
        "CIELAB",
        0,
    ),
    "Pillow TIFF YCbCr": (
        encode(Image.fromarray(U1).convert("YCbCr"), "TIFF"),
        "YCbCr",
        0,
    ),
    "Pillow TIFF of int32": (
        encode(Image.fromarray(U2[..., 0].astype(np.int32)), "TIFF"),
        "int32 values",
        0,
    ),
    "Pillow BMP 1 bit": (
        encode(Image.fromarray(BINARY).convert("1"), "BMP"),
        BINARY[..., None],
        0,
    ),
    "Pillow BMP grey": (encode(U1[..., 0], "BMP"), U1[..., :1], 0),
    "Pillow DIB": (encode(U1, "DIB"), U1, 0),
    "Pillow WebP alpha": (
        encode(RGBA, "WEBP", lossless=True, exact=True),
        over_white(RGBA[..., :3], RGBA[..., 3:], 255),
        1,
    ),
    "Pillow JPEG 2000": (encode(np.tile(U1, (4, 4, 1)), "JPEG2000"), "JPEG 2000", 0),
    "Pillow AVIF": (encode(SMOOTH, "AVIF"), "AVIF", 0),
    "Pillow ICO": (encode(U1, "ICO"), "icon", 0),
    "JPEG of 12 bits": (
        imagecodecs.jpeg_encode(SMOOTH.astype(np.uint16) * 16, bitspersample=12),
        "JPEG .*12 bits",
        0,
    ),
    "JPEG-LS": (imagecodecs.jpegls_encode(SMOOTH), "JPEG-LS", 0),
    "JPEG XR": (imagecodecs.jpegxr_encode(SMOOTH), "JPEG XR", 0),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC", 0),
    "DICOM": (bytes(128) + b"DICM" + bytes(40), "DICOM", 0),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_what_others_write(case):
    check(*WRITTEN[case])


@pytest.mark.parametrize("bits", [2, 4, 10, 12, 14])
def test_tiff_of_packed_bits(bits):
    values = RNG.integers(0, 2**bits, (H, W)).astype(
        np.uint8 if bits < 9 else np.uint16
    )
    data = tiff(values, photometric="minisblack", bitspersample=bits)
    check(data, np.rint(values[..., None] * (255 / (2**bits - 1))), 0)


@pytest.mark.parametrize("photometric", [4, 8, 32803, 34892, 32845])
def test_tiff_of_other_photometrics_says_which(photometric):
    data = tiff(U1, photometric="rgb")
    tag = struct.pack("<HHIHH", 262, 3, 1, 2, 0)
    assert data.count(tag) == 1
    data = data.replace(tag, struct.pack("<HHIHH", 262, 3, 1, photometric, 0))
    check(data, {4: "mask", 8: "CIELAB"}.get(photometric, "camera|LogLuv"))


def test_cmyk_jpeg_of_adobe_is_not_inverted():
    ink = Image.fromarray(SMOOTH).convert("CMYK")
    data = encode(ink, "JPEG", quality=100)
    check(data, SMOOTH, 24)


CONTIG = {True: {"planarconfig": "contig"}, False: {}}
RANGES = [
    ("u2", (0.0, 4095.0)),
    ("i2", (-1000.0, 3000.0)),
    ("f4", (-1.5, 7.0)),
    ("u4", (5.0, 10.0)),
]


@pytest.mark.parametrize(("dtype", "limits"), RANGES)
@pytest.mark.parametrize("bands", [1, 3, 5])
def test_a_value_range_is_what_becomes_black_and_white(dtype, limits, bands):
    low, high = limits
    values = RNG.uniform(low - 1, high + 1, (H, W, bands))
    values = values.clip(0) if dtype[0] == "u" else values
    values = values.astype(dtype)
    photometric = "rgb" if bands == 3 else "minisblack"
    data = tiff(stored(values, "contig"), photometric=photometric, **CONTIG[bands > 1])
    scaled = (values.astype(float) - low) / (high - low)
    wanted = np.rint(255 * scaled.clip(0, 1))
    found = see(data, value_range=limits)
    assert np.abs(found - wanted).max() <= 1
    assert (found != wanted).mean() < 0.01


def test_a_value_range_leaves_8_bits_alone():
    for data in (tiff(U1, photometric="rgb"), encode(U1, "PNG"), encode(RGBA, "PNG")):
        np.testing.assert_array_equal(see(data, value_range=(0.0, 9.0)), see(data))


def test_12_bits_in_a_png_of_16():
    values = RNG.integers(0, 4096, (H, W, 3)).astype(np.uint16)
    data = cv2.imencode(".png", values[..., ::-1])[1].tobytes()
    found = see(data, value_range=(0.0, 4095.0))
    np.testing.assert_array_equal(found, np.rint(values * (255 / 4095)))
