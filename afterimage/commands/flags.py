"""Command line -> configuration: defaults, preset, file, flags; the last one wins.

The flags are the fields of a dataclass, documented below each. A choice (see
`afterimage.settings`) is one flag that takes names, and each name adds its own flags:

    --objective masked --masked.ratio 0.6
"""

import argparse
import contextlib
import dataclasses
import inspect
import os
import pathlib
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar, get_args, get_origin

from afterimage.checkpoints.names import printable
from afterimage.console import say_result
from afterimage.errors import UserError, did_you_mean, nearest_path
from afterimage.fields import joined_of, names_of
from afterimage.presets import Preset, find_preset
from afterimage.settings import (
    Choice,
    as_mappings,
    choices,
    default_of,
    field_documents,
    from_dict,
    given_problems,
    merge,
    to_dict,
)
from afterimage.training.options import check

Config = TypeVar("Config")
_LARGEST_FILE = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(Generic[Config]):
    """How a command is called: its settings, and those its help shows first."""

    name: str
    config: type[Config]
    about: str
    """What it is for, with examples: the first lines of the help."""
    common: Mapping[str, Sequence[str]]
    """{heading: fields} of `--help`; `--help-all` shows all others below them."""
    positional: str | None = None
    """The field that needs no flag: `afterimage pretrain photos`."""
    images: Sequence[str] = ()
    """Fields that name images: paths among them become specs, `folder:photos`."""
    presets: Mapping[str, Preset] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{choice: name} that the command fixes. Their settings are also available as flags
    without a prefix: `afterimage episodes --ways 5`."""
    needs: Sequence[str] = ()
    """Fields that this command requires, besides those without a default."""
    actions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{flag: help} of flags that do something else instead; `main` looks for them."""
    flags: type | None = None
    """A subclass of `config` with further flags, which only `recipe` reads."""
    recipe: Callable[[Mapping[str, Any]], Config] | None = None
    """Makes the configuration from the flags alone: without a preset or file, and
    unless one of `explicit` is given."""
    explicit: Sequence[str] = ()
    groups: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """{choice: groups of its registry} that this command lists; all work if given."""
    kind: str = ""
    """The kind of run that `--config RUN` accepts; empty for a command with so few
    settings that it takes no file."""

    @property
    def prog(self) -> str:
        """The command as typed."""
        return f"afterimage {self.name}"


@dataclasses.dataclass(frozen=True)
class PackageCommand:
    """A command of another package: what its entry point in afterimage.commands names.

    `work` takes the settings, and returns a few lines for the terminal. It imports what
    it needs itself, so that `--help` is quick.
    """

    COMMAND: Command[Any]
    work: Callable[[Any], str]

    def main(self, argv: Sequence[str]) -> None:
        """Parses, works, prints what was done."""
        config = parse(self.COMMAND, argv)
        say_result(self.work(config))


@dataclasses.dataclass(frozen=True)
class Flag:
    """One setting as typed."""

    flag: str
    path: tuple[str, ...]
    """(field,), or (choice, name, field)."""
    hint: Any
    about: str
    default: Any
    """MISSING if the flag is required."""
    heading: str
    common: bool = False
    names: Callable[..., Sequence[str]] | None = None
    """The allowed names, if only some values are valid."""
    groups: Sequence[str] = ()
    """The groups of `names` that are listed; empty for all."""

    def listed(self) -> list[str]:
        """The allowed names that the help and completion show."""
        assert self.names is not None
        return [str(name) for name in self.names(*self.groups)]


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises our errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{printable(message)}\nSee {self.prog} --help")


