"""What the terms of one step share: values by name, each computed once.

A name says which stream a value belongs to and what it is: `train/image`,
`train/label`, `train/maps`, `train/features`, `train/logits`; values that belong to no
stream are `params`, `stats`, `step` and `anchors/NAME`. A stage supplies the rules;
whoever reads a name first pays for it, the next reader gets the same array. The memo
lives as long as one trace, so a compiled step contains every forward pass once.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class UnknownName(KeyError):
    """A name was read that nothing supplies; the message offers the nearest."""

    def __str__(self) -> str:
        return str(self.args[0])


def near_misses(name: str, known: Iterable[str]) -> str:
    """That `name` is not supplied, with the nearest name, or the whole list."""
    known = sorted(known)
    stream, slash, _ = name.partition("/")
    streams = sorted({other.split("/")[0] for other in known if "/" in other})
    if slash and stream not in streams:
        return (
            f"{name!r} is not supplied: nothing here is called {stream!r}, only "
            f"{', '.join(streams)}; an unlabelled target stream is given by --target"
        )
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"{name!r} is not supplied; did you mean {close[0]!r}?"
    return f"{name!r} is not supplied; this stage supplies {', '.join(known)}"


class Context:
    """Values by name, computed by their rule on first reading.

    `rules` maps a name to a function of the context, which may read other names.
    """

    def __init__(self, rules: Mapping[str, Callable[["Context"], Any]]):
        self._rules = dict(rules)
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            if name not in self._rules:
                raise UnknownName(near_misses(name, self._rules))
            self._values[name] = self._rules[name](self)
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._rules

    def read(self, name: str) -> bool:
        """Whether anyone has read `name` so far."""
        return name in self._values

    def only(self, names: tuple[str, ...], reader: str) -> "View":
        """This context as one term may see it: `names` and nothing else."""
        return View(self, names, reader)


class View:
    """A context seen through what one term declared in `reads`."""

    def __init__(self, context: Context, names: tuple[str, ...], reader: str):
        self._context, self._names, self._reader = context, names, reader

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise UnknownName(
                f"the term {self._reader!r} reads {name!r} without declaring it; "
                f"its reads are {self._names}"
            )
        return self._context[name]
