"""From a command line to a stage's configuration: presets first, then settings."""

import ast
import contextlib
import dataclasses
import inspect
import itertools
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin

from afterimage import console
from afterimage.checkpoints.errors import CheckpointError, disk_fault
from afterimage.checkpoints.names import printable
from afterimage.errors import (
    AfterimageError,
    DiskError,
    UserError,
    did_you_mean,
    out_of_memory,
)
from afterimage.limits import check_address_space

Config = TypeVar("Config")
_AT_ONCE = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What a preset reached: only ever the outcome of a run, with where and when."""

    result: str
    """The figure, e.g. `kNN 96.1 ± 0.3 % (3 seeds), raw pixels 97.5 %`."""
    time: str
    """Wall clock of the whole command, e.g. `38 s`."""
    device: str
    date: str

    def __str__(self) -> str:
        return f"{self.result}; {self.time} on {self.device}, {self.date}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that belong together, by name."""

    about: str
    """One line: what it is for."""
    command: str
    """The command as one would type it."""
    settings: Mapping[str, Any]
    """Fields of the stage's configuration that differ from its defaults."""
    cost: str
    """The arithmetic: images and steps it takes."""
    measured: tuple[Measured, ...] = ()

    def describe(self) -> str:
        """The preset in full, a few lines."""
        settings = " ".join(_flag(k, v) for k, v in self.settings.items())
        lines = [self.about, f"command   {self.command}", f"settings  {settings}"]
        lines.append(f"cost      {self.cost}")
        lines += [f"measured  {measured}" for measured in self.measured]
        return "\n".join(lines)


_PAIRS = (
    ("steps", "epochs"),
    ("warmup_steps", "warmup_epochs"),
    ("labels", "labels_per_class"),
)
_EITHER = _PAIRS + tuple((b, a) for a, b in _PAIRS)
"""Two settings for one thing: where one is given, a preset's other one is dropped."""


def find_preset(presets: Mapping[str, Preset], name: str) -> Preset:
    """The preset of that name; a UserError names the nearest and lists all."""
    if name in presets:
        return presets[name]
    hint = did_you_mean(name, presets)
    raise UserError(f"preset={name!r} is unknown{hint} There are: {', '.join(presets)}")


