"""What a person should know of their data, said once on standard error."""

import functools
import sys

from checkpoints.names import printable


@functools.cache
def say_once(text: str) -> None:
    """Print a note, unless this process has printed it already."""
    print(printable(text, keep="\n"), file=sys.stderr, flush=True)
