"""What the `checkpoints` commands list, show, verify and prune."""

import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints import inspect
from afterimage.checkpoints.errors import CheckpointError, RunLocked, UsageError
from afterimage.checkpoints.files import RunLock
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import write_encoder
from tests.manifests import encoder_manifest


@pytest.fixture
def run(tmp_path):
    """Steps 1, 2, 3 with 2 the best, and an encoder."""
    params = {"stem": {"kernel": np.ones((2, 3), np.float32)}}
    with Store(tmp_path, best="min") as store:
        for step, metric in ((1, 3.0), (2, 1.0), (3, 2.0)):
            tree = {"params": {"w": jnp.ones((4, 2))}, "step": jnp.int32(step)}
            artefact = (params, {}, encoder_manifest())
            store.save(
                step, tree, manifest={"lr": 0.1}, metric=metric, encoder=artefact
            )
    write_encoder(tmp_path / "encoder", params, {}, encoder_manifest())
    return tmp_path


def break_file(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def some_state_file(run, step):
    folder = run / "checkpoints" / str(step) / "state"
    return max(folder.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)


def test_list_marks_last_and_best(run):
    rows = inspect.list_steps(run)
    assert [row.step for row in rows] == [1, 2, 3]
    assert [row.step for row in rows if row.last] == [3]
    assert [row.step for row in rows if row.best] == [2]
    assert {row.status for row in rows} == {"complete"}
    assert all(row.size > 500 and row.created for row in rows)
    text = inspect.format_list(rows)
    assert len(text.splitlines()) == 4
    assert "last" in text
    assert "best" in text


def test_list_names_what_is_no_checkpoint(run):
    (run / "checkpoints" / "4").mkdir()
    some_state_file(run, 3).write_bytes(b"")
    rows = inspect.list_steps(run)
    assert rows[-1].status == "foreign: is empty"
    assert rows[-2].status.startswith("damaged: ")
    assert [row.step for row in rows if row.last] == [2]


def test_verify_is_silent_about_a_good_run(run):
    assert inspect.verify(run) == []
    assert "No problems" in inspect.format_verify([])


@pytest.mark.parametrize("where", [".", "checkpoints", "checkpoints/2"])
def test_verify_names_damaged_missing_and_extra_files(run, where):
    damaged = some_state_file(run, 2)
    break_file(damaged)
    missing = run / "checkpoints/2/encoder/weights.safetensors"
    missing.unlink()
    extra = run / "checkpoints/2/state/.DS_Store"
    extra.write_text("")
    found = {(f.path, f.kind, f.fatal) for f in inspect.verify(run / where)}
    assert (str(damaged), "damaged", True) in found
    assert (str(missing), "missing", True) in found
    assert (str(extra), "extra", False) in found
    assert len({path for path, *_ in found}) == 3


def test_verify_takes_an_encoder_folder(run):
    assert inspect.verify(run / "encoder") == []
    break_file(run / "encoder" / "manifest.json", 30)
    (finding,) = inspect.verify(run / "encoder")
    assert finding.kind == "damaged"
    assert "manifest.json" in finding.path


def test_an_interrupted_save_is_mentioned_and_harmless(run):
    (run / "checkpoints" / ".9.partial-123").mkdir()
    (finding,) = inspect.verify(run)
    assert not finding.fatal


@pytest.mark.parametrize(
    "command", [inspect.verify, inspect.list_steps, inspect.show, inspect.prune]
)
@pytest.mark.parametrize("name", ["absent", "."])
def test_nothing_there_is_bad_input(tmp_path, command, name):
    with pytest.raises(UsageError) as error:
        command(tmp_path / name)
    assert error.value.exit_code == 2


def test_show_counts_the_leaves(run):
    shown = inspect.show(run)
    assert shown.manifest["step"] == 3
    assert shown.leaves["params/w"] == {"shape": [4, 2], "dtype": "float32"}
    assert shown.count == 9
    text = inspect.format_show(shown)
    assert "params/w  float32  [4, 2]" in text
    assert "manifest: {'lr': 0.1}" in text


def test_show_takes_a_step_or_an_encoder(run):
    assert inspect.show(run, 1).manifest["step"] == 1
    assert inspect.show(run / "checkpoints" / "2").manifest["step"] == 2
    shown = inspect.show(run / "encoder")
    assert shown.leaves == {"params/stem/kernel": {"shape": [2, 3], "dtype": "float32"}}
    with pytest.raises(UsageError, match="step 8"):
        inspect.show(run, 8)


def test_show_refuses_a_damaged_manifest(run):
    break_file(run / "checkpoints" / "3" / "manifest.json", 40)
    with pytest.raises(CheckpointError, match="damaged"):
        inspect.show(run)


def test_prune_keeps_the_last_and_the_best(run):
    dry = inspect.prune(run, 1, 1, dry_run=True)
    assert (dry.kept, dry.deleted) == ([2, 3], [1])
    assert dry.freed > 500
    assert [row.step for row in inspect.list_steps(run)] == [1, 2, 3]
    result = inspect.prune(run, 1, 1)
    assert (result.kept, result.deleted) == ([2, 3], [1])
    assert [row.step for row in inspect.list_steps(run)] == [2, 3]
    assert "deleted: 1" in inspect.format_prune(result)


def test_prune_counts_only_good_steps(run):
    """The newest is damaged: the newest good one must stay."""
    break_file(some_state_file(run, 3))
    result = inspect.prune(run, 1, 0)
    assert (result.kept, result.deleted, result.untouched) == ([2], [1], [3])
    assert "unchanged" in inspect.format_prune(result)


def test_prune_waits_for_no_writer(run):
    with RunLock(run):
        # As another process would see it: this one's registry does not know the lock.
        inspect.files._held.clear()
        with pytest.raises(RunLocked):
            inspect.prune(run)


def test_prune_never_keeps_nothing(run):
    with pytest.raises(UsageError, match="keep_last"):
        inspect.prune(run, 0)


def test_prune_does_not_touch_a_link_that_leads_elsewhere(run, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "1"
    (run / "checkpoints" / "1").rename(elsewhere)
    (run / "checkpoints" / "1").symlink_to(elsewhere)
    result = inspect.prune(run, keep_best=0)
    assert (result.kept, result.deleted, result.untouched) == ([3], [2], [1])
    assert inspect.verify(elsewhere) == []


def test_of_a_link_to_a_step_beside_it_the_link_is_deleted(run):
    steps = run / "checkpoints"
    (steps / "2").rename(steps / "4")
    (steps / "2").symlink_to("4")
    assert inspect.prune(run, keep_best=0).deleted == [1, 2, 3]
    assert [path.name for path in steps.iterdir()] == ["4"]
    assert inspect.verify(run) == []
