"""`characters`: letters and digits in handwriting and display fonts, 28x28 grey.

White on black, one image a font of each of 47 classes: the digits, the capitals, and
the small letters whose shape differs (those of EMNIST's balanced set; Cohen, Afshar,
Tapson and van Schaik, 2017). 57 fonts are in the training split, 38 others in the test
split. `benchmarks.characters` draws them; characters-LICENSE.txt names the fonts, all
under the SIL Open Font License.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from afterimage.data.arrays import fit_arrays
from afterimage.data.sets import Request, Splits, array_set
from afterimage.data.sources import Source
from afterimage.plugins import SOURCES

FILE = pathlib.Path(__file__).with_name("characters.npz")
NOTICE = FILE.with_name("characters-LICENSE.txt")
SIDE = 28


@SOURCES.add("characters")
class CharactersSource(Source):
    """47 letters and digits, 28x28 grey: 2,679 to train, 1,786 in other fonts."""

    def open(self, rest: str, request: Request) -> Splits:
        with np.load(FILE, allow_pickle=False) as stored:
            names = tuple(str(name) for name in stored["classes"])
            sets = {
                split: array_set(
                    fit_arrays(stored[f"x_{split}"][..., None], request),
                    stored[f"y_{split}"],
                    names,
                    f"characters [{split}]",
                    _ids(split, names, stored[f"fonts_{split}"]),
                )
                for split in ("train", "test")
            }
        return Splits(**sets)


def _ids(split: str, names: Sequence[str], fonts: np.ndarray) -> list[str]:
    """SPLIT/CLASS/FONT: class by class, in each class font by font."""
    return [f"{split}/{name}/{font}" for name in names for font in fonts]