def parse(command: Command[Config], argv: Sequence[str]) -> Config:
    """The configuration that `argv` describes.

    Raises:
      UserError: flags that do not parse, with close matches; settings that cannot work.
      SystemExit: 0 after `--help`, `--help-all` and `--print-config`.
    """
    words = [_spelled(word) for word in argv]
    asked = _first(command).parse_known_args(words)[0]
    below = _below(command, asked)
    given = _given(command, asked)
    helping = asked.help or asked.help_all
    named = given if helping else merge(command.config, below, given)
    flags = all_flags(command, named, below)
    if helping:
        if asked.preset is not None:
            preset = find_preset(command.presets, asked.preset)
            print(f"Preset {asked.preset}: {preset.describe()}\n")
        parser = _parser(command, flags, show_all=asked.help_all)
        print(parser.format_help().rstrip())
        raise SystemExit(0)
    typed = _flag_values(command, flags, words, below)
    settings = merge(command.config, below, typed)
    _require(command, flags, settings)
    config = _configured(command, asked, settings, typed)
    if asked.print_config:
        import tomli_w

        print(f"# {command.prog} --config FILE")
        sys.stdout.write(tomli_w.dumps(_without_none(to_dict(config))))
        raise SystemExit(0)
    return config


def _configured(
    command: Command[Config],
    asked: argparse.Namespace,
    settings: Mapping[str, Any],
    typed: Mapping[str, Any],
) -> Config:
    """The configuration: by the command's recipe, or exactly as the settings say."""
    own = {field.name for field in dataclasses.fields(command.config)}  # pyright: ignore[reportArgumentType]
    alone = [name for name in typed if name not in own]
    files = [f"--{n}" for n in ("preset", "config") if getattr(asked, n) is not None]
    if alone and files:
        raise UserError(
            f"{_flag(alone[0])} and {files[0]}: give one of them, as {files[0]} says "
            "how long the run is"
        )
    chosen = files or set(command.explicit) & set(typed)
    if command.recipe is not None and (alone or not chosen):
        # Standard output is for the settings, if they are to be printed.
        shown = sys.stderr if asked.print_config else sys.stdout
        with contextlib.redirect_stdout(shown):
            return command.recipe(typed)
    config = from_dict(command.config, settings)
    check(given_problems(config))
    return config


