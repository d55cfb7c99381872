"""Image sets of packages and of ../shared/data, as class folders or arrays.

Recipes are chosen on the sets of DEVELOPMENT; those of STRANGERS only ever test them.
No image is in both.
"""

import collections
import dataclasses
import gzip
import json
import os
import pathlib
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from afterimage.data.sets import stratified
from afterimage.errors import DataError

_MOST_TRAIN, _MOST_TEST = 10_000, 2_000
_TEST_SHARE = 0.25
_SPLIT_SEED = 0  # the same test images in every run
_DEBIAN = (
    "mkdir -p {root} && cd {root} && apt-get download {name} && "
    "dpkg-deb -x {name}_*.deb ."
)


class Missing(DataError):
    """A set whose files are not on this machine; the message says how to get them."""


@dataclasses.dataclass(frozen=True)
class Places:
    """Where files are looked for."""

    data: pathlib.Path
    """`mnist.npz`, `usps.npz`, `cifar10/` and `omniglot/`."""
    packages: pathlib.Path
    """Unpacked packages; those installed on this machine are found as well."""

    def shared(self, name: str) -> pathlib.Path:
        """A file of the data folder."""
        path = self.data / name
        if not path.exists():
            raise Missing(f"there is no {path}: give --folder")
        return path

    def debian(self, package: str, path: str) -> pathlib.Path:
        """A file of a Debian package, installed or unpacked."""
        how = _DEBIAN.format(root=self.packages, name=package)
        return self._found(path, how)

    def npm(self, package: str, path: str) -> pathlib.Path:
        """A file of an npm package."""
        how = f"npm install --prefix {self.packages} {package}"
        return self._found(f"node_modules/{package}/{path}", how)

    def _found(self, path: str, how: str) -> pathlib.Path:
        for root in (self.packages, pathlib.Path("/")):
            if (root / path).exists():
                return root / path
        raise Missing(f"there is no {path}. To get it: {how}")


@dataclasses.dataclass
class Labelled:
    """Images with their classes: arrays of one shape, or files."""

    images: Any
    """Arrays [h, w] or [h, w, 3], or paths, or the bytes of files."""
    classes: Sequence[str]
    test: np.ndarray | None = None
    """Which are test images; None to draw a quarter of each class."""


def _cut(found: Labelled, most: int | None = None) -> Labelled:
    """At most this many images of each class, evenly spaced; small classes go."""
    rows: dict[str, list[int]] = collections.defaultdict(list)
    for row, name in enumerate(found.classes):
        rows[name].append(row)
    kept: list[int] = []
    for mine in rows.values():
        stride = np.linspace(0, len(mine) - 1, min(len(mine), most or len(mine)))
        kept += [mine[int(i)] for i in stride]
    kept.sort()
    test = None if found.test is None else found.test[kept]
    images, classes = found.images, found.classes
    return Labelled([images[r] for r in kept], [classes[r] for r in kept], test)


def _large(found: Labelled, least: int) -> Labelled:
    """Only classes with at least this many images."""
    count = collections.Counter(found.classes)
    rows = [i for i, name in enumerate(found.classes) if count[name] >= least]
    return Labelled(
        [found.images[r] for r in rows], [found.classes[r] for r in rows], None
    )


def _arrays(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray] | None
) -> Labelled:
    parts = [train] if test is None else [train, test]
    images = np.concatenate([x for x, _ in parts])
    classes = [str(name) for _, y in parts for name in y]
    if test is None:
        return Labelled(images, classes)
    return Labelled(images, classes, np.arange(len(images)) >= len(train[0]))


def _mnist(places: Places) -> Labelled:
    """Only images of the training split: recipes are chosen on them."""
    with np.load(places.shared("mnist.npz")) as file:
        return _cut(_arrays((file["x_train"], file["y_train"]), None), 1_200)


def _usps(places: Places) -> Labelled:
    with np.load(places.shared("usps.npz")) as file:
        train, test = ((file[f"x_{s}"], file[f"y_{s}"]) for s in ("train", "test"))
        return _arrays(train, test)


