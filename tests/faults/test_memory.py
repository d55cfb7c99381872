"""What a file may claim, and the memory that images take together, are bounded."""

import io
import os
import struct
import threading
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from afterimage.data import open_data, workers
from afterimage.data.decode import decode, read_header, strict
from afterimage.data.images import entry_writer
from afterimage.data.pixels import NotAnImage
from afterimage.data.sources import npz
from afterimage.errors import DataError
from tests.helpers import run_python

MANY = 2**27  # zeros that nobody should inflate: they pack to 130 kB


def png(side, alpha=True, late=b""):
    """A PNG of one colour, made row by row."""
    row = b"\0" + b"\x10\x20\x30\x80"[: 3 + alpha] * side
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2 + 4 * alpha, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", body), (b"eXIf", late), (b"IEND", b"")]
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts:
        if data or kind != b"eXIf":
            out += struct.pack(">I", len(data)) + kind + data
            out += struct.pack(">I", zlib.crc32(kind + data))
    return out


SIX = """
import pathlib, resource, sys, time
from afterimage.data import open_data

def limit(more):
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = size * resource.getpagesize() + more * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    time.sleep(1.1)  # so long a measurement holds

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

options = dict(image_size=32, cache=False)
open_data("folder:" + sys.argv[2], **options)  # the threads and libraries
before = peak()
limit(150)
try:
    open_data("folder:" + sys.argv[1], **options)
except Exception as error:
    print(type(error).__name__, error)
limit(350)
found = open_data("folder:" + sys.argv[1], **options)
print("read", len(found.train), "peak", peak() - before)
"""