def all_flags(
    command: Command[Any], settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[Flag]:
    """The flags of a command when `settings` are chosen, in the order of the help.

    Imports only what `settings` choose.
    """
    config = command.flags or command.config
    registries = choices(config)
    hints = typing.get_type_hints(config, include_extras=True)
    common = {name: h for h, names in command.common.items() for name in names}
    found = []
    for base, names in _subjects(config):
        heading = (base.__doc__ or "").strip().splitlines()[0].rstrip(".")
        for name in names:
            if name in command.fixed and not registries[name].several:
                continue
            choice = registries.get(name)
            default = defaults.get(name, default_of(config, name))
            if choice is not None:
                default = tuple(one["name"] for one in as_mappings(default))
            found.append(
                Flag(
                    flag=_flag(name),
                    path=(name,),
                    hint=tuple[str, ...]
                    if choice and choice.several
                    else (str if choice else hints[name]),
                    about=_choice_about(name, field_documents(config).get(name, ""))
                    if choice
                    else _in_flags(field_documents(config).get(name, ""), config),
                    default=default if default != () else None,
                    heading=common.get(name, heading),
                    common=name in common,
                    names=choice.registry.names if choice else names_of(hints[name]),
                    groups=command.groups.get(name, ()),
                )
            )
    order = list(common)
    found.sort(key=lambda f: order.index(f.path[0]) if f.common else len(order))
    for field, choice in registries.items():
        for one in as_mappings(settings.get(field, ())):
            found += _choice_flags(field, choice, one, defaults)
    return _short(found, command)


def _choice_about(name: str, text: str) -> str:
    """The document of a choice, without the part about passing it in Python."""
    flag = _flag(name)
    return (
        f"{text.partition(' In Python ')[0]} `{flag} NAME --help` shows its settings."
    )


def _choice_flags(
    field: str, choice: Choice, chosen: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Flag]:
    name = chosen["name"]
    kind = choice.registry.get(name, chosen.get("package"))
    lower = {one["name"]: one for one in as_mappings(defaults.get(field, ()))}
    yield from _settings_flags(field, name, kind, lower.get(name, {}))


def _settings_flags(
    field: str, name: str, kind: Any, lower: Mapping[str, Any]
) -> Iterator[Flag]:
    """The flags for the settings of a choice."""
    if not dataclasses.is_dataclass(kind):
        return
    hints = typing.get_type_hints(kind, include_extras=True)
    documents = field_documents(typing.cast(type, kind))
    title = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
    for one in dataclasses.fields(kind):
        if one.init:
            yield Flag(
                flag=f"--{name.replace('_', '-')}.{_flag(one.name)[2:]}",
                path=(field, name, one.name),
                hint=hints[one.name],
                about=_in_flags(documents.get(one.name, ""), kind),
                default=lower.get(one.name, default_of(kind, one.name)),
                heading=f"{_flag(field)} {name}: {title}",
                common=True,
                names=names_of(hints[one.name]),
            )


def _short(flags: list[Flag], command: Command[Any]) -> list[Flag]:
    """Settings of the choices that the command makes, without their prefix."""
    taken = {flag.flag for flag in flags}
    found = []
    for flag in flags:
        short = f"--{flag.flag.partition('.')[2]}"
        mine = len(flag.path) == 3 and command.fixed.get(flag.path[0]) == flag.path[1]
        if mine and short not in taken:
            flag = dataclasses.replace(flag, flag=short)
        found.append(flag)
    # The command's own settings come first.
    own = [f for f in found if len(f.path) == 3 and "." not in f.flag]
    return own + [f for f in found if f not in own]


def _first(command: Command[Any]) -> _Parser:
    """A parser of the flags that decide which other flags exist."""
    parser = _Parser(prog=command.prog, add_help=False, allow_abbrev=False)
    for flag in ("--help", "--help-all", "--print-config"):
        extra = ["-h"] if flag == "--help" else []
        parser.add_argument(*extra, flag, action="store_true")
    own = {field.name for field in dataclasses.fields(command.config)}  # pyright: ignore[reportArgumentType]
    parser.set_defaults(preset=None, config=None)
    for name in {"preset", "config"} - own:
        parser.add_argument(f"--{name}", nargs="?", const="")
    for name, choice in choices(command.config).items():
        if name in command.fixed and not choice.several:
            continue
        several: Any = {"nargs": "*"} if choice.several else {}
        kind = _one_of(choice.registry.names)
        parser.add_argument(_flag(name), dest=f"choice {name}", type=kind, **several)
    return parser


def _below(command: Command[Any], asked: argparse.Namespace) -> dict[str, Any]:
    """The settings below the flags: default choices, the preset, the file."""
    config = command.config
    settings: dict[str, Any] = {
        name: default
        for name in choices(config)
        if (default := default_of(config, name)) is not dataclasses.MISSING
    }
    if asked.preset is not None:
        preset = find_preset(command.presets, asked.preset)
        settings = merge(config, settings, preset.settings)
    if asked.config is not None:
        settings = merge(config, settings, read_config(asked.config, command.kind))
    for name, made in command.fixed.items():
        if choices(config)[name].several:
            others = [
                o for o in as_mappings(settings.get(name, ())) if o["name"] != made
            ]
            mine = [o for o in as_mappings(settings.get(name, ())) if o["name"] == made]
            settings[name] = [*(mine or [{"name": made}]), *others]
            continue
        before = as_mappings(settings.get(name, made))[0]["name"]
        usual = as_mappings(default_of(config, name))[0]["name"]
        if before not in (made, usual):
            raise UserError(
                f"{name}={before!r}: `{command.prog}` needs {name}={made!r}; use the "
                f"command for {before!r}"
            )
        settings = merge(config, settings, {name: made})
    return settings


def _given(command: Command[Any], asked: argparse.Namespace) -> dict[str, Any]:
    """The choices made on the command line, and those that the command fixes."""
    found: dict[str, Any] = dict(command.fixed)
    for name, choice in choices(command.config).items():
        value = getattr(asked, f"choice {name}", None)
        if value is None:
            continue
        if choice.several:
            mine = [command.fixed[name]] if name in command.fixed else []
            value = [*mine, *(one for one in value if one not in mine)]
        found[name] = value
    return found


def _flag_values(
    command: Command[Any],
    flags: list[Flag],
    words: list[str],
    below: Mapping[str, Any],
) -> dict[str, Any]:
    """{field: value} of the command line, nested as in a file."""
    parser = _parser(command, flags)
    space, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if re.match(r"--?[a-z]", word)]
    if unknown:
        lines = [_unknown_flag(command, flags, word) for word in unknown]
        raise UserError("\n".join(lines))
    given = vars(space)
    if rest:
        _take_positional(command, parser, given, rest)
    values: dict[str, Any] = {
        f.path[0]: given[f.flag] for f in flags if len(f.path) == 1 and f.flag in given
    }
    inner: dict[str, dict[str, dict[str, Any]]] = {}
    for flag in flags:
        if len(flag.path) == 3 and flag.flag in given:
            field, name, setting = flag.path
            inner.setdefault(field, {}).setdefault(name, {})[setting] = given[flag.flag]
    for field, choice in choices(command.config).items():
        if field in command.fixed and not choice.several:
            values[field] = command.fixed[field]
        if field in command.fixed and field in values:
            values[field] = [command.fixed[field], *values[field]]
        if field not in values and field not in inner:
            continue
        chosen = as_mappings(values.get(field, below.get(field, ())))
        unique = list(dict.fromkeys(one["name"] for one in chosen))
        made = [{"name": n, **inner.get(field, {}).get(n, {})} for n in unique]
        values[field] = made if choice.several else made[0]
    if given_images := set(values).intersection(command.images):
        # Imported here: other commands need no image reader.
        from afterimage.data.sources import spec_of

        for name in given_images:
            one = values[name]
            several = isinstance(one, tuple)
            values[name] = tuple(map(spec_of, one)) if several else spec_of(one)
    return values


