"""Splits and classes from folder names."""

import bisect
import contextlib
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from afterimage.checkpoints.names import class_name, spelling
from afterimage.console import say_once
from afterimage.errors import DataError, did_you_mean

Groups = dict[str, tuple[list[int], list[str | None]]]
"""{split: (rows, class name of each, None if unlabelled)}."""
Paths = list[list[str]]


def layout(
    names: Sequence[str],
    source: str,
    given: Mapping[str, str] | None = None,
    *,
    strict: bool = True,
) -> Groups:
    """The splits and classes given by the folders in `names`.

    Folders named after a split (train, val2017, seg_test) are splits if all their
    siblings are; images in a folder called unlabelled have no label. A single top-level
    folder is ignored. Below that, the first folder is the class, provided that every
    image of the split is in one.

    `given` names the folder of each split instead ({"train": "seg_train"}); `.` is the
    whole, and other folders are ignored. If not `strict`, it applies only if one of
    its folders exists.

    Raises DataError if only some folders are named after a split (the message lists the
    others and the options), and for a named folder that does not exist.
    """
    paths, places = [name.split("/") for name in names], {}
    if given and not strict and not any(name.strip("./") for name in given.values()):
        with contextlib.suppress(DataError):  # `.` may be meant only for other data
            return layout(names, source)
    if given:
        _check_given(given, source)
        places = {split: _place(name, paths) for split, name in given.items()}
        if strict or any(_below(p, place) for place in places.values() for p in paths):
            return _named(paths, source, places, given)
    paths = _unwrapped(paths)
    tops = {path[0] for path in paths if len(path) > 1}
    meaning = meanings(tops)
    if set(meaning.values()) - {NO_LABEL}:
        loose = [path[0] for path in paths if len(path) == 1]
        check_clear(source, meaning, sorted(tops - set(meaning)), loose)
        for top, split in meaning.items():
            if exact(top) is None and split != NO_LABEL:
                say_once(f"{source}: the folder {spelling(top)} is used as {split}")
        return _grouped(paths, [meaning[path[0]] for path in paths], source)
    check_no_pair(source, tops, "")
    if (inner := _split_below(paths)) is not None:
        say_once(f"{source}: the folders inside each class are used as splits")
        return _grouped(inner, [str(exact(path[0])) for path in inner], source)
    for place, inside in _folders(paths).items():
        check_no_pair(source, inside, place)
    return {"train": _classes(paths, range(len(paths)), source)}


def by_split(given: Sequence[str], source: str) -> dict[str, list[int]]:
    """{split: rows} from the split of each row; DataError if none is for training."""
    splits: dict[str, list[int]] = {}
    for row, split in enumerate(given):
        splits.setdefault(split, []).append(row)
    if "train" not in splits:
        raise DataError(
            f"{source} has {' and '.join(sorted(splits))} but no train. Add a folder "
            "train, or name the folder of the training images with --train"
        )
    return splits


def _grouped(paths: Paths, given: list[str], source: str) -> Groups:
    """Groups of paths with their split; `unlabelled` ones join train without labels."""
    free = {row for row, split in enumerate(given) if split == NO_LABEL}
    splits = by_split(["train" if s == NO_LABEL else s for s in given], source)
    groups: Groups = {}
    for split, rows in splits.items():
        mine = [row for row in rows if row not in free]
        paths = _within(paths, mine, 1)
        found = dict(zip(*_classes(paths, mine, f"{source} [{split}]"), strict=True))
        groups[split] = (rows, [found.get(row) for row in rows])
    _say_unlabelled(len(free), source)
    return groups


def _classes(
    paths: Paths, rows: Sequence[int], source: str
) -> tuple[list[int], list[str | None]]:
    """(rows, class of each): the first folder, if every image is in one."""
    loose = [row for row in rows if len(paths[row]) == 1]
    inside = [row for row in rows if len(paths[row]) > 1]
    free = {row for row in inside if is_unlabelled(paths[row][0])}
    if loose and inside:
        rest = f" and {len(loose) - 1:,} more images" if len(loose) > 1 else ""
        say_once(
            f"{source}: not in a class folder: {spelling(paths[loose[0]][0])}{rest}. "
            f"The {len(inside):,} images in class folders therefore count as "
            "unlabelled too. To use the labels, move each image into the folder of "
            "its class, or remove it"
        )
    if loose or len(free) == len(inside):
        return list(rows), [None] * len(rows)
    _say_unlabelled(len(free), source)
    names = {top: class_name(top) for top in {paths[row][0] for row in rows}}
    return list(rows), [None if r in free else names[paths[r][0]] for r in rows]


