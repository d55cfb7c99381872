"""A file that is not there: which one may be meant."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping

from afterimage.data.decode import SUFFIXES

Listing = tuple[dict[str, str], dict[str, str]]
"""({key: name}, {key of the stem: name of an image}) of what a folder holds."""


def near_miss(root: str, name: str, names: Callable[[str], Listing]) -> str | None:
    r"""The path of a file below `root` that `name` nearly names; None without one.

    Differences in case, Unicode form, image suffix and `\` for `/` are bridged. `names`
    is `listing`, or a cache of it: a table may name many files that are not there.
    """
    *folders, last = (part for part in name.replace("\\", "/").split("/") if part)
    if name.startswith("/"):
        root = "/"
    place, found = root, []
    for part in folders:
        part = part if part in (".", "..") else names(place)[0].get(_key(part))
        if part is None:
            return None
        place = os.path.join(place, part)
        found.append(part)
    whole, stems = names(place)
    key = _key(last)
    near = whole.get(key) or stems.get(_stem(key)) or stems.get(key)
    if near is None:
        return None
    return os.path.join("/" if name.startswith("/") else "", *found, near)


def listing(folder: str) -> Listing:
    """The names in a folder by what they have in common with their near misses."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return {}, {}
    images = [n for n in names if os.path.splitext(n)[1].lower() in SUFFIXES]
    return {_key(n): n for n in names}, {_stem(_key(n)): n for n in images}


def by_likeness(names: Iterable[str]) -> dict[str, str]:
    """Names by what they have in common with their near misses; for `nearest`."""
    keys = {_key(name): name for name in names}
    return {_stem(key): name for key, name in keys.items()} | keys


def nearest(name: str, likeness: Mapping[str, str]) -> str | None:
    """The one of some names that this nearly is; None without one."""
    key = _key(name.replace("\\", "/"))
    return likeness.get(key) or likeness.get(_stem(key))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
