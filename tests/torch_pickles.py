"""Files as `torch.save` writes them, opcode by opcode: a test can lie in one."""

import io
import struct
import zipfile


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def integers(values) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    parts = text("storage"), named("torch", kind), text(key), text("cpu")
    return b"(" + b"".join(parts) + integer(count) + b"tQ"


def tensor(of: bytes, size, stride, offset: int = 0) -> bytes:
    """A tensor over the storage (or whatever it is) that `of` pushes."""
    return b"".join(
        [
            named("torch._utils", "_rebuild_tensor_v2") + b"(" + of + integer(offset),
            integers(size) + integers(stride) + b"\x89",
            named("collections", "OrderedDict") + b")RtR",
        ]
    )


def state_dict(**values: bytes) -> bytes:
    items = b"".join(text(name) + value for name, value in values.items())
    return b"\x80\x02}(" + items + b"u."


def encode(pickled: bytes, storages=None, compression=zipfile.ZIP_STORED) -> bytes:
    """A file with this pickle, and {key: bytes} of its storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def write(path, *contents):
    """`encode` into a file."""
    path.write_bytes(encode(*contents))
    return path
