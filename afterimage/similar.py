"""The images of an album that are nearest to some, and those that are nearly the same.

An index keeps the vectors of an album: `vectors.f32`, unit vectors one after another,
and `images.jsonl`, a line for each with the image's name and mark. Both only grow, so
an update that was stopped continues; what is no longer in the album is not searched,
and removed when it is more than half.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from afterimage.checkpoints.files import RunLock, replace_file
from afterimage.checkpoints.names import printable, spelling
from afterimage.console import ProgressBar, say_reading
from afterimage.contact_sheet import label_of, write_sheet
from afterimage.data import ImageSet, Preprocessing
from afterimage.data.images import marks, read_or_reason
from afterimage.data.pixels import cover_and_crop
from afterimage.encoder import Encoder, load_encoder
from afterimage.errors import DataError, disk_errors
from afterimage.evaluation.configs import SimilarConfig
from afterimage.evaluation.nearest import nearest
from afterimage.evaluation.probes import unit_rows
from afterimage.fields import output_file
from afterimage.reading import ReadingOptions
from afterimage.rows import every_image, one_spec
from afterimage.runs import beside
from afterimage.storage.outputs import uploads

_VECTORS, _IMAGES = "vectors.f32", "images.jsonl"
_KINDS = (".csv", ".jsonl", ".png", ".html")
_SHOWN = 128  # pixels of a picture
_MOST_ROWS = 40  # of a contact sheet
_COPIES = 256  # images whose copies set the threshold of duplicates
_NEAREST = 16  # neighbours of an image that may be its duplicates


@dataclasses.dataclass(frozen=True)
class Match:
    """An image of the album that is near another."""

    image: str
    """The query; of duplicates, the first of the group."""
    file: str
    """The image of the album."""
    cosine: float
    """In [-1, 1]."""


class Index:
    """The vectors of an album in a folder, by one encoder; see the module's docstring.

    `update` brings it up to the album, `search` finds the nearest.
    """

    def __init__(self, folder: str | os.PathLike[str], encoder: Encoder):
        self.folder, self._encoder = pathlib.Path(folder), encoder
        self.names: list[str] = []
        """The images of the album that have a vector, in the album's order."""
        self.bad: dict[str, str] = {}
        """{image: why it has none}."""
        self.computed = 0
        """Images whose vectors the last update computed."""
        self.vectors: Float[np.ndarray, "n d"] = np.empty((0, encoder.num_features))
        """Their unit vectors."""

    def update(self, images: ImageSet, batch_size: int = 256) -> None:
        """Compute the vectors of new and changed images; drop those that are gone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with RunLock(self.folder):
            wanted = dict(zip(images.ids, marks(images), strict=True))
            lines = self._read()
            known = {line["file"]: row for row, line in enumerate(lines)}
            new = [
                place
                for place, (name, mark) in enumerate(wanted.items())
                if name not in known or lines[known[name]]["mark"] != mark
            ]
            lines += self._append(images, new, wanted, batch_size)
            known = {line["file"]: row for row, line in enumerate(lines)}
            rows = [known[name] for name in wanted]
            if len(lines) > 2 * len(rows):
                lines, rows = self._compact(lines, rows), list(range(len(rows)))
        self.computed = len(new)
        self.bad = {
            lines[r]["file"]: lines[r]["bad"] for r in rows if "bad" in lines[r]
        }
        rows = [r for r in rows if "bad" not in lines[r]]
        self.names = [lines[r]["file"] for r in rows]
        stored = self._stored(len(lines))
        whole = rows == list(range(len(lines)))
        self.vectors = stored if whole else stored[np.array(rows, np.int64)]

    def search(
        self, queries: Float[np.ndarray, "q d"], count: int
    ) -> tuple[Int[np.ndarray, "q k"], Float[np.ndarray, "q k"]]:
        """(rows of `names`, cosines) of the nearest images, nearest first; exact."""
        return nearest(unit_rows(queries), self.vectors, count)

    def _mark(self) -> str:
        """The first line: the same only for vectors that can be compared."""
        manifest = self._encoder.manifest
        made = [manifest.get(key) for key in ("files", "model", "trained")]
        text = json.dumps([*made, self._encoder.num_features], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _read(self) -> list[dict[str, Any]]:
        """The lines that are whole and have a vector; none if they are of another
        encoder."""
        path, vectors = self.folder / _IMAGES, self.folder / _VECTORS
        width = 4 * self._encoder.num_features
        whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        if not whole or whole[0] + b"\n" != self._first_line():
            vectors.unlink(missing_ok=True)
            replace_file(path, self._first_line())
            whole = [b""]
        else:
            have = vectors.stat().st_size // width if vectors.exists() else 0
            whole = whole[: 1 + have]
            os.truncate(path, sum(len(line) + 1 for line in whole))
        with vectors.open("ab") as file:
            file.truncate((len(whole) - 1) * width)
        return [json.loads(line) for line in whole[1:]]

    def _first_line(self) -> bytes:
        return (json.dumps({"encoder": self._mark()}) + "\n").encode()

    def _append(
        self,
        images: ImageSet,
        new: Sequence[int],
        wanted: Mapping[str, str],
        batch_size: int,
    ) -> list[dict[str, Any]]:
        """Writes vectors and lines of these images, batch by batch."""
        found, read = [], []
        zero = np.zeros((1, self._encoder.num_features), np.float32)

        def batches() -> Iterator[np.ndarray]:
            for start in range(0, len(new), batch_size):
                rows = new[start : start + batch_size]
                got = read_or_reason(images, np.array(rows))
                read.append([(images.ids[r], one) for r, one in zip(rows, got)])
                good = [one for one in got if not isinstance(one, str)]
                yield np.stack(good) if good else images_of(self._encoder, zero)

        with (
            (self.folder / _VECTORS).open("ab") as vectors,
            (self.folder / _IMAGES).open("a", encoding="utf-8") as lines,
            ProgressBar(len(new), "indexing") as progress,
        ):
            for out in self._encoder.stream(batches(), batch_size=batch_size):
                part, own = read.pop(0), iter(unit_rows(out))
                for name, one in part:
                    line = {"file": name, "mark": wanted[name]}
                    bad = isinstance(one, str)
                    vectors.write((zero[0] if bad else next(own)).tobytes())
                    found.append(line | ({"bad": printable(one)} if bad else {}))
                # Vectors first: a line promises one.
                vectors.flush()
                lines.writelines(json.dumps(one) + "\n" for one in found[-len(part) :])
                lines.flush()
                progress.add(len(part))
        return found

    def _stored(self, count: int) -> Float[np.ndarray, "n d"]:
        width = self._encoder.num_features
        if not count:
            return np.empty((0, width), np.float32)
        return np.memmap(self.folder / _VECTORS, np.float32, "r", shape=(count, width))

    def _compact(
        self, lines: Sequence[dict[str, Any]], rows: Sequence[int]
    ) -> list[dict[str, Any]]:
        """Rewrites both files with these rows only."""
        kept = [lines[row] for row in rows]
        vectors = np.asarray(self._stored(len(lines))[np.array(rows, np.int64)])
        text = "".join(json.dumps(line) + "\n" for line in kept).encode()
        # Between the two the lines are too many for the vectors, and `_read` sees it.
        replace_file(self.folder / _IMAGES, self._first_line())
        replace_file(self.folder / _VECTORS, vectors.tobytes())
        replace_file(self.folder / _IMAGES, self._first_line() + text)
        return kept


def images_of(encoder: Encoder, rows: np.ndarray) -> np.ndarray:
    """Black images, one for each row, where a batch has none that can be read."""
    shape = (*encoder.preprocessing.image_size, encoder.preprocessing.channels)
    return np.zeros((len(rows), *shape), np.uint8)


@dataclasses.dataclass(frozen=True)
class Similar:
    """What was found in an album."""

    matches: tuple[Match, ...]
    """For each query the nearest images, nearest first; or groups of duplicates."""
    album: int
    """Images in the album that could be read."""
    computed: int
    """Images that were new or changed."""
    bad: Mapping[str, str]
    """{image: why it could not be read}."""
    threshold: float | None
    """The cosine from which on images are duplicates."""
    written: tuple[pathlib.Path | str, ...]
    """The files; URLs of those in a bucket."""

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.album:,} images, {self.computed:,} of them new or changed"]
        if self.bad:
            lines.append(f"{len(self.bad):,} could not be read")
        if self.threshold is not None:
            groups = len({match.image for match in self.matches})
            what = f"cosine {self.threshold:.3f} or more"
            lines.append(f"{groups:,} groups of duplicates ({what})")
        last = ""
        for match in self.matches[:_MOST_ROWS]:
            if match.image != last:
                lines.append(match.image)
            last = match.image
            lines.append(f"  {match.cosine:.3f}  {match.file}")
        if len(self.matches) > _MOST_ROWS:
            lines.append(f"  and {len(self.matches) - _MOST_ROWS:,} more")
        return "\n".join([*lines, *(spelling(str(path)) for path in self.written)])


@uploads
def similar(config: SimilarConfig) -> Similar:
    """Bring the index up to the album; find its nearest images, or duplicates.

    Raises UserError for settings that cannot work, DataError for an album without
    images, or a query that is not an image.
    """
    for out in config.out:
        output_file(out, _KINDS)
    encoder = load_encoder(config.from_)
    say_reading(config.data)
    album = _open(config, config.data, encoder.preprocessing)
    folder = _folder(config)
    index = Index(folder, encoder)
    then = " What is indexed so far is kept; the same command continues"
    with disk_errors(f"the index {folder} was not updated", then):
        index.update(album, config.batch_size)
    if not index.names:
        raise DataError(f"{album.name}: none of {len(album):,} images can be read")
    queries, threshold = None, None
    if config.duplicates:
        threshold = config.cosine
        if threshold is None:
            good = set(index.names)
            rows = [row for row, name in enumerate(album.ids) if name in good]
            threshold = copies_cosine(encoder, album.subset(rows))
        matches = duplicates(index, threshold)
    else:
        queries = _open(config, one_spec(config.query), encoder.preprocessing)
        vectors = encoder.features(_read(queries), batch_size=config.batch_size)
        rows, cosines = index.search(vectors, config.top)
        matches = [
            Match(name, index.names[row], round(float(cosine), 6))
            for name, mine, near in zip(queries.ids, rows, cosines)
            for row, cosine in zip(mine, near)
        ]
    found = Similar(
        matches=tuple(matches),
        album=len(index.names),
        computed=index.computed,
        bad=index.bad,
        threshold=threshold,
        written=tuple(map(pathlib.Path, config.out)),
    )
    with disk_errors("the results were not written"):
        _write(config, found, encoder.preprocessing)
    return found


def copies_cosine(encoder: Encoder, album: ImageSet) -> float:
    """The cosine that 95 % of slightly changed copies reach, in this album.

    Of up to 256 images, cut by 4 % and scaled back, and a twentieth darker: what
    another export of the same photo does to it.
    """
    some = np.unique(np.linspace(0, len(album) - 1, _COPIES).astype(int))
    images = album.gather(some)
    height, width = images.shape[1:3]
    y, x = (max(1, round(0.02 * side)) for side in (height, width))
    copies = np.stack(
        [cover_and_crop(one[y:-y, x:-x], (height, width)) for one in images]
    )
    copies = (0.95 * copies).astype(np.uint8)
    both = [unit_rows(encoder.features(part)) for part in (images, copies)]
    return float(np.quantile((both[0] * both[1]).sum(1), 0.05))


def duplicates(index: Index, threshold: float) -> list[Match]:
    """Groups of images whose cosine to the group's first is at least `threshold`.

    In the album's order, an image joins the nearest first of a group among its 16
    nearest images, or becomes the first of a new one.
    """
    count = len(index.names)
    groups: dict[int, list[tuple[int, float]]] = {}
    step = max(1, min(1024, 2**26 // count))
    with ProgressBar(count, "comparing") as progress:
        for start in range(0, count, step):
            part = np.asarray(index.vectors[start : start + step])
            near = nearest(part, index.vectors, _NEAREST)
            for row, others, cosines in zip(range(start, count), *near):
                firsts = [
                    (int(other), float(cosine))
                    for other, cosine in zip(others, cosines)
                    if cosine >= threshold and other in groups
                ]
                if firsts:
                    groups[firsts[0][0]].append((row, firsts[0][1]))
                else:
                    groups[row] = [(row, 1.0)]
            progress.add(len(part))
    return [
        Match(index.names[first], index.names[row], round(cosine, 6))
        for first, rows in groups.items()
        if len(rows) > 1
        for row, cosine in rows
    ]


def _open(config: SimilarConfig, data: str, preprocessing: Preprocessing) -> ImageSet:
    """All images, as one set, at the size of `preprocessing`."""
    reading = ReadingOptions(outside_images=config.outside_images)
    return every_image(data, preprocessing, reading=reading)


def _read(images: ImageSet) -> np.ndarray:
    """All pixels; DataError for an image that cannot be read."""
    return images.gather(np.arange(len(images)))


def _folder(config: SimilarConfig) -> pathlib.Path:
    """Where the index is: as asked, beside the run, or in the cache."""
    if config.index is not None:
        return pathlib.Path(config.index)
    name = re.sub(r"[^A-Za-z0-9.=-]+", "-", config.data).strip("-.")[:80]
    name += "-" + hashlib.sha256(os.fsencode(config.data)).hexdigest()[:8]
    return beside(config.from_, "similar") / name


def _write(config: SimilarConfig, found: Similar, preprocessing: Preprocessing) -> None:
    columns = ["group" if config.duplicates else "query", "file", "cosine"]
    rows = [(match.image, match.file, match.cosine) for match in found.matches]
    sheet = None
    for out in map(pathlib.Path, found.written):
        if out.suffix.lower() == ".csv":
            text = io.StringIO(newline="")
            csv.writer(text).writerows([columns, *rows])
            replace_file(out, text.getvalue().encode())
        elif out.suffix.lower() == ".jsonl":
            lines = (json.dumps(dict(zip(columns, row))) + "\n" for row in rows)
            replace_file(out, "".join(lines).encode())
        else:
            sheet = sheet or _sheet(config, found, preprocessing)
            title = "Duplicates" if config.duplicates else "Similar images"
            write_sheet(out, *sheet, title=title, columns=columns, table=rows)


def _sheet(
    config: SimilarConfig, found: Similar, preprocessing: Preprocessing
) -> tuple[str, dict[str, np.ndarray]]:
    """(caption, images of a contact sheet): a row for each query or group."""
    large = dataclasses.replace(preprocessing, image_size=(_SHOWN, _SHOWN))
    album = _open(config, config.data, large)
    place = {name: row for row, name in enumerate(album.ids)}
    groups: dict[str, list[str]] = {}
    for match in found.matches:
        groups.setdefault(match.image, []).append(match.file)
    shown = dict(list(groups.items())[:_MOST_ROWS])
    first: dict[str, np.ndarray] = {}
    if not config.duplicates:
        queries = _open(config, one_spec(config.query), large)
        first = dict(zip(queries.ids, _read(queries)))
    rows = {}
    for name, files in shown.items():
        files = files[: config.top]
        pixels = album.gather([place[file] for file in files])
        own = first[name][None] if name in first else pixels[:0]
        both = np.concatenate([own, pixels])
        rows[label_of(name, rows)] = both.astype(np.float32) / 255
    of = f"{len(shown)} of {len(groups)} groups" if config.duplicates else "query first"
    caption = f"{of}; {found.album:,} images of {config.data}"
    if found.threshold is not None:
        caption += f"; cosine {found.threshold:.3f} or more"
    return caption, rows
