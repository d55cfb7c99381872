"""`afterimage methods [NAME]`: everything you choose by name, and its settings."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from afterimage.commands.flags import Command, parse, settings_of
from afterimage.console import say
from afterimage.errors import UserError, did_you_mean
from afterimage.plugins import AUGMENTATIONS, METHODS, OBJECTIVES, SOURCES, Registry

REGISTRIES: dict[str, Registry[Any]] = {
    "objectives of pretrain": OBJECTIVES,
    "methods of finetune": METHODS,
    "augmentations": AUGMENTATIONS,
    "sources of data": SOURCES,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Methods:
    """Everything you can choose by name."""

    name: str | None = None
    """Which one to describe. Default: one line for each."""


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
        for title, registry in REGISTRIES.items():
            if registry.names():
                say(f"{title}:")
                say("\n".join(_lines(registry)))
        return
    found = [r for r in REGISTRIES.values() if name in r.names()]
    if not found:
        known = [n for registry in REGISTRIES.values() for n in registry.names()]
        raise UserError(f"There is no {name!r}{did_you_mean(name, known)}")
    say("\n\n".join(_described(registry, name) for registry in found))


def _lines(registry: Registry[Any]) -> Iterator[str]:
    width = max(map(len, registry.names()))
    for name in registry.names():
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
