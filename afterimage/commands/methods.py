"""`afterimage methods [NAME]`: everything you choose by name, and its settings."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from afterimage.commands.flags import Command, parse, settings_of
from afterimage.console import say
from afterimage.errors import UserError, did_you_mean
from afterimage.plugins import (
    AUGMENTATIONS,
    METHODS,
    OBJECTIVES,
    SCORERS,
    SOURCES,
    Registry,
)

REGISTRIES: tuple[Registry[Any], ...] = (
    OBJECTIVES,
    METHODS,
    AUGMENTATIONS,
    SOURCES,
    SCORERS,
)
LISTS: dict[str, tuple[Registry[Any], tuple[str, ...]]] = {
    "objectives of pretrain": (OBJECTIVES, ()),
    "methods of finetune": (METHODS, ("",)),
    "methods of adapt, for a target domain": (METHODS, ("target",)),
    "methods of continual": (METHODS, ("continual",)),
    "methods of episodes": (METHODS, ("episodes",)),
    "augmentations": (AUGMENTATIONS, ()),
    "sources of data": (SOURCES, ()),
    "scorers of anomalies": (SCORERS, ()),
}
"""{title: (registry, the groups listed; empty for all)}."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Methods:
    """Everything you can choose by name."""

    name: str | None = None
    """Name to describe. Default: list all, one line each."""


COMMAND = Command(
    name="methods",
    config=Methods,
    positional="name",
    about="""\
List objectives, methods, augmentations and sources of data, those of installed plug-ins
too; or describe one with its settings.

  afterimage methods
  afterimage methods masked""",
    common={"Settings": ("name",)},
)


def main(argv: Sequence[str]) -> None:
    """Parses, prints."""
    name = parse(COMMAND, argv).name
    if name is None:
        for title, (registry, groups) in LISTS.items():
            say(f"{title}:")
            say("\n".join(_lines(registry, registry.names(*groups))))
        return
    found = [r for r in REGISTRIES if name in r.names()]
    if not found:
        known = [n for registry in REGISTRIES for n in registry.names()]
        raise UserError(f"Nothing is called {name!r}{did_you_mean(name, known)}")
    say("\n\n".join(_described(registry, name) for registry in found))


def _lines(registry: Registry[Any], names: Sequence[str]) -> Iterator[str]:
    width = max(map(len, names), default=0)
    for name in names:
        origin = registry.origin(name)
        where = f" ({origin})" if origin else ""
        yield f"  {name:{width}}  {_first_line(registry.get(name))}{where}"


def _described(registry: Registry[Any], name: str) -> str:
    thing = registry.get(name)
    about = " ".join((thing.__doc__ or "").split())
    settings = (
        _numbers(thing) if registry is AUGMENTATIONS else settings_of(name, thing)
    )
    return f"{registry.kind} {name}: {about}\n{settings}".rstrip()


def _numbers(thing: Any) -> str:
    """What an augmentation consists of, or the numbers it takes after colons."""
    from afterimage.data.augmentations import AugmentationSet, parameters

    if isinstance(thing, type) and issubclass(thing, AugmentationSet):
        return f"the same as --augment {thing.spec}"
    lines = [
        f"  {name.upper():12} {low:g} to {high:g} (default: {default:.3g})"
        for name, (default, low, high) in parameters(thing).items()
    ]
    return "\n".join(["numbers after colons, in this order:", *lines] if lines else [])


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]
