"""The images of a folder one by one, at their own sizes: for what writes files."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from afterimage.checkpoints.names import spelling
from afterimage.console import say_reading
from afterimage.data.decode import decode
from afterimage.data.preprocessing import Preprocessing
from afterimage.data.sources.folder import Folder
from afterimage.data.workers import or_reason, read, windows
from afterimage.errors import DataError

_EACH = 2**24
"""Bytes of an image, about: how many are read ahead."""


@dataclasses.dataclass
class EachImage:
    """Every image under a folder, with the channels and values of an encoder.

    Raises DataError for a folder without images and, with on_bad_image="fail", for the
    first that is damaged.
    """

    data: str
    preprocessing: Preprocessing
    on_bad_image: Literal["fail", "skip"] = "fail"

    def __post_init__(self) -> None:
        say_reading(self.data)
        self._files = Folder(self.data.removeprefix("folder:"))
        self.skipped: list[str] = []
        """Files that were left out, and why."""

    @property
    def names(self) -> list[str]:
        """The paths of all files, relative to the folder."""
        return list(self._files.names)

    def __iter__(self) -> Iterator[tuple[int, str, UInt8[np.ndarray, "h w c"]]]:
        """(number, path relative to the folder, pixels) in order."""
        prep, files = self.preprocessing, self._files

        def one(row: int) -> np.ndarray:
            return decode(read(files, row), None, prep.channels, prep.value_range)

        for row, image in windows(
            or_reason(one), range(len(files.names)), "images", _EACH
        ):
            if isinstance(image, str):
                self.skipped.append(f"{spelling(files.names[row])}: {image}")
                if self.on_bad_image == "fail":
                    said = self.skipped[0]
                    raise DataError(f"{said}; add --on-bad-image skip to go on")
                continue
            yield row, files.names[row], image

    def skipped_lines(self) -> list[str]:
        """The first files that were left out, for a terminal."""
        return [f"  skipped {text}" for text in self.skipped[:8]]
