"""`torch.save` files are read without running what they hold."""

import collections
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from checkpoints.errors import CheckpointError, UsageError
from checkpoints.torch_file import read_torch

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


def test_the_legacy_format_is_refused():
    with pytest.raises(UsageError, match=r"PyTorch 1\.6"):
        read_torch(FILES / "legacy.pth")


def test_a_tensor_larger_than_its_storage_is_refused():
    with pytest.raises(CheckpointError, match="does not fit its storage"):
        read_torch(FILES / "overrun.pth")
