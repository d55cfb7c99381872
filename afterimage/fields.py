"""Checks shared by all settings of a kind: numbers, paths, data specs."""

import dataclasses
import functools
import numbers
import os
import pathlib
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from afterimage.checkpoints.schemas import LARGEST_SIDE, MOST_CHANNELS
from afterimage.errors import UserError, did_you_mean, require_writable
from afterimage.plugins import Registry
from afterimage.storage.urls import SCHEMES, is_remote, problem

MOST = 2**31 - 1
"""The largest integer, the limit of counters on a device."""
_LARGEST = 1e30
"""The largest number; above it, float32 arithmetic soon overflows."""
_SEVERAL = 2**20
_LIMITS = {
    **dict.fromkeys(("batch_size", "probe_images", "most", "picture_images"), 2**24),
    **dict.fromkeys(("bottleneck", "head_width", "codes", "keep"), _SEVERAL),
    **dict.fromkeys(("ways", "shots", "queries", "per_step"), 2**16),
    **dict.fromkeys(("inner_steps", "test_inner_steps", "ratio"), 2**16),
    "steps_per_dispatch": 2**16,
    "label_seeds": 2**16,
    "pictures": 1000,
    "image_size": LARGEST_SIDE,
    "patch": LARGEST_SIDE,
    "channels": MOST_CHANNELS,
}
"""The largest sizes: larger values are mistakes and would fill any memory."""
_FOLDERS = frozenset({"out", "from_", "teacher", "against", "encoder", "run", "file"})
_REMOTE_TOO = frozenset({"from_", "teacher", "against", "encoder", "run"})
_SPECS = frozenset({"data", "target", "unlabelled", "labelled", "sources"})
_REMOTE = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]+)://")
_NAME_BYTES = 255
"""Maximum bytes in one part of a path, on every common file system."""
_PATH = 4000
"""Maximum characters in a path: Linux allows 4,095 bytes, and we append names to it."""


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Marks a string as a registered name: `Annotated[str, OneOf(AUGMENTATIONS)]`."""

    registry: Registry[Any]


@dataclasses.dataclass(frozen=True)
class SeveralOf(OneOf):
    """The same for names joined by commas, with numbers: `crop:0.3,flip`."""

    problem: Callable[[str], str | None]
    """What is wrong with such a text; None if nothing is."""


def field_problems(config: Any) -> list[str]:
    """Every invalid value in a dataclass, in one list.

    Numbers of the wrong type, not finite, or too large; a seed below 0; unknown names;
    paths that are empty, too long for a disk, or on another machine.
    """
    found = []
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            continue
        shown, hint = field.name.rstrip("_"), hints[field.name]
        kinds = set(_kinds(hint)) - {types.NoneType, Ellipsis}
        kind = _number(hint)
        joined = joined_of(hint)
        names = names_of(hint) if joined is None else None
        known = names() if names is not None else None
        several = typing.get_origin(hint) is tuple
        if several and not isinstance(value, tuple | list):
            found.append(f"{shown}={value!r}: must be a sequence of values")
            continue
        for one in value if isinstance(value, tuple | list) else (value,):
            if kind is not None:
                found += _number_problems(shown, one, kind)
            elif joined is not None:
                wrong = (
                    joined.problem(one) if isinstance(one, str) else "must be a string"
                )
                found += [f"{shown}={one!r}: {wrong}"] if wrong else []
            elif known is not None:
                if one not in known:
                    near, all_of_them = did_you_mean(str(one), known), ", ".join(known)
                    found.append(
                        f"{shown}={one!r} is unknown{near} There are: {all_of_them}"
                    )
            elif field.name in _FOLDERS:
                # What saves is a run, whose folder may be in a bucket too.
                either = {*_REMOTE_TOO, *getattr(config, "UPLOADED", ())}
                remote = field.name in either or hasattr(config, "save_every")
                found += place_problems(shown, one, remote=remote)
            elif field.name in _SPECS:
                found += spec_problems(shown, one)
            elif kinds in ({str}, {bool}) and not isinstance(one, tuple(kinds)):
                what = "a string" if kinds == {str} else "true or false"
                found.append(f"{shown}={one!r}: must be {what}")
    return found


def names_of(hint: Any) -> Callable[[], Sequence[str]] | None:
    """A function that returns a field's allowed names; None if any value is fine.

    The names come from a Literal or the registry in `Annotated[str, OneOf(registry)]`,
    also inside a tuple or a union with None.
    """
    for kind in _kinds(hint):
        if typing.get_origin(kind) is typing.Literal:
            return functools.partial(typing.get_args, kind)
        for mark in getattr(kind, "__metadata__", ()):
            if isinstance(mark, OneOf):
                return mark.registry.names
    return None


def joined_of(hint: Any) -> SeveralOf | None:
    """The mark of a field that takes joined names; None if there is none."""
    for kind in _kinds(hint):
        for mark in getattr(kind, "__metadata__", ()):
            if isinstance(mark, SeveralOf):
                return mark
    return None


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class, include_extras=True)


def _number(hint: Any) -> type | None:
    """int or float if a field is one, optionally, or is a tuple of them; else None."""
    kinds = set(_kinds(hint)) - {types.NoneType, Ellipsis}
    return kinds.pop() if kinds in ({int}, {float}) else None


def _kinds(hint: Any) -> Iterator[Any]:
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
    elif typing.get_origin(hint) in (tuple, types.UnionType, typing.Union):
        for argument in typing.get_args(hint):
            yield from _kinds(argument)
    else:
        yield hint


def _number_problems(name: str, value: Any, kind: type) -> list[str]:
    wanted: Any = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        what = "a whole number" if kind is int else "a number"
        return [f"{name}={value!r}: must be {what}"]
    number: Any = value
    if not abs(number) <= _LARGEST:  # not `>`: catches NaN; too long to print
        shown = number if isinstance(number, float) else "(too large)"
        return [f"{name}={shown}: must be a finite number, at most {_LARGEST:g}"]
    if kind is float:
        return []
    most = _LIMITS.get(name, MOST)
    if number > most:
        return [f"{name}={number}: must be at most {most}"]
    if number < (least := 0 if name == "seed" else -MOST):
        return [f"{name}={number}: must be at least {least}"]
    return []


def at_least_0(settings: Any, *names: str) -> list[str]:
    """A problem for each of these settings that is set and below 0, or NaN."""
    return _below(settings, names, lambda v: v >= 0, "at least 0")


def at_least_1(settings: Any, *names: str) -> list[str]:
    """A problem for each of these settings that is set and below 1."""
    return _below(settings, names, lambda v: v >= 1, "at least 1")


def above_0(settings: Any, *names: str) -> list[str]:
    """A problem for each of these settings that is set and not above 0."""
    return _below(settings, names, lambda v: v > 0, "greater than 0")


def _below(
    settings: Any, names: Sequence[str], holds: Callable[[Any], bool], what: str
) -> list[str]:
    """A problem for each setting, a number or several, for which `holds` is false."""
    found = []
    for name in names:
        value = getattr(settings, name)
        several = value if isinstance(value, tuple | list) else (value,)
        if not all(one is None or holds(one) for one in several):
            found.append(f"{name}={value}: must be {what}")
    return found


def place_problems(name: str, value: Any, *, remote: bool = False) -> list[str]:
    """What is wrong with the path of a file or folder, one sentence each.

    With `remote` it may be the URL of a run or an artefact in a bucket.
    """
    if not isinstance(value, str | os.PathLike):
        return [f"{name}={value!r}: must be the path of a file or folder"]
    text = os.fspath(value)
    if wrong := problem(text):
        return [f"{name}={text}: {wrong}"]
    if is_remote(text):
        return [] if remote else [_only_local(name, text)]
    if text.startswith("~"):  # bash leaves it in `--out=~/runs`
        return [
            f"{name}={text}: the shell did not replace ~ with your home folder; give "
            f"the full path (or ./{text} for a folder of this name)"
        ]
    if len(text) > _PATH:
        return [
            f"{name}={text[:40]}…: a path of {len(text)} characters; must have at "
            f"most {_PATH}"
        ]
    return _path_problems(name, text)


def output_file(out: str | os.PathLike[str], suffixes: Iterable[str]) -> pathlib.Path:
    """The path of a file to write.

    Raises UserError for a bad path, another suffix or a folder, DiskError for a place
    that cannot be written.
    """
    if problems := place_problems("out", out):
        raise UserError(problems[0])
    path = pathlib.Path(out)
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"out={path}: the name must end in {', '.join(suffixes)}, not "
            f"{path.suffix or 'without a suffix'}"
        )
    if path.is_dir():
        raise UserError(f"out={path} is a folder; give the name of a file")
    require_writable(f"out={path}", path.parent)
    return path


def spec_problems(name: str, value: Any) -> list[str]:
    """What is wrong with the paths in a data spec, one sentence each."""
    if not isinstance(value, str):
        return [f"{name}={value!r}: must be a string such as folder:PATH"]
    remote = _REMOTE.search(value)
    if remote:
        from afterimage.plugins import SOURCES

        if remote[1] not in SOURCES.names():
            urls = value[remote.start() :].split(",")
            return [f"{name}={value}: {wrong}" for u in urls if (wrong := problem(u))]
    kind, _, rest = value.partition(":")
    if kind in SCHEMES and (wrong := problem(value)):
        return [f"{name}={value}: {wrong}"]
    return _path_problems(name, rest if rest.strip() else kind)


def _only_local(name: str, text: str) -> str:
    return (
        f"{name}={text}: this file is written here only; give a path on this machine, "
        "and copy it to the bucket"
    )


def _path_problems(name: str, text: str) -> list[str]:
    if not text.strip():
        return [f"{name}={text!r}: empty; give a path"]
    if "\0" in text:
        return [f"{name}={text!r}: contains a NUL character"]
    try:
        parts = [len(os.fsencode(part)) for part in pathlib.PurePath(text).parts]
    except UnicodeEncodeError:
        return [f"{name}={text!r}: cannot be encoded as a path on this system"]
    if (long := max(parts, default=0)) > _NAME_BYTES:  # `.` has no parts
        return [
            f"{name}={text[:40]}…: a name of {long} bytes; must have at most "
            f"{_NAME_BYTES}"
        ]
    return []