def test_large_images_share_the_memory_that_there_is(tmp_path):
    """Six of 9 million pixels where only one fits; and where not even one does."""
    for folder, side, count in (("large", 3000, 6), ("small", 20, 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number}.png").write_bytes(png(side))
    said = run_python(SIX, str(tmp_path / "large"), str(tmp_path / "small"))
    assert "DataError" in said
    assert "0.png: needs more memory" in said
    assert "read 6" in said
    assert int(said.split()[-1]) < 180  # MiB


def test_a_budget_is_never_exceeded(monkeypatch):
    monkeypatch.setattr(workers, "allowance", lambda: 100)
    budget, held, most = workers.Budget(), [], []

    def work(size):
        with budget.hold(size):
            held.append(size)
            most.append(sum(held))
            time.sleep(0.002)
            held.remove(size)

    threads = [threading.Thread(target=work, args=(s,)) for s in [60, 30, 45, 100] * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 20
    assert 60 < max(most) <= 100
    with pytest.raises(MemoryError), budget.hold(101):
        pass
    with budget.hold(100):
        pass


@pytest.mark.parametrize(
    "names",
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_control_group_counts_its_page_cache_as_free(tmp_path, names):
    limit, used, cache = names
    (tmp_path / limit).write_text("5000\n")
    (tmp_path / used).write_text("4000\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\n{cache} 600\n")
    assert list(workers._left(tmp_path, *names)) == [1600]
    (tmp_path / limit).write_text("max\n")
    assert list(workers._left(tmp_path, *names)) == []


def test_the_allowance_is_at_most_half_of_the_machine():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < workers.allowance() <= total // 2


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize("late", [b"", TURNED.tobytes()[6:]])
def test_the_header_of_a_png_is_read_without_its_pixels(monkeypatch, late):
    """And decoding inflates them once; also where EXIF stands behind them."""
    loads = []
    plain = ImageFile.ImageFile.load

    def load(self):
        loads.append(self)
        return plain(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    data = png(50, late=late)
    with strict():
        header = read_header(io.BytesIO(data))
        assert not loads
        decode(data, None, 3)
    assert len({id(image) for image in loads}) == 1
    assert (header.height, header.width, header.samples) == (50, 50, 4)


def zipped(path, data, declared=None):
    """An archive with one PNG, which says that it has `declared` bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.png", "w") as member:
            for part in data:
                member.write(part)
        if declared is not None:
            archive.infolist()[0].file_size = declared
    return f"zip:{path}"


def zeros():
    return (bytes(2**20) for _ in range(MANY // 2**20))


def peak_of(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("declared", [None, 10_000])
def test_what_follows_an_image_in_an_archive_is_not_inflated(tmp_path, declared):
    spec = zipped(tmp_path / "x.zip", [png(40), *zeros()], declared)

    def read():
        with pytest.raises(DataError, match=r"a\.png: "):
            open_data(spec, cache=False)

    open_data(zipped(tmp_path / "y.zip", [png(40)]), cache=False)  # imports
    assert peak_of(read) < MANY / 8


def npy(shape, dtype="|u1", data=b""):
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([npy((2**17, 32, 32)), *zeros()], "decompress"),
        ([npy((2**21, 40, 40))], "declares"),
        ([npy((2, 8, 8), data=bytes(5000))], "declares"),
        ([npy((1,) * 20_000, data=bytes(1))], "header|dimensions"),
        ([npy((1,) * 60, data=bytes(1))], "dimensions"),
        ([npy((2,), "|O", bytes(16))], "objects"),
        ([b"no array"], "cannot be read"),
        ([npy((2,), dtype="nonsense")], "cannot be read"),
        ([npy((2,)).replace(b"}", b"(" * 9)], "cannot be read"),
    ],
)
def test_an_npz_is_bounded_by_what_its_arrays_say(tmp_path, parts, reason):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w") as member:
            for part in parts:
                member.write(part)

    def read():
        with pytest.raises(DataError, match=reason):
            open_data(f"npz:{tmp_path / 'x.npz'}")

    assert peak_of(read) < MANY / 8


def test_an_npz_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=np.zeros((100, 32, 32), np.uint8))
    monkeypatch.setattr(npz, "allowance", lambda: 100_000)
    with pytest.raises(DataError, match="100,000"):
        open_data(f"npz:{tmp_path / 'x.npz'}")


@pytest.mark.parametrize("kind", ["npz", "zip"])
def test_a_pipe_is_no_archive(tmp_path, kind):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(DataError, match=str(tmp_path / "x")):
        open_data(f"{kind}:{tmp_path / 'x'}")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 6, 3), np.uint8),
        np.zeros((6, 8, 1), np.uint8),
        np.zeros((6, 8, 3), np.int8),
        np.zeros((6, 8, 3), np.float32),
    ],
)
def test_a_cache_takes_one_shape_and_type(tmp_path, image):
    with entry_writer(tmp_path / "entry", 2, (6, 8, 3)) as made:
        made.add(np.zeros((6, 8, 3), np.uint8))
        with pytest.raises(RuntimeError, match=r"\(6, 8, 3\)"):
            made.add(image)


def tiff(image, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, image, **options)
    return bytearray(file.getvalue())


GREY = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 31
BASES = [
    tiff(GREY),
    tiff(GREY, bigtiff=True, compression="deflate", predictor=True),
    tiff(GREY.view(np.uint8).reshape(40, 32, 3), photometric="rgb", compression="lzw"),
    tiff(
        GREY.view(np.uint8).reshape(40, 32, 3),
        photometric="rgb",
        compression="jpeg",
        tile=(16, 16),
    ),
    tiff(GREY, byteorder=">", compression="zstd", rowsperstrip=5),
]
EDGES = [b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 4, b"\0\0\0\x40", b"\1\0"]


def changed(base, rng):
    data = bytearray(base)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(0, min(len(data), 400)))
        edge = EDGES[rng.integers(len(EDGES))]
        data[place : place + len(edge)] = edge
    return bytes(data)


@pytest.mark.parametrize("base", range(len(BASES)))
def test_a_damaged_tiff_is_an_image_or_says_why(tmp_path, base):
    """Counts, offsets, sizes and types at their edges, from memory and from disk."""
    rng, refused = np.random.default_rng(base), 0

    def read():
        nonlocal refused
        for _ in range(60):
            data = changed(BASES[base], rng)
            (tmp_path / "x.tif").write_bytes(data)
            try:
                with (tmp_path / "x.tif").open("rb") as file:
                    header = read_header(file)
                decode(data, (8, 8), header.channels or header.samples, (0.0, 9e4))
            except (NotAnImage, MemoryError):
                refused += 1

    start = time.monotonic()
    with strict():
        assert peak_of(read) < 2**28
    assert 10 < refused <= 60
    assert time.monotonic() - start < 30


def test_a_jpeg_in_a_tiff_is_no_larger_than_its_tile():
    small = tiff(np.zeros((16, 16, 3), np.uint8), photometric="rgb", compression="jpeg")
    frame = small.index(b"\xff\xc0")
    small[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(NotAnImage, match="60000"):
        decode(bytes(small), None, 3)


SIDE = 1600
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4)).astype(np.uint8)
PALETTE = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
PLANES = np.moveaxis(NOISE.view(np.uint16), -1, 0)
STRIPS = {"rowsperstrip": 64}
COSTLY = {
    "palette": (
        NOISE[..., 0],
        {"photometric": "palette", "colormap": PALETTE} | STRIPS,
    ),
    "RGBA": (NOISE, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "CMYK": (NOISE, {"photometric": "separated"}),
    "planes": (PLANES, {"photometric": "minisblack", "planarconfig": "separate"}),
    "floats": (PLANES[0] / np.float32(65535), {"predictor": True}),
    "doubles, tiles": (PLANES[0] / 65535, {"tile": (256, 256), "byteorder": ">"}),
    "12 bits": (PLANES[0] >> 4, {"photometric": "minisblack", "bitspersample": 12}),
    "MINISWHITE": (NOISE[..., 0], {"photometric": "miniswhite", "byteorder": ">"}),
}


@pytest.mark.parametrize("case", COSTLY)
def test_the_header_says_how_much_memory_decoding_takes(case):
    image, options = COSTLY[case]
    if "predictor" in options or "tile" in options:
        options = {**options, "compression": "zstd"}
    data = bytes(tiff(image, **options))
    header = read_header(io.BytesIO(data))
    channels = header.channels or header.samples
    decode(data, None, channels)  # imports and tables
    # Blocks of a fixed size, and Python's own objects, come on top.
    assert peak_of(lambda: decode(data, None, channels)) < header.cost + 2**23