def _take_positional(
    command: Command[Any], parser: _Parser, given: dict[str, Any], rest: list[str]
) -> None:
    name = command.positional
    if name is None:
        raise UserError(
            f"{command.prog} does not take the argument {printable(rest[0])!r}"
        )
    flag = _flag(name)
    if flag in given:
        raise UserError(
            f"{flag} and the argument {printable(rest[0])!r} mean the same; give only "
            "one"
        )
    hint = typing.get_type_hints(command.config)[name]
    if len(rest) > 1 and get_origin(hint) is not tuple:
        raise UserError(
            f"{command.prog} takes one {flag[2:]}, not {len(rest)}: "
            f"{printable(' '.join(rest))}"
        )
    given |= vars(parser.parse_args([flag, *rest]))


def _unknown_flag(command: Command[Any], flags: list[Flag], word: str) -> str:
    """The message for a flag that does not exist, or only with another choice."""
    flag = word.partition("=")[0]
    text = f"{command.prog} has no flag {printable(flag)}"
    name, dot, _ = flag[2:].partition(".")
    for field, choice in choices(command.config).items():
        add = (
            f"{_flag(field)} {{}}" if not choice.several else f"{{}} to {_flag(field)}"
        )
        for known in choice.registry.names():
            if dot and name not in (known, known.replace("_", "-")):
                continue
            if dot and any(f.flag.startswith(f"--{name}.") for f in flags):
                mine = [f.flag for f in flags if f.flag.startswith(f"--{name}.")]
                hint = did_you_mean(flag, mine)
                return f"{text}{hint} {known} has: {', '.join(mine) or 'no settings'}"
            if dot:
                return f"{flag} works only with its choice: add {add.format(known)}"
            kind = choice.registry.get(known)
            fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
            if flag in {_flag(f.name) for f in fields}:
                typed = f"--{known}.{flag[2:]}"
                return (
                    f"{text}; did you mean {typed!r}? It works only with "
                    f"{add.format(known)}"
                )
    return f"{text}{did_you_mean(flag, [f.flag for f in flags])}"


def flags_for(command: Command[Any], words: Sequence[str]) -> list[Flag]:
    """The flags available to a command line so far, even if it has errors."""
    try:
        asked = _first(command).parse_known_args([_spelled(word) for word in words])[0]
        below = _below(command, asked)
        chosen = merge(command.config, below, _given(command, asked))
        return all_flags(command, chosen, below)
    except UserError:
        return all_flags(command, command.fixed, {})


