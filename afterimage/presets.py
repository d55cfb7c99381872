"""Presets: named groups of settings, with their cost and where results are."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from afterimage.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A named group of settings."""

    about: str
    """One line on what it is for."""
    command: str
    """The command as typed."""
    settings: Mapping[str, Any]
    """Settings that differ from the defaults, as plain values. A choice is a name, or a
    mapping with its `name` and settings; several choices are a sequence of these."""
    cost: str
    """The number of images and steps, and how long they take where that is known."""
    results: str = ""
    """The page and section of benchmarks/results with its figures; empty if none."""

    def describe(self) -> str:
        """The preset in full, a few lines."""
        flags = (flag for k, v in self.settings.items() for flag in _flags(k, v))
        lines = [
            self.about,
            f"command   {self.command}",
            f"settings  {' '.join(flags)}",
            f"cost      {self.cost}",
        ]
        if self.results:
            lines.append(f"results   benchmarks/results/{self.results}")
        return "\n".join(lines)


def find_preset(presets: Mapping[str, Preset], name: str) -> Preset:
    """The preset of that name; else UserError with the nearest name and all names."""
    if name in presets:
        return presets[name]
    hint = did_you_mean(name, presets)
    raise UserError(f"preset={name!r} is unknown{hint} There are: {', '.join(presets)}")


def _flags(name: str, value: Any) -> Iterator[str]:
    """The flags of one setting, as typed: a choice's name, then its settings."""
    flag = f"--{name.rstrip('_').replace('_', '-')}"
    several = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(one, Mapping) for one in several):
        given = [one if isinstance(one, Mapping) else {"name": one} for one in several]
        yield f"{flag} {' '.join(str(one['name']) for one in given)}"
        for one in given:
            for key, inner in one.items():
                if key not in ("name", "package"):
                    yield from _flags(f"{one['name']}.{key}", inner)
    elif isinstance(value, bool):
        yield flag if value else f"--no-{flag[2:]}"
    else:
        yield f"{flag} {' '.join(map(str, several))}"
