"""Recordings on disk as files of pictures, one for each clip.

The rest of Afterimage reads pictures: a clip is handed to it as a bitmap, whose pixels
are computed when they are read, not when its header is.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from afterimage.checkpoints.files import open_regular
from afterimage.checkpoints.names import spelling
from afterimage.data.pixels import NotAnImage
from afterimage.data.sources.folder import OnDisk
from afterimage.data.workers import or_reason, reasons, windows
from afterimage_sound.rendering import Rendering

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
SUFFIXES |= {".aif", ".aiff"}
_MOST_CLIPS = 2**20  # of a recording: a header may claim any length
_MOST_VALUES = 2**28  # samples of all channels of a clip: 1 GiB
_PARTS = 20  # the loudest clip begins at a multiple of its length / 20
_FORMAT = 1  # of the pictures, which are cached
_PIECE = re.compile(r"(.+)#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)", re.S)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A piece of a recording; the loudest one if it has no start."""

    path: str
    start: float | None
    """Seconds."""


class Clips(OnDisk):
    """Clips of recordings below `root`, each as a bitmap: `Files`."""

    def __init__(self, root: str, clips: Mapping[str, Clip], rendering: Rendering):
        super().__init__(pathlib.Path(root), list(clips))
        self._folder, self._clips, self._rendering = root, clips, rendering
        self._empty = _bitmap(np.zeros((rendering.mels, rendering.frames), np.uint8))
        self.metadata: Sequence[str] = ()
        self.others: Mapping[str, int] = {}

    def stamp(self, row: int) -> Sequence[int | str]:
        """The recording's size and times, and how it becomes a picture."""
        clip = self._clips[self.names[row]]
        how = f"{_FORMAT} {self._rendering} {clip.start}"
        return (*_stamp(os.path.join(self._folder, clip.path)), how)

    def size(self, row: int) -> int:
        return len(self._empty)

    def open(self, row: int) -> io.BufferedIOBase:
        clip = self._clips[self.names[row]]
        start = len(self._empty) - self._rendering.mels * _line(self._rendering.frames)
        path = os.path.join(self._folder, clip.path)
        return _Later(self._empty[:start], lambda: self._drawn(path, clip))  # pyright: ignore[reportReturnType]

    def read_metadata(self, name: str) -> bytes:
        raise NotAnImage(f"{name} is not read")

    def _drawn(self, path: str, clip: Clip) -> bytes:
        from afterimage_sound.spectrogram import picture

        samples = read_clip(path, clip.start, self._rendering)
        return _bitmap(picture(samples, self._rendering))


class _Later(io.RawIOBase):
    """A file whose bytes after `head` are made when one of them is read."""

    def __init__(self, head: bytes, make: Callable[[], bytes]):
        self._data, self._make, self._at = head, make, 0
        self._whole = False

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def _complete(self) -> None:
        if not self._whole:
            self._data, self._whole = self._make(), True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            self._complete()
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}
        self._at = start[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        every = size is None or size < 0
        if every or self._at + size > len(self._data):
            self._complete()
        found = self._data[self._at :] if every else self._data[self._at :][:size]
        self._at += len(found)
        return found


def _bitmap(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


def _line(width: int) -> int:
    """Bytes of a line of a bitmap."""
    return -(-width // 4) * 4


def _stamp(path: str) -> Sequence[int | str]:
    try:
        found = os.stat(path)
    except OSError as error:  # reading it will report it
        return (str(error.errno),)
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A `soundfile.SoundFile`; NotAnImage if it cannot be read."""
    import soundfile

    with reasons(), open_regular(path) as file:
        try:
            with soundfile.SoundFile(file) as sound:
                if sound.frames < 1 or sound.samplerate < 1:
                    raise NotAnImage("contains no sound")
                yield sound
        except soundfile.SoundFileError as error:
            said = str(error).rpartition(": ")[2].strip(" .") or "cannot be read"
            raise NotAnImage(f"not a recording that can be read: {said}") from error


def read_clip(
    path: str, start: float | None, rendering: Rendering
) -> Float32[np.ndarray, " n"]:
    """The samples of a clip, at most `rendering.samples`: the mean of the channels.

    `start` in seconds; None finds the loudest clip. Resampled by SoXR. Raises
    NotAnImage for a file that cannot be read, or not up to there.
    """
    import soxr

    with _opened(path) as sound:
        wanted = round(rendering.seconds * sound.samplerate)
        if wanted * sound.channels > _MOST_VALUES:
            raise NotAnImage(
                f"{sound.channels} channels of {sound.samplerate:,} Hz: a clip of "
                f"{rendering.seconds:g} s does not fit in memory"
            )
        first = _loudest(sound, wanted) if start is None else start * sound.samplerate
        first = round(first)
        left = sound.frames - first
        if left < 1:
            raise NotAnImage(f"ends before {start:g} s")
        sound.seek(first)
        mono = sound.read(wanted, "float32", always_2d=True).mean(1)
        if len(mono) < min(wanted, left):
            raise NotAnImage("damaged: ends before the length that it states")
        if not np.isfinite(mono).all():
            raise NotAnImage("contains samples that are not numbers")
        return soxr.resample(mono, sound.samplerate, rendering.rate)


def _loudest(sound: Any, length: int) -> int:
    """The first frame of the clip of the greatest energy."""
    part = max(1, length // _PARTS)
    blocks = sound.blocks(part, dtype="float32", always_2d=True)
    energy = np.array([np.square(block).sum() for block in blocks])
    if len(energy) <= _PARTS:
        return 0
    return part * int(np.convolve(energy, np.ones(_PARTS), "valid").argmax())


def cut(
    root: str, names: Sequence[str], rendering: Rendering, clips: str
) -> list[dict[str, Clip]]:
    """For each recording, its clips by their names.

    A recording of several clips names them `talk.wav#t=2,3`, in seconds; such a name
    among `names` is that clip alone. The last clip is dropped if less than half of it
    is sound, unless it is the only one.
    """

    def lengths(row: int) -> float:
        path = os.path.join(root, names[row])
        if clips == "loudest" or _PIECE.fullmatch(names[row]):
            return 0.0
        with _opened(path) as sound:
            seconds = sound.frames / sound.samplerate
            if seconds / rendering.seconds > _MOST_CLIPS:
                raise NotAnImage(f"claims to last {seconds / 3600:,.0f} hours")
            return seconds

    found = windows(or_reason(lengths), range(len(names)), "recordings")
    return [_clips(names[row], long, rendering, clips) for row, long in found]


def _clips(
    name: str, seconds: float | str, rendering: Rendering, clips: str
) -> dict[str, Clip]:
    if piece := _PIECE.fullmatch(name):
        return {name: Clip(piece[1], float(piece[2]))}
    if clips == "loudest":
        return {name: Clip(name, None)}
    each = rendering.seconds
    # One that cannot be read is named when it is.
    count = 1 if isinstance(seconds, str) else max(1, math.floor(seconds / each + 0.5))
    if count == 1:
        return {name: Clip(name, 0.0)}
    starts = [round(number * each, 6) for number in range(count)]
    return {f"{name}#t={t:.10g},{t + each:.10g}": Clip(name, t) for t in starts}


def is_recording(name: str) -> bool:
    """Whether a path has the suffix of a recording."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def shown(names: Sequence[str]) -> str:
    """A few names for a message."""
    return ", ".join(map(spelling, names[:3])) + (" …" if len(names) > 3 else "")
