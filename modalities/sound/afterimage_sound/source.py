"""`sound:PATH[,NAME=VALUE…]`: recordings, each clip as a log-mel spectrogram."""

import collections
import dataclasses
import glob
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from afterimage.checkpoints.names import spelling
from afterimage.console import say_once
from afterimage.data.decode import is_hidden, is_metadata, suffix_of
from afterimage.data.images import image_sets
from afterimage.data.sets import Numbers, Request, Splits
from afterimage.data.sources import Source
from afterimage.data.sources.csv import CsvSource
from afterimage.data.sources.folder import listed_kinds, open_tree, walk
from afterimage.errors import DataError, UserError
from afterimage.plugins import SOURCES
from afterimage_sound.recordings import SUFFIXES, Clip, Clips, cut, is_recording
from afterimage_sound.rendering import Rendering, chosen, split_spec

_TABLES = (".csv", ".tsv", ".jsonl")
_CLIPS = ("all", "loudest")
_KINDS = " ".join(sorted(SUFFIXES))


@dataclasses.dataclass(frozen=True)
class Cutting:
    """How recordings become clips, and clips pictures."""

    rendering: Rendering
    clips: str = "all"

    def files(self, folder: str, names: Sequence[str]) -> tuple[Clips, np.ndarray]:
        """The clips of recordings, and the position of each one's recording."""
        parts = cut(folder, names, self.rendering, self.clips)
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        every: dict[str, Clip] = {}
        for name, clip in (pair for part in parts for pair in part.items()):
            if name in every:
                raise DataError(
                    f"{spelling(name)} is listed twice, once as a part of another row"
                )
            every[name] = clip
        return Clips(folder, every, self.rendering), owner


class Table(CsvSource):
    """Recordings listed in a table: each clip has the labels of its recording."""

    name = "sound"

    def __init__(self, cutting: Cutting):
        self._cutting = cutting

    def sets(
        self,
        folder: str,
        names: Sequence[str],
        source: str,
        groups: Mapping[str, tuple[Sequence[int], Sequence[str | None]]],
        request: Request,
        tasks: Mapping[str, Sequence[str | None]] | None = None,
        numbers: Numbers | None = None,
    ) -> Splits:
        files, owner = self._cutting.files(folder, names)
        ends = np.searchsorted(owner, np.arange(len(names) + 1)).tolist()
        mine = [range(*pair) for pair in itertools.pairwise(ends)]
        spread = {
            split: (
                [clip for row in rows for clip in mine[row]],
                [name for row, name in zip(rows, classes) for _ in mine[row]],
            )
            for split, (rows, classes) in groups.items()
        }
        more = {k: [names[row] for row in owner] for k, names in (tasks or {}).items()}
        numbers = None if numbers is None else numbers.rows(owner)
        return image_sets(files, source, spread, request, more, numbers)


@SOURCES.add("sound")
class SoundSource(Source):
    """Recordings (wav, flac, ogg, mp3, aiff) as spectrograms, a picture for each clip.

    PATH is a folder, laid out as that of folder:; a table, as that of csv:; or a
    recording. Settings follow it: `sound:calls,seconds=2,mels=128` (`Rendering`), and
    clips=loudest for the loudest clip of each recording instead of all. An encoder's
    own settings are used where it reads sound.
    """

    form = "PATH[,NAME=VALUE]"
    tasks = True
    numbers = True
    named_splits = True
    augment = "sounds"

    def open(self, rest: str, request: Request) -> Splits:
        path, given = split_spec(rest)
        clips = given.pop("clips", "all")
        if clips not in _CLIPS:
            raise UserError(f"sound: clips={clips!r}: must be {' or '.join(_CLIPS)}")
        cutting = Cutting(chosen(given, request.rendering), clips)
        request = _at_size(request, cutting.rendering)
        if path.lower().endswith(_TABLES):
            found = Table(cutting).open(path, request)
        else:
            found = _tree(path, f"sound:{spelling(rest)}", cutting, request)
        own = str(cutting.rendering)
        sets = {field.name: getattr(found, field.name) for field in _SPLITS}
        return Splits(
            **{k: s and dataclasses.replace(s, rendering=own) for k, s in sets.items()}
        )


_SPLITS = dataclasses.fields(Splits)


def _at_size(request: Request, rendering: Rendering) -> Request:
    """The request at the size of the pictures; a rule for sizes does not apply."""
    height, width = rendering.mels, rendering.frames
    if callable(request.image_size):
        return dataclasses.replace(request, image_size=None)
    if request.image_size is None or request.rendering or height == width:
        return request
    raise UserError(
        f"image_size={request.image_size}: spectrograms are {height}x{width}, and the "
        "ends of each clip would be cut off. Set mels, and hop or seconds, instead"
    )


def _tree(path: str, source: str, cutting: Cutting, request: Request) -> Splits:
    """The splits of recordings whose folders give the classes."""
    if request.tasks or request.numbers is not None:
        raise UserError(
            f"{source}: a folder gives one class for each recording. For several "
            "labels or numbers, list the recordings in a table: sound:PATH.csv"
        )
    place = os.path.expanduser(path)
    if os.path.isdir(place):
        folder, names = place, _recordings(place, source)
    else:
        found = [place] if os.path.isfile(place) else glob.glob(place, recursive=True)
        folder, names = "", sorted(filter(is_recording, found))
        if not names:
            raise DataError(
                f"{source} is not a folder, a table or a recording; expected {_KINDS}"
            )
    files, _ = cutting.files(folder, names)
    if not folder:
        groups = {"train": (range(len(files.names)), [None] * len(files.names))}
        return image_sets(files, source, groups, request)
    return open_tree(files, source, request)


def _recordings(folder: str, source: str) -> list[str]:
    """All recordings below a folder; DataError if there are none."""
    everything = sorted(walk(pathlib.Path(folder)))
    seen = [name for name in everything if not any(map(is_hidden, name.split("/")))]
    names, tables = (list(filter(kind, seen)) for kind in (is_recording, is_metadata))
    ours = {*names, *tables}
    kinds = (suffix_of(name) or "without suffix" for name in seen if name not in ours)
    others = listed_kinds(dict(collections.Counter(kinds).most_common()))
    if not names:
        raise DataError(
            f"{source} contains no recordings{f' (only {others})' if others else ''}; "
            f"expected {_KINDS}, directly, in one subfolder per class, or in train/, "
            "validation/, test/ above those"
        )
    if tables:
        say_once(
            f"{source}: the labels in {tables[0]} are not used; to use them, give "
            f"sound:PATH/{tables[0]}"
        )
    if others:
        say_once(f"{source}: other files are ignored: {others}")
    return names