def parse(
    config_class: type[Config],
    presets: Mapping[str, Preset],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    show: Callable[[str], None] = print,
) -> Config:
    """The configuration that `argv` asks for; settings given beside a preset win.

    The flags are the fields of `config_class`, a dataclass, and of the dataclasses it
    inherits from, each of which is a group in the help. `--preset NAME --help` shows
    that preset's settings as defaults.

    Raises:
      UserError: an unknown preset, or settings that cannot work.
      SystemExit: 0 after `--help`; 2 for flags that do not parse, with near misses.
    """
    import tyro

    name, rest = _take_preset(argv)
    chosen = find_preset(presets, name) if name is not None else None
    settings = dict(chosen.settings) if chosen else {}
    for one, other in _EITHER:  # `--steps` beside a preset wins over its epochs
        given = {argument.partition("=")[0] for argument in rest}
        if f"--{one.replace('_', '-')}" in given:
            settings.pop(other, None)
    if chosen and {"-h", "--help"} & set(rest):
        show(f"Preset {name}: {chosen.describe()}\n")
    groups = tyro.cli(
        _flags(config_class, settings),
        prog=prog,
        description=f"{description}\n\n{_preset_help(presets)}",
        args=rest,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    check_address_space()
    values = {k: v for group in vars(groups).values() for k, v in vars(group).items()}
    return config_class(**values)


def exit_code(command: Callable[[], object]) -> int:
    """Runs a command; errors a user can act on are a message and their own code.

    0 done, 2 bad input, 3 damaged checkpoint, 4 diverged, 75 interrupted and saved, 130
    stopped at once, 141 the reader of the output is gone (`| head`); anything else is
    our fault and keeps its traceback.
    """
    console.prepare()
    try:
        code = _run(command)
        sys.stdout.flush()  # a closed pipe shows here, not at the interpreter's end
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # not a real one
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    lost = console.lost_output()
    if lost is not None and code == 0:
        print(
            f"The work is done, but some of its output is lost: {lost.strerror} on "
            "standard output.",
            file=sys.stderr,
        )
        return UserError.exit_code
    return code


def leave(code: int) -> NoReturn:
    """Ends the process with an exit code.

    To stop at once, the interpreter is not shut down: that waits for threads, and
    crashes while one of them runs an XLA program.
    """
    if code == _AT_ONCE:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run(command: Callable[[], object]) -> int:
    try:
        command()
    except (AfterimageError, CheckpointError) as error:
        print(printable(str(error), keep="\n\t"), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        print(printable(fault, keep="\n\t"), file=sys.stderr)
        return DiskError.exit_code
    except KeyboardInterrupt:
        print("\nStopped at once; earlier checkpoints are kept.", file=sys.stderr)
        return _AT_ONCE
    except Exception as error:
        said = out_of_memory(error)
        if said is None:
            raise
        print(
            "Out of memory on this machine or device, or beyond this process's limit. "
            "Try a smaller --batch-size or --image-size, or raise the limit (ulimit "
            f"-v, the job's limit). The error was: {said}",
            file=sys.stderr,
        )
        return UserError.exit_code
    return 0


def _take_preset(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--preset`, wherever it stands, and the other arguments."""
    rest, name, arguments = [], None, iter(argv)
    for argument in arguments:
        if argument == "--preset":
            name = next(arguments, "")
        elif argument.startswith("--preset="):
            name = argument.partition("=")[2]
        else:
            rest.append(argument)
    return name, rest


def _preset_help(presets: Mapping[str, Preset]) -> str:
    if not presets:
        return ""
    width = max(map(len, presets))
    lines = [f"  {name:{width}}  {p.about}" for name, p in presets.items()]
    return "\n".join(
        [
            "--preset NAME sets what belongs together; settings beside it win:",
            *lines,
            "  (--preset NAME --help shows one in full.)",
        ]
    )


def _flags(config_class: type, settings: Mapping[str, Any]) -> type:
    """A dataclass for tyro: one field, unprefixed, for each class that adds settings.

    Not `config_class` itself: it would check defaults before the flags are read, and
    tyro would show its errors as its own.
    """
    groups, seen = [], set()
    for base in reversed(config_class.__mro__):
        # A field whose default a subclass changes stays in the group that named it.
        names = set(inspect.get_annotations(base)) - seen
        seen |= names
        own = [f for f in dataclasses.fields(config_class) if f.name in names]
        if own:
            name = base.__name__.removesuffix("Options").removesuffix("Config").lower()
            groups.append((name, _group(config_class, base, own, settings)))
    return dataclasses.make_dataclass("Flags", groups, kw_only=True)


def _group(
    config_class: type,
    base: type,
    fields: Sequence[dataclasses.Field],
    settings: Mapping[str, Any],
) -> type:
    """A dataclass with these fields of `config_class`, documented for tyro."""
    import tyro

    documents = field_documents(base) | field_documents(config_class)
    hints = typing.get_type_hints(config_class)
    columns: list[Any] = []
    for field in fields:
        default = settings.get(field.name, field.default)
        required = default is dataclasses.MISSING
        argument = tyro.conf.arg(
            # `from` is a word of Python; its field is `from_`.
            name=field.name.rstrip("_").replace("_", "-"),
            help=documents.get(field.name, ""),
            metavar=_metavar(hints[field.name]),
            # "(default: None)" says less than the sentence before it.
            help_behavior_hint="" if default is None else None,
        )
        kind = Annotated[hints[field.name], argument]
        if required:
            columns.append((field.name, kind))
        else:
            columns.append((field.name, kind, dataclasses.field(default=default)))
    group = dataclasses.make_dataclass(base.__name__, columns, kw_only=True)
    group.__doc__ = (base.__doc__ or "").strip().splitlines()[0]
    return group


def field_documents(base: type) -> dict[str, str]:
    """{field: the string that stands beneath it in the class}, as one line each."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    documents = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            name = typing.cast(ast.Name, field.target).id
            value = typing.cast(ast.Constant, text.value).value
            documents[name] = " ".join(str(value).split())
    return documents


def _metavar(kind: Any) -> str | None:
    """INT, NUMBER, TEXT or the choices, without a word on None."""
    if get_origin(kind) in (types.UnionType, typing.Union):
        kinds = [k for k in get_args(kind) if k is not types.NoneType]
        kind = kinds[0] if len(kinds) == 1 else None
        if kind is bool:
            return "{True,False}"
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return {int: "INT", float: "NUMBER", str: "TEXT"}.get(kind)


def _flag(name: str, value: Any) -> str:
    flag = name.rstrip("_").replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"
