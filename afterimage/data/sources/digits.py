"""`digits`: scikit-learn's 1,797 handwritten digits, 8x8 grey, as a TFDS data set.

Our own TFDS builder writes them once as ArrayRecord files to the cache folder, and
`as_data_source` reads them without TensorFlow or network. Grey levels 0..16 become
floor((255 v + 8) / 16), which maps 0 to 0, 16 to 255, and keeps all 17 distinct. The
test split, one fifth of each class (359 images) chosen with seed 0, never changes.
"""

import contextlib
import io
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

from afterimage.data.arrays import fit_arrays
from afterimage.data.sets import Request, Splits, array_set
from afterimage.data.sources import Source
from afterimage.errors import DataError
from afterimage.plugins import SOURCES
from afterimage.runtime import cache_dir

SIZES = {"train": 1438, "test": 359}


def _builder(folder: pathlib.Path) -> Any:
    from afterimage.data.sources.digits_builder import AfterimageDigits

    return AfterimageDigits(data_dir=str(folder), file_format="array_record")


def _home(folder: pathlib.Path) -> pathlib.Path:
    return folder / "afterimage_digits"


def _prepare(folder: pathlib.Path) -> None:
    """Write the data set to `folder` atomically, even if other processes do too."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".digits-") as scratch:
        # TFDS would print progress for this half second, with unknown sizes.
        with contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(io.StringIO()):
                _builder(pathlib.Path(scratch)).download_and_prepare()
        try:
            _home(pathlib.Path(scratch)).rename(_home(folder))
        except OSError:
            if not _home(folder).is_dir():  # unless another process was first
                raise


def _read(folder: pathlib.Path) -> dict[str, list[Any]]:
    if not _home(folder).is_dir():
        _prepare(folder)
    builder = _builder(folder)
    records = {}
    for split, size in SIZES.items():
        source = builder.as_data_source(split=split)
        records[split] = source.__getitems__(list(range(len(source))))
        if len(records[split]) != size:
            raise DataError(f"digits [{split}]: {len(records[split])} of {size} images")
    return records


def _records() -> dict[str, list[Any]]:
    folder = cache_dir() / "tfds"
    try:
        return _read(folder)
    except Exception:  # damaged: files and parsers fail in many ways
        shutil.rmtree(_home(folder), ignore_errors=True)
    try:
        return _read(folder)
    # No writable folder, which TFDS's writer reports with its own error type: use a
    # temporary folder for this run.
    except (OSError, RuntimeError):
        with tempfile.TemporaryDirectory(prefix="afterimage-") as scratch:
            return _read(pathlib.Path(scratch))


@SOURCES.add("digits")
class DigitsSource(Source):
    """Handwritten digits, 8x8 grey: 1,438 to train, 359 to test, always the same."""

    def open(self, rest: str, request: Request) -> Splits:
        sets = {}
        for split, records in _records().items():
            images = np.stack([record["image"] for record in records])
            sets[split] = array_set(
                fit_arrays(images, request),
                np.array([record["label"] for record in records], np.int32),
                tuple(str(digit) for digit in range(10)),
                f"digits [{split}]",
                [record["id"].decode() for record in records],
            )
        return Splits(**sets)
