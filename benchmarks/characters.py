"""Makes afterimage/data/sources/characters.npz from Omniglot's archive.

`python -m benchmarks.characters --archive images_background_small1.zip`. The archive
(2,720 drawings of 136 characters by 20 people, PNG, 105x105) is in
https://github.com/brendenlake/omniglot, python/, under the MIT licence. Images become
28x28 by averaging; five of the twenty people, drawn with seed 0, are the test split.
"""

import argparse
import pathlib
import sys

import cv2
import numpy as np

from afterimage.commands import exit_code
from afterimage.data.sources import characters
from afterimage.errors import DataError
from benchmarks.image_sets import omniglot


def arrays(archive: pathlib.Path, side: int = characters.SIDE) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test, y_test and classes."""
    if not archive.is_file():
        raise DataError(f"there is no {archive}; {(__doc__ or '').splitlines()[2]}")
    found = omniglot(archive)
    assert found.test is not None
    pages = [
        np.asarray(cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_GRAYSCALE))
        for one in found.images
    ]
    small = [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in pages]
    classes, labels = np.unique(found.classes, return_inverse=True)
    images = np.stack(small)
    made: dict[str, np.ndarray] = {"classes": classes}
    for split, rows in (("train", ~found.test), ("test", found.test)):
        made[f"x_{split}"] = images[rows]
        made[f"y_{split}"] = labels[rows].astype(np.int32)
    return made


def main() -> None:
    """Writes the file that the package ships."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.characters")
    parser.add_argument("--archive", type=pathlib.Path, required=True)
    made = arrays(parser.parse_args().archive)
    np.savez_compressed(characters.FILE, **made)  # pyright: ignore[reportArgumentType]
    print(f"{characters.FILE}: {characters.FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(exit_code(main))
