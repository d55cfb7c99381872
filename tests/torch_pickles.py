"""Files as `torch.save` writes them, opcode by opcode: a test can lie in one."""

import io
import pickle
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


def storage(
    count: int, key: str = "0", kind: str = "FloatStorage", more: bytes = b""
) -> bytes:
    """`more` is b"N" before PyTorch 1.6."""
    parts = text("storage"), named("torch", kind), text(key), text("cpu")
    return b"(" + b"".join(parts) + integer(count) + more + b"tQ"


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


MAGIC = 0x1950A86A20F9469CFC6C


def write_legacy(path, pickled, storages=(), version=1001, little=True, keys=None):
    """A file before PyTorch 1.6: storages are {key: (count, bytes)}."""
    storages = dict(storages)
    machine = {"protocol_version": version, "little_endian": little}
    parts = [pickle.dumps(value, 2) for value in (MAGIC, version, machine)]
    listed = list(storages) if keys is None else keys
    parts += [pickled, pickle.dumps(listed, 2)]
    for count, data in storages.values():
        parts.append(struct.pack("<q", count) + data)
    path.write_bytes(b"".join(parts))
    return path
