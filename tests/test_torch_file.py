"""`torch.save` files are read without running what they hold."""

import collections
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.torch_file import read_torch
from tests import torch_pickles as pickles

FILES = pathlib.Path(__file__).parent / "fixtures" / "torch"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
SAVED = {
    "plain": BASE,
    "transposed": BASE.T,
    "view": BASE[1:, ::2],
    "scalar": np.array(7.0),
    "parameter": BASE + 1,
    "half": BASE.astype(np.float16),
    "bfloat": BASE,
    "mask": BASE > 3,
}


def write_files(folder):
    """What the fixtures hold; PyTorch 2.13.0 wrote them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    base = torch.arange(24.0).reshape(4, 6)
    saved = collections.OrderedDict(
        plain=base,
        transposed=base.T,
        view=base[1:, ::2],
        scalar=torch.tensor(7),
        parameter=torch.nn.Parameter(base + 1),
        half=base.half(),
        bfloat=base.bfloat16(),
        mask=base > 3,
    )
    torch.save(saved, folder / "tensors.pth")
    torch.save({"w": torch.zeros(1).expand(10**6)}, folder / "overrun.pth")
    legacy = folder / "legacy.pth"
    torch.save({}, legacy, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("writer", ["stored", "installed"])
def test_tensors_come_back_as_torch_saved_them(tmp_path, writer):
    folder = FILES
    if writer == "installed":
        pytest.importorskip("torch")
        write_files(folder := tmp_path)
    found = read_torch(folder / "tensors.pth")
    assert list(found) == list(SAVED)
    for name, want in SAVED.items():
        np.testing.assert_array_equal(found[name].astype(want.dtype), want)
    assert found["half"].dtype == np.float16


class _Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    target, path = tmp_path / "executed", tmp_path / "bad.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad/data.pkl", pickle.dumps({"w": _Attack(target)}, 2))
    with pytest.raises(CheckpointError, match=r"posix\.mkdir.*not run"):
        read_torch(path)
    assert not target.exists()
    with zipfile.ZipFile(path) as archive:  # the attack is real: pickle runs it
        pickle.loads(archive.read("bad/data.pkl"))
    assert target.exists()


def test_files_before_torch_1_6(tmp_path):
    assert read_torch(FILES / "legacy.pth") == {}  # PyTorch 2.13.0 wrote it
    one = pickles.storage(6, "94", more=b"N")
    other = pickles.storage(2, "95", "LongStorage", b"N")
    saved = pickles.state_dict(
        view=pickles.tensor(one, (2, 2), (3, 1), 1),
        whole=pickles.tensor(one, (6,), (1,)),
        count=pickles.tensor(other, (), ()),
    )
    numbers = {
        "95": (2, np.array([7, 8]).tobytes()),
        "94": (6, np.arange(6, dtype="<f4").tobytes()),
    }
    found = read_torch(pickles.write_legacy(tmp_path / "x.pth", saved, numbers))
    assert list(found) == ["view", "whole", "count"]
    np.testing.assert_array_equal(found["view"], [[1, 2], [4, 5]])
    np.testing.assert_array_equal(found["whole"], np.arange(6, dtype=np.float32))
    assert found["count"] == 7
    assert found["count"].dtype == np.int64
    assert not found["whole"].flags.writeable


def test_torch_writes_what_is_read_of_the_old_format(tmp_path):
    torch = pytest.importorskip("torch")
    write_files(tmp_path)
    saved = torch.load(tmp_path / "tensors.pth")
    old = tmp_path / "old.pth"
    torch.save(saved, old, _use_new_zipfile_serialization=False)
    found = read_torch(old)
    for name, want in SAVED.items():
        np.testing.assert_array_equal(found[name].astype(want.dtype), want)


LEGACY = pickles.state_dict(w=pickles.tensor(pickles.storage(6), (6,), (1,)))
SIX = np.arange(6, dtype="<f4").tobytes()
OLD_LIES = {
    "fewer numbers than claimed": ({"storages": {"0": (6, SIX[:-1])}}, "ends after"),
    "another count": ({"storages": {"0": (5, SIX)}}, "has not 6 numbers"),
    "a huge count": ({"storages": {"0": (2**62, SIX)}}, "has not 6 numbers"),
    "a missing storage": ({}, "other storages"),
    "a storage too many": (
        {"storages": {"0": (6, SIX), "1": (6, SIX)}},
        "other storages",
    ),
    "keys that are no text": ({"storages": {"0": (6, SIX)}, "keys": [[]]}, "other"),
    "another version": ({"version": 1000}, "has version 1000"),
    "a big-endian machine": ({"little": False}, "big-endian"),
}


@pytest.mark.parametrize("lie", OLD_LIES)
def test_an_old_file_that_lies_is_refused(tmp_path, lie):
    parts, said = OLD_LIES[lie]
    path = pickles.write_legacy(tmp_path / "x.pth", LEGACY, **parts)
    with pytest.raises((CheckpointError, UsageError), match=said):
        read_torch(path)


def test_an_old_malicious_pickle_is_refused_and_not_run(tmp_path):
    target = tmp_path / "executed"
    attack = pickle.dumps({"w": _Attack(target)}, 2)
    path = pickles.write_legacy(tmp_path / "bad.pth", attack)
    with pytest.raises(CheckpointError, match=r"posix\.mkdir.*not run"):
        read_torch(path)
    assert not target.exists()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_torch(path)


def test_a_tensor_larger_than_its_storage_is_refused():
    with pytest.raises(CheckpointError, match="does not fit its storage"):
        read_torch(FILES / "overrun.pth")


FLOATS = {"0": np.arange(6, dtype="<f4").tobytes()}
STORAGE = pickles.storage(6)
EMPTY = pickles.tensor(STORAGE, (2000, 0), (0, 1))


def _twice(times):
    """A tuple of a tuple of …, each twice: to hash it takes 2^times steps."""
    step = b"q\x00h\x00\x86"
    return b")" + step * times


HOSTILE = {
    "a tensor as storage": pickles.state_dict(w=pickles.tensor(EMPTY, (2000,), (1,))),
    "a tuple as storage": pickles.state_dict(w=pickles.tensor(b")", (1,), (1,))),
    "a string as storage": pickles.state_dict(
        w=pickles.tensor(pickles.text("x"), (1,), (1,))
    ),
    "beyond its storage": pickles.state_dict(w=pickles.tensor(STORAGE, (7,), (1,))),
    "beyond by its offset": pickles.state_dict(
        w=pickles.tensor(STORAGE, (6,), (1,), offset=1)
    ),
    "beyond by its strides": pickles.state_dict(
        w=pickles.tensor(STORAGE, (2, 2), (4, 3))
    ),
    "negative stride": pickles.state_dict(w=pickles.tensor(STORAGE, (2,), (-1,))),
    "negative offset": pickles.state_dict(w=pickles.tensor(STORAGE, (1,), (1,), -1)),
    "strides that wrap around": pickles.state_dict(
        w=pickles.tensor(STORAGE, (2, 2), (2**62, 2**62))
    ),
    "sizes that wrap around": pickles.state_dict(
        w=pickles.tensor(STORAGE, (2**32, 2**32), (0, 0))
    ),
    "an integer of 400 bits": pickles.state_dict(
        w=pickles.tensor(STORAGE, (2**400,), (0,))
    ),
    "65 dimensions": pickles.state_dict(
        w=pickles.tensor(STORAGE, (1,) * 65, (1,) * 65)
    ),
    "huge without numbers": pickles.state_dict(
        w=pickles.tensor(STORAGE, (2**62, 0, 2**62), (0, 0, 0))
    ),
    "fewer strides": pickles.state_dict(w=pickles.tensor(STORAGE, (2, 3), (1,))),
    "a storage of another size": pickles.state_dict(
        w=pickles.tensor(pickles.storage(7), (1,), (1,))
    ),
    "a storage that is not there": pickles.state_dict(
        w=pickles.tensor(pickles.storage(6, "1"), (1,), (1,))
    ),
    "one storage of two types": pickles.state_dict(
        v=pickles.tensor(STORAGE, (1,), (1,)),
        w=pickles.tensor(pickles.storage(3, "0", "DoubleStorage"), (1,), (1,)),
    ),
    "booleans that are none": pickles.state_dict(
        w=pickles.tensor(pickles.storage(24, "0", "BoolStorage"), (24,), (1,))
    ),
    "attributes of a function": pickles.state_dict(
        w=pickles.named("torch._utils", "_rebuild_tensor_v2")
        + b"}"
        + pickles.text("evil")
        + b"\x88sb"
    ),
    "attributes of a tensor": pickles.state_dict(
        w=pickles.tensor(STORAGE, (6,), (1,)) + b"}" + pickles.text("shape") + b")sb"
    ),
    "a key that takes for ever": b"\x80\x02}" + _twice(100) + b"\x88s.",
    "an argument that takes for ever": b"\x80\x02"
    + pickles.named("collections", "OrderedDict")
    + b"]("
    + _twice(100)
    + b"\x88\x86e\x85R.",
    "calls a storage's type": pickles.state_dict(
        w=pickles.named("torch", "FloatStorage") + b")R"
    ),
    "calls a string": pickles.state_dict(w=pickles.text("x") + b")R"),
    "no end": pickles.state_dict()[:-1],
    "no value": b"\x80\x02.",
    "a value from nowhere": b"\x80\x02h\x07.",
    "a string longer than the file": b"\x80\x02X\xff\xff\xff\x7fx.",
    "a copied mark": b"\x80\x02((q\x01h\x01t.",
    "an object by its class": b"\x80\x02"
    + pickles.named("collections", "OrderedDict")
    + b")\x81.",
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_file_that_lies_is_refused(tmp_path, attack):
    path = pickles.write(tmp_path / "x.pth", HOSTILE[attack], FLOATS)
    with pytest.raises(CheckpointError) as error:
        read_torch(path)
    assert str(path) in str(error.value)
    assert error.value.exit_code == 3


def test_no_foreign_memory_is_read_and_the_process_lives(tmp_path):
    """As before, but of 50 million numbers: reading them ends the process."""
    empty = pickles.tensor(STORAGE, (50_000_000, 0), (0, 1))
    attack = pickles.state_dict(w=pickles.tensor(empty, (50_000_000,), (1,)))
    path = pickles.write(tmp_path / "x.pth", attack, FLOATS)
    code = (
        "import sys; from afterimage.checkpoints.torch_file import read_torch\n"
        "from afterimage.checkpoints.errors import CheckpointError\n"
        "try: read_torch(sys.argv[1])\n"
        "except CheckpointError: sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert done.returncode == 3


def test_what_is_unusual_and_true_is_read(tmp_path):
    """An axis of one with any stride, no numbers, shared storages, overlapping rows."""
    saved = pickles.state_dict(
        one=pickles.tensor(STORAGE, (1, 6), (2**62, 1)),
        empty=pickles.tensor(STORAGE, (5, 0), (0, 1)),
        scalar=pickles.tensor(STORAGE, (), (), offset=5),
        rows=pickles.tensor(STORAGE, (2, 3), (2, 1)),
    )
    found = read_torch(pickles.write(tmp_path / "x.pth", saved, FLOATS))
    np.testing.assert_array_equal(found["one"], [[0, 1, 2, 3, 4, 5]])
    assert found["empty"].shape == (5, 0)
    assert found["scalar"] == 5
    np.testing.assert_array_equal(found["rows"], [[0, 1, 2], [2, 3, 4]])
    assert not any(array.flags.writeable for array in found.values() if array.size)


def _deflated(path):
    return pickles.write(path, b"\x80\x02}." + bytes(10**8), {}, zipfile.ZIP_DEFLATED)


def _long_pickle(path):
    return pickles.write(path, b"]" * (17 * 2**20))


def _one_member_many_times(path):
    """Two hundred entries of the directory, one place in the file."""
    pickles.write(path, pickles.state_dict(), {"0": bytes(10**6)})
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", start + 1)
    end = data.index(b"PK\x05\x06")
    names = [b"archive/data/%03d" % n for n in range(200)]
    entry = data[second:end].replace(b"archive/data/0", b"archive/data/%s")
    head = entry[:28] + struct.pack("<H", len(names[0])) + entry[30:46]
    entries = b"".join(head + name for name in names)
    tail = struct.pack("<HHLL", 201, 201, second - start + len(entries), start)
    path.write_bytes(data[:second] + entries + data[end : end + 8] + tail + b"\0\0")
    return path


def _long_directory(path):
    end = b"PK\x05\x06" + bytes(4) + struct.pack("<HHLLH", 9, 9, 20 * 2**20, 0, 0)
    path.write_bytes(bytes(20 * 2**20) + end)
    return path


@pytest.mark.parametrize(
    "make", [_deflated, _long_pickle, _one_member_many_times, _long_directory]
)
def test_no_more_than_the_file_holds_is_read(tmp_path, make):
    path = make(tmp_path / "x.pth")
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            read_torch(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**26