def _within(paths: Paths, rows: Sequence[int], depth: int) -> Paths:
    """Paths below a folder at this depth, and below a subfolder of the same name.

    Archives often unpack into a folder with their own name: train/train/cat.
    """
    short = list(paths)
    for row in rows:
        short[row] = paths[row][depth:]
    if not rows or depth == 0 or any(len(short[row]) == 1 for row in rows):
        return short
    if {short[row][0] for row in rows} == {paths[rows[0]][depth - 1]}:
        for row in rows:
            short[row] = short[row][1:]
    return short


def _folders(paths: Paths) -> dict[str, set[str]]:
    """{folder: names of its subfolders}, for all folders that have some."""
    chains = {tuple(path[:-1]) for path in paths}
    found: dict[str, set[str]] = {}
    for chain in chains:
        for depth in range(1, len(chain)):
            found.setdefault("/".join(chain[:depth]), set()).add(chain[depth])
    return found


def _check_given(given: Mapping[str, str], source: str) -> None:
    for split, name in given.items():
        if not name.strip():
            raise DataError(
                f"{source}: {OPTIONS[split]} is empty; give the name of a folder, or "
                "`.` for all of it"
            )


def _say_unlabelled(count: int, source: str) -> None:
    if count:
        say_once(
            f"{source}: {count:,} images in a folder called unlabelled are used as "
            "training images without labels"
        )


def _named(
    paths: Paths,
    source: str,
    places: Mapping[str, list[str]],
    given: Mapping[str, str],
) -> Groups:
    """Groups by the folders given for each split."""
    found: dict[int, str] = {}
    for split, place in places.items():
        mine = [row for row, path in enumerate(paths) if _below(path, place)]
        if not mine:
            raise DataError(
                f"{source}: {OPTIONS[split]} {spelling(given[split])}: no folder of "
                f"this name contains images{_there(paths, place)}"
            )
        if shared := next((found[row] for row in mine if row in found), None):
            raise DataError(
                f"{source}: {OPTIONS[shared]} and {OPTIONS[split]} name images in one "
                "folder; an image can be in only one split"
            )
        found |= dict.fromkeys(mine, split)
    rest = [row for row in range(len(paths)) if row not in found]
    groups: Groups = {}
    if "train" not in places:  # the other folders are read as usual
        groups = _rest(paths, rest, source, places)
    elif rest:
        say_once(f"{source}: {len(rest):,} images in other folders are ignored")
    for split, place in places.items():
        rows = [row for row, mine in found.items() if mine == split]
        short = _within(paths, rows, len(place))
        groups[split] = _classes(short, rows, f"{source} [{split}]")
    return groups


def _rest(
    paths: Paths, rows: list[int], source: str, places: Mapping[str, list[str]]
) -> Groups:
    if not rows:
        by_split(list(places), source)
    left = layout(["/".join(paths[row]) for row in rows], source)
    for split in set(left) & set(places):
        raise DataError(
            f"{source}: {OPTIONS[split]} is {spelling('/'.join(places[split]))}, but "
            f"another folder is also used as {split}. Name the training folder too, "
            "with --train"
        )
    return {
        split: ([rows[row] for row in mine], classes)
        for split, (mine, classes) in left.items()
    }


def _place(name: str, paths: Paths) -> list[str]:
    """The parts of a folder's path, which may omit a single top-level folder.

    `.` is the folder that holds the classes.
    """
    parts = _nfc(name.replace("\\", "/").split("/"))
    place = [part for part in parts if part not in ("", ".")]
    if place and any(_below(path, place) for path in paths):
        return place
    inner = _unwrapped(paths)
    return [*_nfc(paths[0][: len(paths[0]) - len(inner[0])]), *place]


def _nfc(parts: list[str]) -> list[str]:
    return [unicodedata.normalize("NFC", part) for part in parts]


def _below(path: list[str], place: list[str]) -> bool:
    """Whether a file is in a folder, whatever the Unicode form of its name."""
    return len(path) > len(place) and _nfc(path[: len(place)]) == place


def _there(paths: Paths, place: list[str]) -> str:
    tops = sorted({path[0] for path in paths if len(path) > 1})
    shown = ", ".join(spelling(top) for top in tops[:8]) or "none"
    hint = did_you_mean(place[0] if place else "", tops)
    return f"{hint} There are: {shown}" + (" …" if len(tops) > 8 else "")


