"""How a clip of sound becomes a picture: settings, and their form in a spec."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from afterimage.errors import UserError, did_you_mean

_MOST_SIDE = 2048
_INTEGERS = ("rate", "mels", "window", "hop")
_RANGES = {
    "seconds": (0.05, 600.0),
    "rate": (1_000, 384_000),
    "mels": (8, 512),
    "window": (16, 65_536),
    "hop": (1, 65_536),
    "low": (0.0, 192_000.0),
    "high": (1.0, 192_000.0),
    "range": (1.0, 200.0),
    "top": (-200.0, 200.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
    """A clip of `seconds` -> a uint8 image [mels, frames, 1], high tones above.

    Its values are decibels, 10 log10 max(p, 1e-10), from `top - range` (0) to `top`
    (255). p is the power in mel bands, as librosa's `melspectrogram` defines it: Hann
    window, frames centred on multiples of `hop`, silence beyond the ends, Slaney's mel
    scale and norm. A sine of full scale reaches about 25 dB.

    Raises UserError for values that cannot be, all at once.
    """

    seconds: float | int = 1.0
    """Length of a clip; a shorter one is continued by silence."""
    rate: int = 16_000
    """Samples per second, to which recordings are resampled."""
    mels: int = 64
    """Mel bands: the height of the picture."""
    window: int = 512
    """Samples of a window of the Fourier transform."""
    hop: int = 250
    """Samples from one window to the next; seconds * rate / hop is the width."""
    low: float | int = 0.0
    """The lowest frequency, Hz."""
    high: float | int | None = None
    """The highest frequency, Hz. Default: half the rate."""
    range: float | int = 80.0
    """Decibels between black and white."""
    top: float | int | None = None
    """The decibels of white. Default: the loudest value of each clip, but at least
    `range - 100`, so that silence is black."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise UserError("sound: " + "\n".join(problems))

    def _problems(self) -> Iterator[str]:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                yield f"{name}={value:g}: must be from {low:g} to {high:g}"
                return
        if not self.low < self.highest <= self.rate / 2:
            yield (
                f"low={self.low:g}, high={self.highest:g}: must rise, up to half the "
                f"rate, {self.rate / 2:g}"
            )
        elif not 8 <= self.frames <= _MOST_SIDE:
            yield (
                f"seconds={self.seconds:g}, rate={self.rate}, hop={self.hop}: a width "
                f"of {self.frames}; must be from 8 to {_MOST_SIDE}: change hop"
            )
        else:
            from afterimage_sound.spectrogram import mel_filters

            if empty := int((mel_filters(self).max(1) == 0).sum()):
                yield (
                    f"mels={self.mels}: {empty} bands would be empty, as they are "
                    f"narrower than a step of the transform; use fewer, or a longer "
                    f"window than {self.window}"
                )

    @property
    def highest(self) -> float | int:
        """The highest frequency, Hz."""
        return self.rate / 2 if self.high is None else self.high

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return round(self.seconds * self.rate)

    @property
    def frames(self) -> int:
        """Width of the picture."""
        return self.samples // self.hop

    def __str__(self) -> str:
        """The form stored with an encoder: `sound,seconds=1,rate=16000,…`."""
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        given = [f"{name}={value:.10g}" for name, value in pairs if value is not None]
        return ",".join(["sound", *given])

    @classmethod
    def parse(cls, stored: str) -> "Rendering":
        """The inverse of `str`; UserError for pictures that are not of sound."""
        path, given = split_spec(stored)
        if path != "sound":
            raise UserError(
                f"this encoder's images were made as {stored!r}, not from sound; use "
                "an encoder that was trained on sound: data, or on pictures"
            )
        return cls(**given)


def split_spec(text: str) -> tuple[str, dict[str, Any]]:
    """`PATH,seconds=2,mels=32` -> (path, {setting: value}).

    `clips` is text, the others are numbers. Raises UserError for an unknown setting or
    a value that is no number.
    """
    path, given = re.fullmatch(r"(.*?)((?:,\w+=[^,/]*)*)", text, re.S).groups()  # pyright: ignore[reportOptionalMemberAccess]
    found: dict[str, Any] = {}
    known = (*_RANGES, "clips")
    for name, value in re.findall(r",(\w+)=([^,]*)", given):
        if name not in known:
            raise UserError(
                f"sound: {name}={value}: unknown setting{did_you_mean(name, known)} "
                f"There are: {', '.join(known)}"
            )
        found[name] = value if name == "clips" else _number(name, value)
    return path, found


def _number(name: str, value: str) -> float | int:
    try:
        return int(value) if name in _INTEGERS else float(value)
    except ValueError:
        kind = "a whole number" if name in _INTEGERS else "a number"
        raise UserError(f"sound: {name}={value!r} is not {kind}") from None


def chosen(given: Mapping[str, Any], stored: str) -> Rendering:
    """The settings of a spec; an encoder's own, if its `stored` form is not empty.

    Raises UserError if a spec sets what the encoder was trained with otherwise.
    """
    if not stored:
        return Rendering(**given)
    own = Rendering.parse(stored)
    if other := {k: v for k, v in given.items() if getattr(own, k) != v}:
        wrong = ", ".join(f"{name}={value:g}" for name, value in other.items())
        raise UserError(
            f"sound: {wrong}: the encoder was trained on {own}; its settings are used "
            "when they are left out"
        )
    return own
