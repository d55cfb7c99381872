"""Pickles, run by a machine of about forty opcodes that can make only plain values.

Python's own unpickler calls what a pickle names, sets attributes, and hashes what it
is given. Here a pickle can only make dictionaries, lists, tuples, strings, numbers and
what the given functions return; any other name is refused before it is looked up.
Opcodes: `pickletools` in the standard library.
"""

import io
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

MOST_BYTES = 16 * 2**20
MOST_STEPS = 2_000_000
"""Maximum number of opcodes; a tensor takes about thirty."""

_Function = Callable[..., Any]
_MARK = object()


class Name:
    """A placeholder for a global that a pickle may name; it is immutable."""

    __slots__ = ("call", "text")
    call: _Function | None
    text: str

    def __init__(self, text: str, call: _Function | None = None):
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "call", call)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self.text} is constant")


def load_pickle(
    file: io.BytesIO,
    known: Mapping[tuple[str, str], Name],
    persistent: _Function,
    unknown: Callable[[str, str], Exception],
) -> Any:
    """The value of the next pickle of a file; ValueError says why it is refused.

    The file is left after the pickle. It is in memory: a pickle may claim any size.

    `known` are the globals it may name, {(module, name): placeholder}; `unknown(module,
    name)` is the error for any other. `persistent(id)` returns the object with an id.
    """
    machine = _Machine(known, persistent, unknown)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_STEPS:
            raise ValueError(f"its pickle has more than {MOST_STEPS} opcodes")
        if opcode.name == "STOP":
            return machine.pop()
        step = _STEPS.get(opcode.name)
        if step is None:
            raise ValueError(f"its pickle uses {opcode.name}, which no tensor needs")
        step(machine, argument)
    raise ValueError("its pickle has no end")


class _Machine:
    """The stack and the memo."""

    def __init__(self, names: Any, persistent: _Function, unknown: Any):
        self.names, self.persistent, self.unknown = names, persistent, unknown
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise ValueError("its pickle needs a value that is missing")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise ValueError(f"its pickle needs a {kind.__name__} that is missing")
        return self.stack[-1]

    def to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                found = self.stack[place + 1 :]
                del self.stack[place:]
                return found
        raise ValueError("its pickle has no mark where one is needed")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("its pickle names a global by something other than text")
        if (module, name) not in self.names:
            raise self.unknown(module, name)
        self.push(self.names[module, name])

    def take(self, count: int) -> tuple[Any, ...]:
        return tuple([self.pop() for _ in range(count)][::-1])

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict)
        keys = items[::2]
        # A key made of nested tuples could take forever to hash.
        if len(items) % 2 or not all(type(key) in (str, int) for key in keys):
            raise ValueError("its pickle has a key that is neither text nor an integer")
        target.update(zip(keys, items[1::2]))

    def reduce(self) -> None:
        arguments = self.top(tuple)
        self.pop()
        function = self.pop()
        if type(function) is not Name or function.call is None:
            raise ValueError("its pickle calls something that is not a function")
        try:
            self.push(function.call(*arguments))
        except TypeError:
            text = f"its pickle calls {function.text} with {len(arguments)} arguments"
            raise ValueError(text) from None

    def build(self) -> None:
        self.pop()
        # PyTorch's OrderedDict has attributes (`_metadata`), which are ignored.
        self.top(dict)


def _remember(machine: _Machine, place: int) -> None:
    value = machine.pop()
    machine.memo[place] = value
    machine.push(value)


def _recall(machine: _Machine, place: int) -> None:
    if place not in machine.memo:
        raise ValueError("its pickle reads a memo entry that it never stored")
    machine.push(machine.memo[place])


def _integer(machine: _Machine, value: int) -> None:
    if not -(2**63) <= value < 2**64:
        raise ValueError("its pickle contains an integer of more than 64 bits")
    machine.push(value)


def _extend(machine: _Machine, values: Iterable[Any]) -> None:
    machine.top(list).extend(values)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(machine.take(count))


_PLAIN = (
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING"),  # text of Python 2
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
_STEPS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(_PLAIN, _Machine.push),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4"), _integer),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _recall),
    "MEMOIZE": lambda machine, _: _remember(machine, len(machine.memo)),
    "MARK": _constant(lambda: _MARK),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.to_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.take(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "APPEND": lambda machine, _: _extend(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _extend(machine, machine.to_mark()),
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.take(2)),
    "BINPERSID": lambda machine, _: machine.push(machine.persistent(machine.pop())),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