def _idx(path: pathlib.Path) -> np.ndarray:
    """An array in the format of the original MNIST files, uint8."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _fashion(places: Places) -> Labelled:
    def part(split: str) -> tuple[np.ndarray, np.ndarray]:
        folder = "usr/share/datasets/fashion-mnist"
        images, labels = (
            _idx(places.debian("dataset-fashion-mnist", f"{folder}/{split}-{what}.gz"))
            for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
        )
        return images, labels

    return _arrays(part("train"), part("t10k"))


def _zipped(*paths: pathlib.Path) -> tuple[list[bytes], list[str]]:
    """(files, names) of all PNG and JPEG files in the archives."""
    files, names = [], []
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith((".png", ".jpg")):
                    files.append(archive.read(name))
                    names.append(name)
    return files, names


def _cifar(part: int) -> Callable[[Places], Labelled]:
    def read(places: Places) -> Labelled:
        files, names = _zipped(places.shared(f"cifar10/train-{part}.zip"))
        return Labelled(files, [name.split("/")[-2] for name in names])

    return read


def _cifar_other(places: Places) -> Labelled:
    """Another part of the same photos, and the test split."""
    found = _cifar(2)(places)
    files, names = _zipped(places.shared("cifar10/test.zip"))
    classes = [*found.classes, *(name.split("/")[-2] for name in names)]
    test = np.arange(len(classes)) >= len(found.images)
    return Labelled([*found.images, *files], classes, test)


def _omniglot(places: Places) -> Labelled:
    """Characters; the test drawings are by five of twenty people."""
    files, names = _zipped(places.shared("omniglot/background_small1.zip"))
    classes = ["-".join(name.split("/")[-3:-1]) for name in names]
    people = np.array([int(name[-6:-4]) for name in names])
    chosen = np.random.default_rng(_SPLIT_SEED).permutation(np.unique(people))[:5]
    return Labelled(files, classes, np.isin(people, chosen))


def _spoken(places: Places) -> Labelled:
    """Spectrograms of spoken letters and syllables; the class is the language, that is
    the speaker."""
    folder = places.debian("klettres-data", "usr/share/klettres")
    paths = sorted(folder.glob("*/alpha/*.ogg")) + sorted(folder.glob("*/syllab/*.ogg"))
    found = _large(Labelled(paths, [path.parts[-3] for path in paths]), 50)
    found = _cut(found, 150)
    return dataclasses.replace(
        found, images=np.stack([spectrogram(path) for path in found.images])
    )


def spectrogram(path: pathlib.Path, side: int = 64) -> np.ndarray:
    """Log power up to 8 kHz over the sound's loud part, uint8 [side, side].

    80 dB below the loudest is black.
    """
    import cv2
    import scipy.signal

    try:
        import soundfile
    except ImportError:
        raise Missing("spoken letters need a decoder: pip install soundfile") from None
    sound, rate = soundfile.read(path, always_2d=True)
    mono = scipy.signal.resample_poly(sound.mean(1), 16_000, rate)
    _, _, power = scipy.signal.spectrogram(mono, 16_000, nperseg=512, noverlap=384)
    decibels = 10 * np.log10(power / power.max() + 1e-12)
    loud = np.flatnonzero(decibels.max(0) > -40)
    part = decibels[::-1, loud[0] : loud[-1] + 1]
    grey = np.clip((part + 80) / 80 * 255, 0, 255).astype(np.uint8)
    return cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA)


def _clipart(places: Places) -> Labelled:
    """Drawings by subject, of all sizes up to ten million pixels."""
    folder = places.debian("openclipart-png", "usr/share/openclipart/png")
    paths, classes = [], []
    for path in sorted(folder.rglob("*.png")):
        subject = path.relative_to(folder).parts[0]
        if subject in ("special", "unsorted"):
            continue
        # Width and height of a PNG, without Pillow's error for huge ones.
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        if width * height < 10_000_000:
            paths.append(path)
            classes.append(subject)
    return _cut(_large(Labelled(paths, classes), 100), 400)


def _emoji(places: Places) -> Labelled:
    package = "emoji-datasource-google"
    listed = json.loads(places.npm(package, "emoji.json").read_text())
    shown = [e for e in listed if e["has_img_google"] and e["category"] != "Component"]
    folder = places.npm(package, "img/google/64")
    return Labelled(
        [folder / e["image"] for e in shown],
        [e["category"].replace(" ", "").replace("&", "-") for e in shown],
    )


def _stamps(places: Places) -> Labelled:
    """Photos and drawings of things on white, of all sizes."""
    folder = places.debian("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps")
    paths = [p for p in sorted(folder.rglob("*.png")) if "_mirror" not in p.stem]
    return _large(
        Labelled(paths, [path.relative_to(folder).parts[0] for path in paths]), 60
    )


def _terrain(places: Places) -> Labelled:
    """Tiles of the maps of a game, Battle for Wesnoth; the class is the terrain."""
    images = "usr/share/games/wesnoth/1.16/data/core/images"
    folder = places.debian("wesnoth-1.16-data", images) / "terrain"
    paths = sorted(folder.rglob("*.png"))
    found = Labelled(paths, [path.relative_to(folder).parts[0] for path in paths])
    return _cut(_large(found, 100), 150)


_FONTS = {
    "fonts-freefont-otf": "opentype/freefont",
    "fonts-lato": "truetype/lato",
    "fonts-open-sans": "truetype/open-sans",
    "fonts-roboto-unhinted": "truetype/roboto/unhinted/RobotoTTF",
    "fonts-urw-base35": "opentype/urw-base35",
}
_SYMBOLS = ("D050000L", "StandardSymbols")


def _fonts(places: Places) -> Labelled:
    """Capital letters, grey, 32 pixels; test letters are of other font families."""
    from PIL import Image, ImageDraw, ImageFont

    paths = [
        path
        for package, folder in _FONTS.items()
        for path in places.debian(package, f"usr/share/fonts/{folder}").iterdir()
        if path.suffix in (".otf", ".ttf") and not path.name.startswith(_SYMBOLS)
    ]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    images, classes, families = [], [], []
    for path in sorted(paths):
        font = ImageFont.truetype(str(path), 26)
        for letter in letters:
            shown = Image.new("L", (32, 32))
            ImageDraw.Draw(shown).text((16, 16), letter, 255, font, anchor="mm")
            images.append(np.asarray(shown))
            classes.append(letter)
            families.append(path.name[:5])
    names = np.unique(families)
    chosen = np.random.default_rng(_SPLIT_SEED).permutation(names)[: len(names) // 4]
    return Labelled(images, classes, np.isin(families, chosen))


DEVELOPMENT: dict[str, Callable[[Places], Labelled]] = {
    "cifar10": _cifar(0),
    "mnist": _mnist,
    "emoji": _emoji,
    "stamps": _stamps,
    "terrain": _terrain,
    "fonts": _fonts,
}
STRANGERS: dict[str, Callable[[Places], Labelled]] = {
    "fashion": _fashion,
    "usps": _usps,
    "omniglot": _omniglot,
    "spoken": _spoken,
    "clipart": _clipart,
    "cifar10-other": _cifar_other,
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """An image set as `afterimage` reads it: npz files for arrays, else folders."""

    labelled: str
    """Training and test images with their classes."""
    unlabelled: str
    """The training images alone, without classes: for pretraining."""


def prepared(name: str, places: Places, out: pathlib.Path) -> Prepared:
    """The paths of a set, written below `out` unless it is there.

    At most 10,000 training and 2,000 test images. Raises Missing.
    """
    for kind in (".npz", ""):
        if (out / f"{name}-unlabelled{kind}").exists():
            return _prepared(out, name, kind)
    found = (DEVELOPMENT | STRANGERS)[name](places)
    kind = _write(name, found, out)
    return _prepared(out, name, kind)


def _prepared(out: pathlib.Path, name: str, kind: str) -> Prepared:
    return Prepared(*(str(out / f"{name}{part}{kind}") for part in ("", "-unlabelled")))


def _write(name: str, found: Labelled, out: pathlib.Path) -> str:
    """Writes a set; ".npz", or "" for a folder."""
    names = sorted(set(found.classes))
    labels = np.array([names.index(name) for name in found.classes], np.int32)
    test = found.test
    if test is None:
        _, held = stratified(labels, len(labels), _TEST_SHARE, _SPLIT_SEED)
        test = np.isin(np.arange(len(labels)), held)
    rng = np.random.default_rng(_SPLIT_SEED)
    parts = ("train", ~test, _MOST_TRAIN), ("test", test, _MOST_TEST)
    rows = {
        split: np.sort(rng.permutation(np.flatnonzero(mine))[:most])
        for split, mine, most in parts
    }
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(found.images[0], np.ndarray):
        _write_arrays(out / name, np.stack(list(found.images)), labels, rows)
        return ".npz"
    _write_folder(out / name, found, rows)
    return ""


def _write_arrays(
    place: pathlib.Path, images: np.ndarray, labels: np.ndarray, rows: dict
) -> None:
    arrays = {f"x_{split}": images[mine] for split, mine in rows.items()}
    labelled = arrays | {f"y_{split}": labels[mine] for split, mine in rows.items()}
    np.savez(f"{place}.npz", **labelled)  # pyright: ignore[reportArgumentType]
    np.savez(f"{place}-unlabelled.npz", images=arrays["x_train"])


def _write_folder(place: pathlib.Path, found: Labelled, rows: dict) -> None:
    scratch = place.with_name(f".{place.name}")
    for folder in (place, scratch):
        shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir()
    for split, mine in rows.items():
        for row in mine:
            image = found.images[row]
            data = image if isinstance(image, bytes) else image.read_bytes()
            suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
            file = place / split / str(found.classes[row]) / f"{row:05d}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            if split == "train":
                os.link(file, scratch / file.name)
    scratch.rename(f"{place}-unlabelled")