def _split_below(paths: Paths) -> Paths | None:
    """Paths with split and class swapped, if every class folder has split folders."""
    if any(len(path) < 3 for path in paths):
        return None
    inner = {exact(path[1]) for path in paths}
    if None in inner or "train" not in inner or len(inner) < 2:
        return None
    return [[path[1], path[0], *path[2:]] for path in paths]


def _unwrapped(paths: Paths) -> Paths:
    while _is_wrapper(paths):
        paths = [path[1:] for path in paths]
    return paths


def _is_wrapper(paths: Paths) -> bool:
    tops = {path[0] for path in paths if len(path) > 1}
    if len(tops) != 1 or any(len(path) == 1 for path in paths):
        return False
    (top,) = tops
    # Everything below a single `train` or `test` is one set; any other single folder
    # is a class, unless all its images are in subfolders.
    return is_word(top) or all(len(path) > 2 for path in paths)


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
NO_LABEL = "unlabelled"
ASK = "validation or test"  # the two are equally common meanings of `eval`
_WORDS = {
    **SPLITS,
    "eval": ASK,
    "evaluation": ASK,
    "unlabeled": NO_LABEL,
    "unlabelled": NO_LABEL,
}
_ONE = "|".join(sorted(_WORDS, key=len, reverse=True))
# train2017, test_images, val-set; and seg_train, if other folders match it.
_PLAIN = re.compile(rf"({_ONE})(?:[ _-]?(?:set|data|images?|imgs|[0-9]))*")
# trainA, TEST_SIMPLE, imagesTrain, my.val: a separate word, by case or punctuation.
_WORD = "|".join(sorted(SPLITS, key=len, reverse=True))
_LOOSE = re.compile(
    rf"(?:^|(?<=[^A-Za-z]))(?i:{_WORD})(?![a-z])"
    rf"|(?<=[a-z])(?:{'|'.join(w.capitalize() for w in _WORD.split('|'))})(?![a-z])"
)
_PREFIXED = re.compile(rf"(.+[_-])({_ONE})(?:[_-]?[0-9]+)?")


def exact(name: str) -> str | None:
    """The split with exactly this name, in any case; None if there is none."""
    return SPLITS.get(_key(name))


def check_no_pair(source: str, names: Iterable[str], place: str) -> None:
    """Raise DataError if folders that would be classes look like splits.

    trainA beside testA, or train and test inside one class. `place` is the folder that
    contains them.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        if match := _LOOSE.search(unicodedata.normalize("NFC", name)):
            found.setdefault(SPLITS[match[0].casefold()], name)
    if len(found) < 2 or "train" not in found:
        return
    full = {s: f"{place}/{name}" if place else name for s, name in found.items()}
    raise DataError(
        f"{source}: the folders {_listed(full.values())} look like splits, but would "
        "be treated as classes or parts of a class. Name the folder of each split, "
        f"e.g. {_example(full)}, or add --train . if every folder is a class"
    )


def is_word(name: str) -> bool:
    """Whether a name is a split's name, or `unlabelled`."""
    return _key(name) in _WORDS


def is_unlabelled(name: str) -> bool:
    """Whether images in a folder of this name should have no label."""
    found = _PLAIN.fullmatch(_key(name))
    return found is not None and _WORDS[found[1]] == NO_LABEL


def meanings(names: Iterable[str]) -> dict[str, str]:
    """{name: its split, `unlabelled`, or ASK}, for the names that mean one."""
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

    `odd` are the other folders, whose names mean no split; `loose` are images beside
    the folders.
    """
    named = {name: split for name, split in meaning.items() if split != NO_LABEL}
    splits = list(named.values())
    twice = [n for n, s in named.items() if s != ASK and splits.count(s) > 1]
    asked = [name for name, split in named.items() if split == ASK]
    problems = [f"{spelling(name)} could be {ASK}" for name in asked]
    if twice:
        problems.append(f"{_listed(twice)} could be the same split")
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
        "ignored), or add --train . if every folder is a class"
    )


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip().casefold()


def _listed(names: Iterable[str]) -> str:
    return " and ".join(spelling(name) for name in names)


def _example(folders: Mapping[str, str]) -> str:
    """The options that give these folders, {split: folder}."""
    return " ".join(
        f"{option} {shlex.quote(spelling(folders[split]))}"
        for split, option in OPTIONS.items()
        if split in folders
    )
