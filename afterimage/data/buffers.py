"""Memory for large batches, used again.

The system clears fresh memory page by page before it hands it over, which for batches
of large images is a good part of what gathering them costs.
"""

import sys
import threading

import numpy as np


def _references(kept: list[np.ndarray], place: int) -> int:
    return sys.getrefcount(kept[place])


# How many an array has that only the list refers to: Python's versions count
# differently, so that they are asked.
_UNUSED = _references([np.empty(0)], 0)


class Buffers:
    """Arrays that are handed out again once nothing refers to them any more.

    What shares an array's memory refers to it: a view, or a device array that was made
    without a copy, or is still being copied. Each thread has `most` arrays of its own;
    beyond these it gets new ones.
    """

    def __init__(self, most: int = 8):
        self._most = most
        self._own = threading.local()

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of this shape whose values may be anything."""
        kept = vars(self._own).setdefault("kept", [])
        for place in range(len(kept)):
            if _references(kept, place) == _UNUSED:
                array = kept[place]
                if (array.shape, array.dtype) == (shape, dtype):
                    return array
        made = np.empty(shape, dtype)
        if len(kept) < self._most:
            kept.append(made)
        return made
