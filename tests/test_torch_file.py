"""`torch.save` files are read without running what they hold."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest

from checkpoints.errors import CheckpointError, UsageError
from checkpoints.torch_file import read_torch

torch = pytest.importorskip("torch")


def test_tensors_come_back_as_torch_saved_them(tmp_path):
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
    torch.save(saved, tmp_path / "x.pth")
    found = read_torch(tmp_path / "x.pth")
    assert list(found) == list(saved)
    for name, tensor in saved.items():
        want = tensor.detach()
        want = want.float() if name == "bfloat" else want
        got = found[name].astype(np.float32) if name == "bfloat" else found[name]
        np.testing.assert_array_equal(got, want.numpy())


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


def test_the_legacy_format_is_refused(tmp_path):
    torch.save({}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match=r"PyTorch 1\.6"):
        read_torch(tmp_path / "x.pth")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1).expand(10**6)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="does not fit its storage"):
        read_torch(tmp_path / "x.pth")