def settings_of(name: str, kind: Any) -> str:
    """The settings of a choice, as the help shows them."""
    parser = _Parser(
        usage=argparse.SUPPRESS, add_help=False, formatter_class=_Formatter
    )
    group = parser.add_argument_group("settings")
    flags = list(_settings_flags("", name, kind, {}))
    for flag in flags:
        _add(group, flag, required=flag.default is dataclasses.MISSING, visible=True)
    return parser.format_help().rstrip() if flags else "no settings"


def _require(
    command: Command[Any], flags: list[Flag], settings: Mapping[str, Any]
) -> None:
    missing = [
        flag.flag
        for flag in flags
        if len(flag.path) == 1
        and settings.get(flag.path[0]) is None
        and (flag.default is dataclasses.MISSING or flag.path[0] in command.needs)
    ]
    if missing:
        raise UserError(
            f"{command.prog} needs {' and '.join(missing)}\nSee {command.prog} --help"
        )


def _parser(
    command: Command[Any], flags: list[Flag], *, show_all: bool = False
) -> _Parser:
    """The parser of these flags; its help shows the common ones, or all."""
    required = [
        f"{f.flag} {f.flag[2:].upper()}"
        for f in flags
        if len(f.path) == 1
        and f.path[0] != command.positional
        and (f.default is dataclasses.MISSING or f.path[0] in command.needs)
    ]
    first = [command.positional.rstrip("_").upper()] if command.positional else []
    parser = _Parser(
        prog=command.prog,
        usage=" ".join([command.prog, *first, *required, "[flags]"]),
        description=command.about,
        add_help=False,
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    groups: dict[str, Any] = {}
    for flag in flags:
        if flag.heading not in groups:
            groups[flag.heading] = parser.add_argument_group(flag.heading)
        needed = flag.default is dataclasses.MISSING or flag.path[-1] in command.needs
        visible = flag.common or show_all
        _add(groups[flag.heading], flag, required=needed, visible=visible)
    _add_general(parser, command)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **more: Any):
        width = min(100, int(os.environ.get("COLUMNS") or 0) or _columns())
        super().__init__(prog, max_help_position=28, width=width, **more)


_MOST_NAMES = 25
"""More names than this would fill a screen of help."""


def _columns() -> int:
    try:
        return os.get_terminal_size().columns - 2
    except OSError:
        return 88


def _add(group: Any, flag: Flag, *, required: bool, visible: bool) -> None:
    text = flag.about
    if flag.names is not None and _metavar(flag) == "NAME":
        names = flag.listed()
        if len(names) > _MOST_NAMES:
            text += f" `afterimage methods` lists all {len(names)}."
        elif not set(names) <= set(re.split(r"[^\w.-]", text)):
            text += f" One of {', '.join(names)}."
    if required:
        text += " (required)"
    elif flag.default not in (None, dataclasses.MISSING, "", ()):
        text += f" (default: {_shown(flag.default)})"
    more: dict[str, Any] = dict(_argument(flag))
    if more.get("action") is not argparse.BooleanOptionalAction:
        more["metavar"] = _metavar(flag)
    group.add_argument(
        flag.flag,
        dest=flag.flag,
        default=argparse.SUPPRESS,
        help=text.strip().replace("%", "%%") if visible else argparse.SUPPRESS,
        **more,
    )


def _add_general(parser: _Parser, command: Command[Any]) -> None:
    group = parser.add_argument_group("Presets, files and help")
    own = [
        n
        for n, p in command.presets.items()
        if p.command.startswith(f"{command.prog} ")
    ]
    names = ", ".join(own or command.presets)
    words = {
        "--preset": f"a named set of settings; flags override it: {names} (`afterimage "
        "presets NAME` describes one)",
        "--config": "settings of a TOML file or of another run; flags override them",
        "--print-config": "print the settings as TOML, for --config, and exit",
        "--help": "this page",
        "--help-all": "show every flag, by subject",
    }
    words = dict(command.actions) | words
    if not command.presets:
        del words["--preset"]
    if not command.kind:
        for flag in ("--config", "--print-config", "--help-all"):
            del words[flag]
    for flag, text in words.items():
        value = flag in ("--preset", "--config")
        more: dict[str, Any] = (
            {"metavar": "NAME" if flag == "--preset" else "FILE"}
            if value
            else {"action": "store_true"}
        )
        short = ["-h"] if flag == "--help" else []
        group.add_argument(*short, flag, default=argparse.SUPPRESS, help=text, **more)


