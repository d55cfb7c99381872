"""Whatever happened to the newest checkpoint: named, and the one before is used."""

import os
import pickle
import random
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints.errors import CheckpointError, RunLocked
from afterimage.checkpoints.files import RunLock
from afterimage.checkpoints.store import Store
from tests.manifests import encoder_manifest


def tree_of(step):
    rng = np.random.default_rng(step)
    return {
        "params": {"w": jnp.asarray(rng.normal(size=(17, 5)), jnp.float32)},
        "opt": {"m": jnp.asarray(rng.normal(size=64), jnp.bfloat16)},
        "step": jnp.int32(step),
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run with good steps 1 and 2, never changed."""
    folder = tmp_path_factory.mktemp("original")
    with Store(folder) as store:
        for step in (1, 2):
            encoder = (tree_of(step)["params"], {}, encoder_manifest(step=step))
            store.save(step, tree_of(step), manifest={"step": step}, encoder=encoder)
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def newest_files(run):
    folder = run / "checkpoints" / "2"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def restored(run):
    """(step, what was said); asserts that what is restored is what was saved."""
    said = []
    step, tree, manifest = Store(run, warn=said.append).restore(tree_of(0))
    assert manifest == {"step": step}
    want = tree_of(step)
    for part, name in (("params", "w"), ("opt", "m")):
        have = np.asarray(tree[part][name]).tobytes()
        assert have == np.asarray(want[part][name]).tobytes(), "silently wrong"
    assert int(tree["step"]) == step
    return step, said


def flip_bits(run, count, seed):
    """Flip `count` bits, one at a time, over all files; how often it fell back."""
    rng = random.Random(seed)
    paths = [path for path in newest_files(run) if path.stat().st_size]
    fell_back = 0
    for n in range(count):
        path = paths[n % len(paths)]
        before = path.read_bytes()
        data = bytearray(before)
        position = rng.randrange(len(data))
        data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        step, said = restored(run)
        if step == 1:
            fell_back += 1
            assert any(path.name in line for line in said), said
        else:
            # Blank space between the manifest's words may change unharmed.
            assert path.name == "manifest.json"
            assert before[position : position + 1].isspace()
        path.write_bytes(before)
    assert restored(run) == (2, [])
    return fell_back


def test_no_flipped_bit_is_restored(run):
    assert flip_bits(run, 60, seed=1) >= 50


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_flipped_bit_is_restored_in_two_thousand(run):
    assert flip_bits(run, 2000, seed=2) >= 1900


def _zero(path):
    path.write_bytes(b"\0" * path.stat().st_size)


def _longer(path):
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, 0),
        _zero,
        _longer,
        os.remove,
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    ],
    ids=["half", "empty", "zeros", "longer", "gone", "pickle"],
)
def test_a_harmed_file_is_named_and_the_step_before_is_used(run, harm):
    for path in newest_files(run):
        before = path.read_bytes()
        if not before and harm is not os.remove:
            continue
        harm(path)
        step, said = restored(run)
        assert step == 1, path
        assert "checkpoints/2" in said[0]
        path.write_bytes(before)


def _no_manifest(folder):
    (folder / "manifest.json").unlink()


def _emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def _foreign(folder):
    _emptied(folder)
    (folder / "model.pt").write_bytes(b"PK")


def _bomb(folder):
    _emptied(folder)
    for name in ("manifest.json", "state", "weights.safetensors"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (_no_manifest, "half-written"),
        (_emptied, "foreign"),
        (_foreign, "foreign"),
        (_bomb, "damaged"),
    ],
)
def test_a_newest_step_that_is_none_is_named_and_passed_over(
    run, monkeypatch, tmp_path, harm, kind
):
    monkeypatch.chdir(tmp_path)
    harm(run / "checkpoints" / "2")
    store = Store(run, warn=lambda _: None)
    assert store.restore()[0] == 1
    assert [finding.kind for finding in store.findings] == [kind]
    assert not (tmp_path / "executed").exists(), "a pickle was executed"


def test_an_empty_step_folder_does_not_stop_a_later_save(run):
    (run / "checkpoints" / "9").mkdir()
    with Store(run) as store:
        assert store.steps() == [1, 2]
        store.save(9, tree_of(9), manifest={"step": 9})
    assert restored(run)[0] == 9


def test_an_extra_file_is_named_and_harms_nothing(run):
    (run / "checkpoints" / "2" / ".DS_Store").write_text("")
    step, said = restored(run)
    assert step == 2
    assert ".DS_Store" in said[0]


def test_when_none_is_good_all_are_named_with_reasons(run):
    _no_manifest(run / "checkpoints" / "1")
    os.truncate(newest_files(run)[-1], 1)
    (run / "checkpoints" / "3").mkdir()
    with pytest.raises(CheckpointError) as error:
        Store(run, warn=lambda _: None).restore()
    text = str(error.value)
    assert error.value.exit_code == 3
    for step, reason in ((1, "half-written"), (2, "damaged"), (3, "is empty")):
        lines = [line for line in text.splitlines() if f"checkpoints/{step}" in line]
        assert len(lines) == 1
        assert reason in lines[0]


def test_a_misfit_is_no_reason_to_fall_back(run):
    """A good checkpoint of another network: refused, not silently replaced."""
    target = tree_of(0) | {"step": jnp.float32(0)}
    with pytest.raises(
        CheckpointError, match=r"step: saved int32 \[\], target float32"
    ):
        Store(run).restore(target)


def test_a_second_writer_is_refused(run):
    with RunLock(run), pytest.raises(RunLocked):
        RunLock(run).acquire()
