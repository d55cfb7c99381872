"""Registries of encoders, objectives, methods, augmentations, sources and scorers.

Ours have one file each in the package of their kind, or share one module if they are
short. Other packages add their own through an entry point in the group
`afterimage.plugins`, whose value is a module that registers them on import:

    # pyproject.toml
    [project.entry-points."afterimage.plugins"]
    mine = "my_package.afterimage_parts"

    # my_package/afterimage_parts.py
    from afterimage.plugins import METHODS

    @METHODS.add("my-method")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class MyMethod(Method): ...

The commands list these additions and show their settings in the help. Manifests store
them, and they load again in any process that has the package.

A package adds a command of its own by the group `afterimage.commands`, whose value is a
module with `main(argv)` and `COMMAND`, as ours in `afterimage.commands` have.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from afterimage.errors import UserError, did_you_mean

GROUP = "afterimage.plugins"
COMMANDS = "afterimage.commands"
"""The group of a package's own commands: a name, and a module like ours."""
Thing = TypeVar("Thing")
_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
_ADDED = r'^@\w+\.add\("([^"]+)"(?:, group="([^"]+)")?\)'
_loading: list[str] = []
"""The packages whose plug-ins are being imported, as `name version`."""


class Registry(Generic[Thing]):
    """Everything of one kind, by name; our own entries are imported on first use.

    `package` holds our own entries: a package with one file each, or one module.
    """

    def __init__(self, kind: str, package: str):
        self.kind, self._package = kind, package
        self._things: dict[str, Thing] = {}
        self._origins: dict[str, str] = {}
        self._groups: dict[str, str] = {}

    def add(self, name: str, *, group: str = "") -> Callable[[Any], Any]:
        """Decorator: registers a class or a function under this name.

        `group` says where a command lists it, and becomes a class's attribute `group`.

        Raises UserError for a name that is not `lower-case-words` or is already taken.
        """
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{self.kind} {name!r}: the name may contain only lower-case letters, "
                "digits and single hyphens, e.g. my-name"
            )

        def register(thing: Any) -> Any:
            origin = _loading[-1] if _loading else thing.__module__
            ours = thing.__module__.startswith("afterimage.")
            taken = name in self._things or (not ours and name in self._homes)
            if taken and self._origins.get(name) != origin:
                raise UserError(
                    f"{self.kind} {name!r} already exists; choose another name"
                )
            self._things[name] = thing
            self._groups[name] = group
            if not ours:
                self._origins[name] = origin
            if isinstance(thing, type):
                thing.name = name  # pyright: ignore[reportAttributeAccessIssue]
                thing.group = group  # pyright: ignore[reportAttributeAccessIssue]
            return thing

        return register

    def names(self, *groups: str) -> tuple[str, ...]:
        """All names, or those of some groups, without importing our own entries.

        Ours come first, in the order of their files.
        """
        load_plugins()
        every = (*self._homes, *(n for n in self._things if n not in self._homes))
        return tuple(n for n in every if not groups or self._group(n) in groups)

    def _group(self, name: str) -> str:
        return self._groups[name] if name in self._groups else self._homes[name].group

    def get(self, name: str, origin: str | None = None) -> Thing:
        """The entry registered under `name`; `origin` is the package that added it.

        Raises UserError for an unknown name, with the nearest known one or the missing
        package.
        """
        if name not in self._things and name in self._homes:
            importlib.import_module(self._homes[name].module)
        if name not in self._things:
            load_plugins()
        if name in self._things:
            return self._things[name]
        if origin is not None:
            raise UserError(
                f"{self.kind} {name!r} comes from the package {origin}, which is not "
                f"installed: pip install {origin.split()[0]}"
            )
        known = self.names()
        raise UserError(
            f"{self.kind} {name!r} is unknown{did_you_mean(name, known)} There are: "
            f"{', '.join(known)}"
        )

    def origin(self, name: str) -> str | None:
        """The package that added `name`, as `name version`; None if it is ours."""
        return self._origins.get(name)

    @functools.cached_property
    def _homes(self) -> Mapping[str, "_Home"]:
        """Our own entries by name, read from files without importing them."""
        # Not the package's own spec: finding it would import its parents, and JAX.
        first, *rest = self._package.split(".")
        spec = importlib.util.find_spec(first)
        files = {}
        for place in (spec.submodule_search_locations if spec else None) or ():
            path = pathlib.Path(place, *rest)
            for file in sorted(path.glob("*.py")):
                files[f"{self._package}.{file.stem}"] = file
            if path.with_suffix(".py").is_file():
                files[self._package] = path.with_suffix(".py")
        found = {}
        for module, file in files.items():
            for name, group in re.findall(_ADDED, file.read_text(), re.M):
                found[name] = _Home(module, group)
        return found


class _Home(NamedTuple):
    """Where one of our own entries is, and its group."""

    module: str
    group: str


ENCODERS: Registry[Any] = Registry("encoder", "afterimage.models.encoders")
OBJECTIVES: Registry[Any] = Registry("objective", "afterimage.pretrain.objectives")
METHODS: Registry[Any] = Registry("method", "afterimage.finetune.methods")
AUGMENTATIONS: Registry[Any] = Registry("augmentation", "afterimage.data.augmentations")
SOURCES: Registry[Any] = Registry("data source", "afterimage.data.sources")
SCORERS: Registry[Any] = Registry("anomaly scorer", "afterimage.anomalies.scorers")


@functools.cache
def load_plugins() -> None:
    """Imports the plug-ins of all installed packages, once per process.

    A plug-in that cannot be imported is reported on standard error and skipped, so that
    commands that do not need it still work.
    """
    for entry in importlib.metadata.entry_points(group=GROUP):
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.name
        _loading.append(origin)
        try:
            entry.load()
        except Exception as error:
            print(
                f"The plug-in {entry.name!r} of {origin} cannot be loaded: "
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
            )
        finally:
            _loading.pop()


@functools.cache
def plugin_commands() -> Mapping[str, importlib.metadata.EntryPoint]:
    """The commands that other packages add, by name; nothing is imported."""
    found = importlib.metadata.entry_points(group=COMMANDS)
    return {entry.name: entry for entry in sorted(found, key=lambda one: one.name)}