def read_config(place: str, kind: str) -> dict[str, Any]:
    """The settings in a TOML file or a run folder."""
    if os.path.isdir(place):
        from afterimage.checkpoints import schemas

        file = pathlib.Path(place) / "config.json"
        if not os.path.lexists(file):
            raise UserError(f"config={place}: not a run folder, it has no config.json")
        stored = schemas.read(
            file, schemas.ConfigFile, "restore it, or give a TOML file"
        )
        if stored["kind"] != kind:
            raise UserError(
                f"config={place}: this is a {printable(stored['kind'])} run, but the "
                f"command needs the settings of a {kind or 'different'} run"
            )
        return {k: v for k, v in stored["config"].items() if v is not None}
    try:
        with open(place, "rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise UserError(
                f"config={place}: over 1 MiB, too large for a file of settings"
            )
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"config={place} is not TOML: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"config={place} {_no_file(place, error)}") from error


def _no_file(place: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"does not exist{nearest_path(place)}"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def _subjects(config: type) -> Iterator[tuple[type, list[str]]]:
    """(class, its fields) for each class that adds settings, its own first."""
    known, seen = {f.name for f in dataclasses.fields(config) if f.init}, set()
    found = []
    for base in reversed(config.__mro__):
        # A field whose default a subclass changes stays with the class that defines it.
        own = [n for n in inspect.get_annotations(base) if n in known - seen]
        seen |= set(own)
        found.append((base, own))
    yield from ((base, own) for base, own in reversed(found) if own)


def _bare(hint: Any) -> Any:
    """A type hint without None and annotations."""
    hint = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    if get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [k for k in get_args(hint) if k is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else str
    return hint


def _argument(flag: Flag) -> Iterator[tuple[str, Any]]:
    """The arguments that argparse needs for a flag."""
    kind = _bare(flag.hint)
    if kind is bool:
        yield "action", argparse.BooleanOptionalAction
        return
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        yield "nargs", "*" if Ellipsis in kinds or len(kinds) == 1 else len(kinds)
        yield "action", _Tuple
        kind = kinds[0]
    if flag.names is not None and joined_of(flag.hint) is None:
        yield "type", _one_of(flag.names)
    else:
        yield "type", {int: int, float: float}.get(kind, str)


class _Tuple(argparse.Action):
    """Stores the values as a tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None):
        del parser, option
        setattr(namespace, self.dest, tuple(values))


def _one_of(names: Callable[[], Sequence[str]]) -> Callable[[str], str]:
    def check(text: str) -> str:
        known = names()
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"{text!r} is unknown{did_you_mean(text, known)} There are: "
                f"{', '.join(known)}"
            )
        return text

    return check


def _metavar(flag: Flag) -> Any:
    """INT, NUMBER, TEXT, or the allowed names."""
    kind = _bare(flag.hint)
    kinds = get_args(kind) if get_origin(kind) is tuple else (kind,)
    if flag.names is not None:
        text = "{" + ",".join(flag.listed()) + "}"
        text = text if len(flag.flag) + len(text) <= 22 else "NAME"
    else:
        text = {int: "INT", float: "NUMBER"}.get(kinds[0], "TEXT")
    return tuple([text] * len(kinds)) if len(kinds) > 2 else text


def _flag(name: str) -> str:
    # `from` is a Python keyword; its field is `from_`.
    return f"--{name.rstrip('_').replace('_', '-')}"


def _spelled(word: str) -> str:
    """`--batch_size=8` as `--batch-size=8`."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word[:2] == "--" else word


def _in_flags(text: str, config: Any) -> str:
    """A field's document, with field names written as flags."""

    def typed(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in fields or not (value or "_" in name):
            return match[0]
        return _flag(name) + (f" {value[1:]}" if value else "")

    fields = {field.name for field in dataclasses.fields(config)}
    return re.sub(r"(?<![\w`-])([a-z][a-z0-9_]*)(=[\w.]*[\w])?(?![\w(])", typed, text)


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(one) for one in value]
    return value
