"""`characters`: 2,720 handwritten characters of five alphabets, 28x28 grey.

They are Omniglot's small background set (Lake, Salakhutdinov and Tenenbaum, Science
2015; MIT licence, in characters-LICENSE.txt), reduced by `benchmarks.characters`. A
class is a character, and every image of it is by another person. The test images are by
five people who drew no training image of that alphabet.
"""

import pathlib

import numpy as np

from afterimage.data.arrays import fit_arrays
from afterimage.data.sets import Request, Splits, array_set
from afterimage.data.sources import Source
from afterimage.plugins import SOURCES

FILE = pathlib.Path(__file__).with_name("characters.npz")
SIDE = 28
SIZES = {"train": 2040, "test": 680}


@SOURCES.add("characters")
class CharactersSource(Source):
    """136 handwritten characters, 28x28 grey: 2,040 to train, 680 by other people."""

    def open(self, rest: str, request: Request) -> Splits:
        with np.load(FILE, allow_pickle=False) as stored:
            names = tuple(str(name) for name in stored["classes"])
            sets = {
                split: array_set(
                    fit_arrays(stored[f"x_{split}"][..., None], request),
                    stored[f"y_{split}"],
                    names,
                    f"characters [{split}]",
                    [f"{split}/{row}" for row in range(size)],
                )
                for split, size in SIZES.items()
            }
        return Splits(**sets)
