"""PyTorch's `torch.save` files (`.pth`, `.pt`, `.bin`), read without running them.

Such a file is an uncompressed zip archive of `data.pkl`, which describes tensors, and
`data/KEY`, their bytes. Python's own unpickler calls what a pickle names, sets
attributes, and hashes what it is given. Here a pickle can only make dictionaries,
lists, tuples, strings, numbers and tensors; any other name is refused before it is
looked up. Format: torch/serialization.py, `_save` and `_load`; torch/_utils.py,
`_rebuild_tensor_v2`. Opcodes: `pickletools` in the standard library.
"""

import dataclasses
import io
import math
import os
import pathlib
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from afterimage.checkpoints import files, names
from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.schemas import wrong_shape
from afterimage.checkpoints.weights import from_bytes

_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype(np.bool_),
}

_MOST_DIRECTORY = 16 * 2**20  # bytes; torch.save takes about 130 per tensor


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """The numbers of one storage; only `persistent` makes one, a pickle cannot."""

    array: np.ndarray


def read_torch(path: str | os.PathLike[str]) -> Any:
    """What `torch.save` wrote: dictionaries, lists and numbers, tensors as arrays.

    Arrays are read-only and may share memory, as the tensors did: together they take no
    more memory than the file's size.

    Raises UsageError for the format before PyTorch 1.6 and for anything that is not a
    PyTorch file; CheckpointError for a pickle with anything but tensors and plain
    values, and for a file that contradicts itself.
    """
    path = pathlib.Path(path)
    try:
        with files.open_regular(path) as file:
            if not zipfile.is_zipfile(file):
                raise UsageError(
                    f"{path} is not a zip archive, the format of torch.save since "
                    "PyTorch 1.6. If the file is older and you trust it, load it in "
                    "PyTorch and save it again, or save it as .safetensors."
                )
            _require_small_directory(file)
            with zipfile.ZipFile(file) as archive:
                return _read(archive, path, os.fstat(file.fileno()).st_size)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file can fail in any way
        text = files.reason(error) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {text[:300]}.") from error


def _require_small_directory(file: BinaryIO) -> None:
    """Limit the size of the zip directory, at the end of the file, before reading it.

    Fields: APPNOTE.TXT of PKWARE, 4.3.14 to 4.3.16.
    """
    file.seek(-22, os.SEEK_END)
    end = file.read(22)
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise ValueError("it has bytes after its end")
    size = struct.unpack("<L", end[12:16])[0]
    file.seek(-min(98, file.seek(0, os.SEEK_END)), os.SEEK_END)
    more = file.read(76)
    if more[56:60] == b"PK\x06\x07":  # zip64: its own record, before the locator
        size = struct.unpack("<Q", more[40:48])[0]
    if size > _MOST_DIRECTORY:
        raise ValueError(f"its list of members has {size} bytes")


def _read(archive: zipfile.ZipFile, path: pathlib.Path, size: int) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    pickled = [name for name in members if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise UsageError(f"{path} is a zip archive, but torch.save did not write it.")
    if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
        raise ValueError("its members are compressed, which torch.save never does")
    if sum(info.file_size for info in archive.infolist()) > size:
        raise ValueError(f"its members claim more than its own {size} bytes")
    root = pickled[0].removesuffix("data.pkl")
    order = root + "byteorder"
    if order in members and archive.read(order) != b"little":
        raise UsageError(
            f"{path} was written on a big-endian machine; save it "
            "again on a little-endian one."
        )
    return _Reader(archive, root, str(path)).load(archive.read(pickled[0]))


class _Reader:
    """The functions that a pickle of tensors may call, over one archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str, what: str):
        self._archive, self._root, self._what = archive, root, what
        self._storages: dict[str, tuple[str, _Storage]] = {}
        self._kinds = {Name(name): name for name in _STORAGES}

    def load(self, data: bytes) -> Any:
        """The value that the pickle describes."""
        names = {("torch", name): mark for mark, name in self._kinds.items()}
        for module, name, function in (
            ("collections", "OrderedDict", _new_dict),
            ("torch._utils", "_rebuild_tensor_v2", self._tensor),
            ("torch._utils", "_rebuild_parameter", self._parameter),
        ):
            names[module, name] = Name(name, function)
        return _load_pickle(data, names, self._storage, self._unknown)

    def _unknown(self, module: str, name: str) -> CheckpointError:
        return CheckpointError(
            f"{self._what} contains {names.shown(f'{module}.{name}')}, but only "
            "tensors in plain dictionaries are read, as anything else may run code "
            "when opened. It was not run. Save only the state_dict, or save it as "
            ".safetensors."
        )

    def _storage(self, pid: Any) -> _Storage:
        if type(pid) is not tuple or len(pid) != 5 or type(pid[2]) is not str:
            raise ValueError("it does not name a storage as torch.save does")
        _, mark, key, _, count = pid
        kind = self._kinds.get(mark) if type(mark) is Name else None
        if kind is None or type(count) is not int:
            raise ValueError(f"storage {names.shown(key)} has no type or no size")
        if key not in self._storages:
            data = self._archive.read(f"{self._root}data/{key}")
            array = from_bytes(data, _STORAGES[kind])
            self._storages[key] = kind, _Storage(array)
        known, storage = self._storages[key]
        if known != kind or storage.array.size != count:
            raise CheckpointError(
                f"{self._what}: storage {names.shown(key)} has {storage.array.size} "
                f"numbers of {known}, not {count} of {kind}."
            )
        return storage

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any):
        if type(storage) is not _Storage:
            raise ValueError("a tensor's storage is not a storage")
        if type(size) is not tuple or type(stride) is not tuple:
            raise ValueError("a tensor has no shape or no strides")
        if wrong := wrong_shape(size):
            raise ValueError(f"a tensor is impossible: {wrong}")
        if any(type(step) is not int or step < 0 for step in (offset, *stride)):
            raise ValueError("offset and strides must be non-negative integers")
        if len(size) != len(stride):
            raise ValueError(f"{len(stride)} strides for {len(size)} dimensions")
        held = storage.array.size
        empty = 0 in size
        # Python integers: products cannot overflow.
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if offset > held or (not empty and (math.prod(size) > held or last >= held)):
            raise CheckpointError(
                f"{self._what}: a tensor of shape {size}, strides {stride}, does not "
                f"fit its storage of {held} numbers."
            )
        if empty:
            return np.empty(size, storage.array.dtype)
        # The stride of an axis of length one is never used, and may be anything.
        each = storage.array.itemsize
        steps = [step * each if n > 1 else 0 for n, step in zip(size, stride)]
        return np.lib.stride_tricks.as_strided(
            storage.array[offset : last + 1], size, steps, writeable=False
        )

    def _parameter(self, data: Any, *_: Any) -> np.ndarray:
        if type(data) is not np.ndarray:
            raise ValueError("a parameter's data is not a tensor")
        return data


def _new_dict() -> dict[Any, Any]:
    """Replaces `OrderedDict()`, which torch.save fills afterwards.

    Not `dict`: it would hash an argument, and a hostile one takes forever to hash.
    """
    return {}


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


def _load_pickle(
    data: bytes,
    known: Mapping[tuple[str, str], Name],
    persistent: _Function,
    unknown: Callable[[str, str], Exception],
) -> Any:
    """The value a pickle describes; ValueError says why it is refused.

    `known` are the globals it may name, {(module, name): placeholder}; `unknown(module,
    name)` is the error for any other. `persistent(id)` returns the object with an id.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"its pickle has {len(data)} bytes, more than {MOST_BYTES}")
    machine = _Machine(known, persistent, unknown)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
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
