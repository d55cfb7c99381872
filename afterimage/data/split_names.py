"""Which names of folders and of table cells mean train, validation or test."""

import bisect
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from afterimage.checkpoints.names import spelling
from afterimage.errors import DataError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
OPTIONS = {
    "train": "--train",
    "validation": "--validation-folder",
    "test": "--test",
}
UNLABELLED = "unlabelled"
ASK = "validation or test"  # the two are equally common meanings of `eval`
_WORDS = {
    **SPLITS,
    "eval": ASK,
    "evaluation": ASK,
    "unlabeled": UNLABELLED,
    "unlabelled": UNLABELLED,
}
_ONE = "|".join(sorted(_WORDS, key=len, reverse=True))
# train2017, test_images, val-set; and seg_train, where others go with it.
_PLAIN = re.compile(rf"({_ONE})(?:[ _-]?(?:set|data|images?|imgs|[0-9]))*")
# trainA, TEST_SIMPLE, imagesTrain, my.val: a word of its own, by case or by a mark.
_WORD = "|".join(sorted(SPLITS, key=len, reverse=True))
_LOOSE = re.compile(
    rf"(?:^|(?<=[^A-Za-z]))(?i:{_WORD})(?![a-z])"
    rf"|(?<=[a-z])(?:{'|'.join(w.capitalize() for w in _WORD.split('|'))})(?![a-z])"
)
_PREFIXED = re.compile(rf"(.+[_-])({_ONE})(?:[_-]?[0-9]+)?")


def exact(name: str) -> str | None:
    """The split that a name is, word for word in any case; None where it is none."""
    return SPLITS.get(_key(name))


def check_no_pair(source: str, names: Iterable[str], place: str) -> None:
    """Raise DataError where folders that would be classes look like splits.

    trainA beside testA, or train and test inside of one class. `place` is the folder
    that they lie in.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        if match := _LOOSE.search(unicodedata.normalize("NFC", name)):
            found.setdefault(SPLITS[match[0].casefold()], name)
    if len(found) < 2 or "train" not in found:
        return
    full = {s: f"{place}/{name}" if place else name for s, name in found.items()}
    raise DataError(
        f"{source}: the folders {_listed(full.values())} look like splits, and would "
        f"be read as classes or as parts of one. Name the folder of each split, e.g. "
        f"{_example(full)}, or give --train . if every folder is a class"
    )


def is_word(name: str) -> bool:
    """Whether a name is one of a split's, or `unlabelled`."""
    return _key(name) in _WORDS


def is_unlabelled(name: str) -> bool:
    """Whether images in a folder of this name are to have no label."""
    found = _PLAIN.fullmatch(_key(name))
    return found is not None and _WORDS[found[1]] == UNLABELLED


def meanings(names: Iterable[str]) -> dict[str, str]:
    """{name: its split, `unlabelled`, or ASK}, of those named for one."""
    names, found = sorted(names), {}
    prefixes: dict[str, dict[str, str]] = {}
    for name in names:
        if plain := _PLAIN.fullmatch(_key(name)):
            found[name] = _WORDS[plain[1]]
        elif prefixed := _PREFIXED.fullmatch(_key(name)):
            prefixes.setdefault(prefixed[1], {})[name] = _WORDS[prefixed[2]]
    keys = sorted(map(_key, names))
    everything = {*found.values(), *(s for p in prefixes.values() for s in p.values())}
    for prefix, some in prefixes.items():
        # A `bullet_train` alone is a class; beside `bullet_test` it is a split.
        place = bisect.bisect_left(keys, prefix)
        kin = [key for key in keys[place : place + 2] if key.startswith(prefix)]
        if len(kin) > 1 or everything - set(some.values()):
            found |= some
    left = {"validation", "test"} - set(found.values())
    if len(left) == 1:  # then `eval` can only be this
        (other,) = left
        found = {n: other if s == ASK else s for n, s in found.items()}
    return found


def check_clear(
    source: str, meaning: Mapping[str, str], odd: Sequence[str], loose: Sequence[str]
) -> None:
    """Raise DataError if it is unclear which folder is which split.

    `odd` are the folders beside the splits whose names mean none, `loose` the images.
    """
    named = {name: split for name, split in meaning.items() if split != UNLABELLED}
    splits = list(named.values())
    twice = [n for n, s in named.items() if s != ASK and splits.count(s) > 1]
    asked = [name for name, split in named.items() if split == ASK]
    problems = [f"{spelling(name)} may be {ASK}" for name in asked]
    if twice:
        problems.append(f"{_listed(twice)} name the same split")
    if odd or loose:
        they = "name splits" if len(named) > 1 else "names a split"
        them = "do not" if len(odd) + len(loose) > 1 else "does not"
        beside = [f"the folder {spelling(name)}" for name in odd[:5]]
        beside += [f"{len(odd) - 5:,} more folders"] * (len(odd) > 5)
        beside += [f"the image {spelling(name)}" for name in loose[:1]]
        beside += [f"{len(loose) - 1:,} more images"] * (len(loose) > 1)
        problems.append(f"{_listed(named)} {they}, but {' and '.join(beside)} {them}")
    if not problems:
        return
    known = {s: n for n, s in named.items() if n not in twice and s != ASK}
    if asked and "test" not in known:
        known["test"] = asked[0]
    example = _example({"train": "FOLDER", **known})
    raise DataError(
        f"{source}: {'; '.join(problems)}. Name the folder of each split, e.g. "
        f"{example} (options: {', '.join(OPTIONS.values())}; other folders are then "
        "ignored), or give --train . if every folder is a class"
    )


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _listed(names: Iterable[str]) -> str:
    return " and ".join(spelling(name) for name in names)


def _example(folders: Mapping[str, str]) -> str:
    """The options that name these folders, {split: folder}."""
    return " ".join(
        f"{option} {shlex.quote(spelling(folders[split]))}"
        for split, option in OPTIONS.items()
        if split in folders
    )
