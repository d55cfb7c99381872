"""Notes on a user's data, each printed once to standard error."""

import functools
import sys

from afterimage.checkpoints.names import printable


@functools.cache
def say_once(text: str) -> None:
    """Print a note, unless this process has printed it already."""
    print(printable(text, keep="\n"), file=sys.stderr, flush=True)
