"""What is known of an image before it is decoded, and the limits to what is."""

import dataclasses

MAX_PIXELS = 89_478_485
"""Largest image decoded: a quarter of a gigabyte as RGB (Pillow's own limit)."""
MAX_ASPECT = 100
"""Longest side over shortest: anything beyond is a strip, not a picture."""
MAX_BYTES = 2**29
"""Largest encoded file read."""
MAX_SAMPLES = 256
"""Most bands of an image."""

# EXIF orientation -> (transpose rows and columns first, flip rows, flip columns)
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class NotAnImage(ValueError):
    """These bytes cannot become a picture; the message says why."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Size as seen, orientation applied, and what the pixels are.

    `channels` is 1 for grey, 3 for colour, and 0 for bands that are neither. `samples`
    are the numbers a pixel has in the file, transparency included. `wide` says that
    they have more than 8 bits. `cost` is an upper bound of the bytes that decoding
    takes. `pages` counts those of the same size, of which the first is read; more than
    a few are not counted.
    """

    height: int
    width: int
    channels: int
    samples: int
    wide: bool
    cost: int
    pages: int = 1


def check_extent(width: int, height: int) -> None:
    """NotAnImage for sizes that are not a picture's."""
    if min(width, height) < 1:
        raise NotAnImage(f"{width}x{height} pixels")
    if width * height > MAX_PIXELS:
        raise NotAnImage(f"{width}x{height} is more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise NotAnImage(f"{width}x{height} is a strip, longer than {MAX_ASPECT} to 1")


def takes_bands(channels: int, samples: int, asked: int) -> bool:
    """Whether `asked` channels are the file's samples as they are: any number of bands.

    Grey and colour are what a person sees. NotAnImage if they cannot be made.
    """
    if asked == samples and (asked not in (1, 3) or channels == 0):
        return True
    if channels in (1, 3) and asked in (1, 3):
        return False
    raise NotAnImage(
        f"{count(channels, samples)} where channels={asked} asks for {asked}"
    )


def check_seen(header: Header) -> None:
    """NotAnImage for bands if no number of channels was given."""
    if not header.channels:
        raise NotAnImage(
            f"{header.samples} bands, neither grey nor RGB; channels={header.samples} "
            f"(--channels {header.samples}) reads them as they are"
        )


def count(channels: int, samples: int) -> str:
    """ "grey", "colour" or "5 bands"."""
    return {1: "grey", 3: "colour"}.get(channels, f"{samples} bands")
