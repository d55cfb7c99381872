"""Files that are not what they promise: what a person sees, or a reason."""

import io
import os
import resource
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from afterimage.data import open_data
from afterimage.data.decode import (
    _by_pillow,
    bare_jpeg,
    decode,
    read_header,
    strict,
)
from afterimage.data.pixels import MAX_BYTES, NotAnImage
from afterimage.errors import DataError
from afterimage.runs import Run

RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (24, 1))
COLOUR = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], -1)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def see(data, channels=None, size=None):
    with strict():
        channels = channels or read_header(io.BytesIO(data)).channels
        return decode(data, size, channels)


WIDE = (RAMP.astype(np.uint16) * 257)[:, :, None]
RGBA = np.dstack([COLOUR, np.full_like(RAMP, 255)])
HALF = np.dstack([COLOUR, np.full_like(RAMP, 0)])
GREYS = Image.fromarray(RAMP).convert("P")
PALETTE = Image.fromarray(COLOUR).quantize(256)
GREY_CASES = {
    "grey PNG": (encode(RAMP), RAMP),
    "16-bit PNG": (encode(WIDE[..., 0]), RAMP),
    "16-bit TIFF": (encode(WIDE[..., 0], "TIFF"), RAMP),
    "12 bits in 16": (encode(WIDE[..., 0] // 16), np.rint(RAMP / 16)),
    "float TIFF": (encode((RAMP / 255).astype(np.float32), "TIFF"), RAMP),
    "1-bit": (encode(Image.fromarray(RAMP).convert("1", dither=0)), (RAMP > 127) * 255),
    "grey, opaque alpha": (encode(np.dstack([RAMP, RAMP | 255])), RAMP),
    "grey, clear alpha": (encode(np.dstack([RAMP, RAMP & 0])), RAMP | 255),
    "grey GIF": (encode(RAMP, "GIF"), RAMP),
    "grey palette": (encode(GREYS), RAMP),
    "grey palette TIFF": (encode(GREYS, "TIFF"), RAMP),
}
COLOUR_CASES = {
    "RGB": (encode(COLOUR), COLOUR),
    "BMP": (encode(COLOUR, "BMP"), COLOUR),
    "TIFF": (encode(COLOUR, "TIFF"), COLOUR),
    "WebP": (encode(COLOUR, "WEBP", lossless=True), COLOUR),
    "opaque RGBA": (encode(RGBA), COLOUR),
    "transparent RGBA is white": (encode(HALF), COLOUR | 255),
    "palette": (encode(PALETTE), COLOUR),
    "palette GIF": (encode(PALETTE, "GIF"), COLOUR),
    "palette BMP": (encode(PALETTE, "BMP"), COLOUR),
    "palette TIFF": (encode(PALETTE, "TIFF"), COLOUR),
    "CMYK TIFF": (encode(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), COLOUR),
}


@pytest.mark.parametrize("case", GREY_CASES)
def test_grey_kinds_are_seen_alike(case):
    data, wanted = GREY_CASES[case]
    found = see(data)
    assert found.shape == (24, 32, 1)
    assert np.abs(found[..., 0].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("case", COLOUR_CASES)
def test_colour_kinds_are_seen_alike(case):
    data, wanted = COLOUR_CASES[case]
    found = see(data)
    assert found.shape == (24, 32, 3)
    assert np.abs(found.astype(int) - wanted).max() <= 3


def test_half_transparent_lies_on_white():
    data = encode(np.dstack([np.zeros_like(COLOUR), np.full_like(RAMP, 128)]))
    assert np.abs(see(data).astype(int) - 127).max() <= 1


def test_cmyk_jpeg_is_not_inverted():
    data = encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(see(data).astype(int) - COLOUR).mean() < 8


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(see(data).astype(int) - COLOUR).mean() < 8


def test_a_jpeg_is_what_pillow_makes_of_it():
    smooth = Image.fromarray(COLOUR).resize((500, 375), Image.Resampling.BICUBIC)
    data = encode(smooth, "JPEG", quality=90)
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(see(data).astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("side", [16, 40, 90, 180, 224, 300])
def test_a_jpeg_shrunk_while_decoding_is_the_image_shrunk(side):
    smooth = Image.fromarray(COLOUR).resize((500, 375), Image.Resampling.BICUBIC)
    data = encode(smooth, "JPEG", quality=95)
    box = (62, 0, 437, 375)
    wanted = smooth.resize((side, side), Image.Resampling.BOX, box)
    found = see(data, size=(side, side))
    assert np.abs(found.astype(int) - np.asarray(wanted)).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_gives_equal_pixels(kind, orientation):
    upright = Image.fromarray(np.kron(COLOUR[:, ::4], np.ones((8, 8, 1), np.uint8)))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL transposes that store it so
    method = undo.get(orientation)
    stored = upright if method is None else upright.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(stored, kind, exif=exif, **options)
    found = see(data)
    assert found.shape == (*np.asarray(upright).shape,)
    error = np.abs(found.astype(int) - np.asarray(upright)).mean()
    assert error < (6 if kind == "JPEG" else 0.01)


JPEG = encode(Image.fromarray(COLOUR).resize((200, 150)), "JPEG")
BROKEN = {
    "empty": (b"", "empty"),
    "web page": (b"<!DOCTYPE html><html>not found</html>", "web page"),
    "noise": (bytes(range(256)), "not a JPEG"),
    "JPEG cut at 60 %": (JPEG[: len(JPEG) * 6 // 10], "truncated"),
    "JPEG without its end": (JPEG[:-2], "truncated"),
    "JPEG header only": (JPEG[:30], ""),
    "PNG cut": (encode(COLOUR)[: len(encode(COLOUR)) // 2], ""),
    "WebP cut": (encode(COLOUR, "WEBP")[:100], ""),
    "TIFF cut": (encode(COLOUR, "TIFF")[:900], ""),
    "BMP cut": (encode(COLOUR, "BMP")[:900], ""),
    "float beyond 1": (encode(np.float32(RAMP), "TIFF"), "[0, 1]"),
    "float nan": (encode(np.float32(RAMP) * np.nan, "TIFF"), "NaN"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_say_why(case):
    data, reason = BROKEN[case]
    with pytest.raises(NotAnImage) as caught:
        see(data, channels=3)
    assert reason in str(caught.value)
    assert str(caught.value)


def bomb(width, height):
    def chunk(kind, data):
        sum_ = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + sum_

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (10_000, 10_000, "pixels"),
        (20_000, 20_000, "pixels"),
        (1, 60_000, "60000"),
        (60_000, 1, "60000"),
    ],
)
def test_absurd_sizes_are_refused_from_the_header(width, height, reason):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NotAnImage, match=reason):
        see(bomb(width, height), channels=3)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 20_000  # KiB


def folder_of(tmp_path, files):
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return f"folder:{tmp_path}"


GOOD = {f"{label}/{i}.png": encode(COLOUR + i) for label in "ab" for i in range(3)}


@pytest.mark.parametrize("cache", [True, False])
def test_bad_files_fail_with_their_names_or_are_skipped_and_listed(tmp_path, cache):
    bad = {"a/late.jpg": JPEG[:-2], "b/page.png": BROKEN["web page"][0]}
    spec = folder_of(tmp_path, GOOD | bad)
    with pytest.raises(DataError, match=r"b/page.png: a web page"):
        open_data(spec, image_size=16, cache=cache)
    for _ in range(2):  # the second time from the cache
        found = open_data(spec, image_size=16, on_bad_image="skip", cache=cache).train
        assert len(found) == 6
        assert [bad.path for bad in found.skipped] == ["a/late.jpg", "b/page.png"]
        assert all(bad.reason for bad in found.skipped)
        assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
        np.testing.assert_array_equal(
            found.gather([4])[0], see(GOOD["b/1.png"], 3, (16, 16))
        )


def test_skipped_files_of_every_split_are_listed(tmp_path):
    bad = {"val/a/1.png": b"", "test/b/2.png": b"text"}
    good = {
        f"{split}/{name}": data
        for split in ("train", "val", "test")
        for name, data in GOOD.items()
    }
    found = open_data(folder_of(tmp_path, good | bad), on_bad_image="skip")
    assert sorted(bad.path for bad in found.skipped) == ["test/b/2.png", "val/a/1.png"]
    with Run(tmp_path / "run", kind="test", config={}) as run:
        run.write_skipped(found.skipped)
    listed = (tmp_path / "run" / "skipped.txt").read_text()
    assert "val/a/1.png\t" in listed
    assert "test/b/2.png\t" in listed
    assert "2 images were skipped" in run.notes[0]


def test_nothing_but_bad_files_is_an_error_even_when_skipping(tmp_path):
    spec = folder_of(tmp_path, {"a/x.jpg": b"", "a/y.jpg": JPEG[:-2]})
    with pytest.raises(DataError, match=r"x\.jpg: empty file"):
        open_data(spec, on_bad_image="skip")


def test_a_file_that_breaks_during_the_run_is_named(tmp_path):
    found = open_data(folder_of(tmp_path, GOOD), cache=False).train
    (tmp_path / "b/1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b/1.png .*empty"):
        found.gather(range(6))


def test_what_would_not_end_is_not_read(tmp_path):
    """A pipe, which would wait for a writer, and more bytes than an image has."""
    spec = folder_of(tmp_path, GOOD)
    os.mkfifo(tmp_path / "a/9.png")
    with (tmp_path / "b/9.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    found = open_data(spec, on_bad_image="skip")
    assert {bad.path: bad.reason for bad in found.skipped} == {
        "a/9.png": "is a pipe, not a regular file",
        "b/9.png": f"more than {MAX_BYTES:,} bytes",
    }
    assert len(found.train) == len(GOOD)


LINK = zipfile.ZipInfo("a/link.png")
LINK.create_system = 3
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("../x.png", "outside"),
        ("a/../../x.png", "outside"),
        ("/etc/x.png", "absolute"),
        ("C:\\x.png", "absolute"),
        ("a\\..\\..\\x.png", "outside"),
        (LINK, "symbolic link"),
    ],
)
def test_unsafe_members_refuse_the_archive(tmp_path, member, reason):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/fine.png", encode(COLOUR))
        archive.writestr(member, encode(COLOUR))
    with pytest.raises(DataError, match=reason):
        open_data(f"zip:{tmp_path / 'x.zip'}")


def test_a_flipped_bit_in_an_archive_is_found(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in GOOD.items():
            archive.writestr(name, data)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a/\d\.png"):
        open_data(f"zip:{path}")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("quality", [60, 95])
def test_a_jpeg_is_the_same_with_and_without_pillow(mode, quality):
    image = Image.fromarray(COLOUR).convert(mode)
    data = encode(image, "JPEG", quality=quality)
    bare = bare_jpeg(data, None)
    assert (bare is None) == (mode == "CMYK")
    if bare is not None:
        np.testing.assert_array_equal(bare, _by_pillow(data, None, bare.shape[2]))


def test_a_jpeg_that_speaks_of_orientation_goes_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(np.zeros((20, 30, 3), np.uint8), "JPEG", exif=exif)
    assert bare_jpeg(data, None) is None
    assert decode(data, None, 3).shape == (30, 20, 3)


COMMENT = b"\xff\xfe" + (8).to_bytes(2) + b"\xff\xdaabcd"  # as if a scan began


@pytest.mark.parametrize("before", [COMMENT, b"\xff" * 3 + COMMENT])
def test_orientation_is_looked_for_in_every_segment_before_the_pixels(before):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(np.zeros((20, 30, 3), np.uint8), "JPEG", exif=exif)
    data = data[:2] + before + data[2:]
    assert bare_jpeg(data, None) is None
    assert decode(data, None, 3).shape == (30, 20, 3)


def test_a_word_of_orientation_among_the_pixels_says_nothing():
    data = encode(np.zeros((20, 30, 3), np.uint8), "JPEG")
    assert bare_jpeg(data + b"Exif", None).shape == (20, 30, 3)
    assert decode(data + b"Exif", None, 3).shape == (20, 30, 3)
