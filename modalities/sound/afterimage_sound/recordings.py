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
from afterimage.data.pixels import NotAnImage
from afterimage.data.sources.folder import OnDisk
from afterimage.data.workers import or_reason, reasons, windows
from afterimage_sound.rendering import Rendering

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
SUFFIXES |= {".aif", ".aiff"}
_LONGEST = 1_000_000  # seconds of a recording: a header may claim any length
_MOST_VALUES = 2**26  # samples of all channels of a clip: 256 MiB
_HEADER = 14 + 40 + 4 * 256  # bytes of a grey bitmap before its pixels
_PARTS = 20  # the loudest clip begins at a multiple of its length / 20
_FORMAT = 1  # of the pictures, which are cached
_PART = re.compile(r"(.+)#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)", re.S)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A piece of a recording, in seconds; the loudest one if it has no start."""

    path: str
    start: float | None
    length: float | int


class Clips:
    """Clips of recordings below `root`, by name, each as a bitmap: a `FileTree`."""

    def __init__(self, root: str, clips: Mapping[str, Clip], rendering: Rendering):
        self._root, self._clips, self._rendering = root, clips, rendering
        self._empty = _bitmap(np.zeros((rendering.mels, rendering.frames), np.uint8))
        self.names: Sequence[str] = list(clips)
        self.metadata: Sequence[str] = ()
        self.others: Mapping[str, int] = {}

    def stamp(self, row: int) -> Sequence[int | str]:
        """The recording's size and times, and how it becomes a picture."""
        clip = self._clips[self.names[row]]
        how = f"{_FORMAT} {self._rendering} {clip.start} {clip.length}"
        file = OnDisk(pathlib.Path(self._root), [clip.path])
        return (*file.stamp(0), how)

    def size(self, row: int) -> int:
        """Bytes of its bitmap."""
        return len(self._empty)

    def open(self, row: int) -> io.BufferedIOBase:
        """Its bitmap."""
        return _Later(self._empty, lambda: self._drawn(self._clips[self.names[row]]))

    def read_metadata(self, name: str) -> bytes:
        """NotAnImage: labels are those of folders, or of a table that is given."""
        raise NotAnImage(f"{name} is not read")

    def _drawn(self, clip: Clip) -> bytes:
        from afterimage_sound.spectrogram import picture

        samples = read_clip(self._root, clip, self._rendering.rate)
        return _bitmap(picture(samples, self._rendering))


class _Later(io.BytesIO):
    """An empty bitmap that is drawn when more than its header is read."""

    def __init__(self, empty: bytes, draw: Callable[[], bytes]):
        super().__init__(empty)
        self._draw, self._drawn = draw, False

    def read(self, size: int | None = -1, /) -> bytes:
        here = self.tell()
        if not self._drawn and (size is None or not 0 <= size <= _HEADER - here):
            self._drawn = True
            self.seek(0)
            self.write(self._draw())
            self.seek(here)
        return super().read(size)


def _bitmap(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A `soundfile.SoundFile`; NotAnImage if it cannot be read."""
    import soundfile

    with reasons(), open_regular(path) as file:
        try:
            with soundfile.SoundFile(file) as sound:
                if sound.frames < 1 or sound.samplerate < 1:
                    raise NotAnImage("contains no sound")
                if sound.frames / sound.samplerate > _LONGEST:
                    raise NotAnImage(f"claims to last more than {_LONGEST:,} seconds")
                yield sound
        except soundfile.SoundFileError as error:
            said = str(error).rpartition(": ")[2].strip(" .") or "cannot be read"
            raise NotAnImage(f"not a recording that can be read: {said}") from error


def read_clip(root: str, clip: Clip, rate: int) -> Float32[np.ndarray, " n"]:
    """The samples of a clip: the mean of the channels, resampled to `rate` by SoXR.

    Fewer if the recording ends. Raises NotAnImage for a file that cannot be read, or
    not up to there.
    """
    import soxr

    with _opened(os.path.join(root, clip.path)) as sound:
        wanted = max(1, round(clip.length * sound.samplerate))
        if wanted * sound.channels > _MOST_VALUES:
            raise NotAnImage(
                f"{sound.channels} channels of {sound.samplerate:,} Hz: a clip of "
                f"{clip.length:g} s does not fit in memory"
            )
        if clip.start is None:
            first = _loudest(sound, wanted)
        else:
            first = round(clip.start * sound.samplerate)
        left = sound.frames - first
        if left < 1:
            raise NotAnImage(f"ends before {clip.start:g} s")
        sound.seek(first)
        mono = sound.read(wanted, "float32", always_2d=True).mean(1)
        if len(mono) < min(wanted, left):
            raise NotAnImage("damaged: ends before the length that it states")
        if not np.isfinite(mono).all():
            raise NotAnImage("contains samples that are not numbers")
        return soxr.resample(mono, sound.samplerate, rate)


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
    among `names` is that part alone. The last clip is dropped if less than half of it
    is sound, unless it is the only one.
    """

    def lengths(row: int) -> float:
        path = os.path.join(root, names[row])
        if clips == "loudest" or _PART.fullmatch(names[row]):
            return 0.0
        with _opened(path) as sound:
            return sound.frames / sound.samplerate

    every = range(len(names))
    found = windows(or_reason(lengths), every, "recordings", unit="recordings")
    return [_clips(names[row], long, rendering, clips) for row, long in found]


def _clips(
    name: str, seconds: float | str, rendering: Rendering, clips: str
) -> dict[str, Clip]:
    """`seconds` is a recording's length, or why it cannot be read, which reading it
    will say."""
    each = rendering.seconds
    path, start, end = name, 0.0, each if isinstance(seconds, str) else seconds
    if part := _PART.fullmatch(name):
        path, start, end = part[1], float(part[2]), float(part[3])
    elif clips == "loudest":
        return {name: Clip(name, None, each)}
    count = math.floor((end - start) / each + 0.5)
    if count < 2:
        return {name: Clip(path, start, min(each, end - start))}
    starts = [round(start + number * each, 6) for number in range(count)]
    return {f"{path}#t={t:.10g},{t + each:.10g}": Clip(path, t, each) for t in starts}


def is_recording(name: str) -> bool:
    """Whether a path has the suffix of a recording."""
    return os.path.splitext(name)[1].lower() in SUFFIXES
