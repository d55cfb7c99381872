"""A step is saved whole or not at all, and comes back bit by bit."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afterimage.checkpoints import names
from afterimage.checkpoints.errors import CheckpointError, SaveError, UsageError
from afterimage.checkpoints.files import RunLock
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import read_encoder
from tests.manifests import encoder_manifest


def make_state(seed=0):
    params = {
        "encoder": {"conv": {"kernel": jnp.full((3, 3, 2), 1.5 + seed)}},
        "decoder": {"bias": jnp.arange(4, dtype=jnp.bfloat16) + seed},
    }
    flat = {"encoder/conv/kernel": params["encoder"]["conv"]["kernel"]}
    return {
        "step": jnp.int32(7 + seed),
        "params": params,
        "stats": {},
        "opt": optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(flat),
        "ema": jax.tree.map(lambda x: x * 0.5, params),
        "key": jax.random.key_data(jax.random.key(seed)),
        "mask": jnp.array([True, False]),
        "nothing": jnp.zeros((0, 3), jnp.float16),
        "host": np.arange(3, dtype=np.int64),
    }


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_state_comes_back_bit_by_bit(tmp_path):
    state = make_state()
    with Store(tmp_path) as store:
        store.save(7, state, manifest={"config": {"lr": 0.1}}, metric=0.25)
    target = jax.tree.map(
        lambda x: jnp.zeros_like(x) if isinstance(x, jax.Array) else x, state
    )
    step, tree, manifest = Store(tmp_path).restore(target)
    assert step == 7
    assert manifest == {"config": {"lr": 0.1}}
    assert_same(tree, state)
    assert isinstance(tree["host"], np.ndarray)


def test_without_a_target_it_is_nested_dicts_of_numpy(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, {"a": {"b": jnp.ones(2, jnp.bfloat16)}}, manifest={})
        step, tree, _ = store.restore()
    assert step == 1
    assert isinstance(tree["a"]["b"], np.ndarray)
    assert str(tree["a"]["b"].dtype) == "bfloat16"


def test_targets_may_be_abstract_and_decide_the_sharding(tmp_path):
    state = make_state()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        {k: v for k, v in state.items() if k != "host"},
    )
    del state["host"]
    with Store(tmp_path) as store:
        store.save(1, state, manifest={})
        _, tree, _ = store.restore(target)
    assert_same(tree, state)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(tree))


def test_uncommitted_targets_give_uncommitted_arrays(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, {"a": jnp.ones(2)}, manifest={})
        _, tree, _ = store.restore({"a": jnp.zeros(2)})
    assert not tree["a"].committed


def test_arrays_may_be_donated_right_after_save_returns(tmp_path):
    """Saved values are those at the call, though the buffers are reused at once."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree))
    donate = jax.jit(
        lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0
    )
    state = {f"w{i}": jnp.full((256, 256), float(i)) for i in range(20)}
    host = {"h": np.arange(1000.0)}
    want = {key: np.array(value) for key, value in (state | host).items()}
    jax.block_until_ready(overwrite(state))
    with Store(tmp_path) as store:
        artefact = ({"h": host["h"]}, {}, encoder_manifest())
        store.save(1, state | host, manifest={}, encoder=artefact)
        state = donate(state)
        host["h"][:] = -1
        jax.block_until_ready(state)
        store.wait()
        _, tree, _ = store.restore()
    for key, value in want.items():
        np.testing.assert_array_equal(tree[key], value, err_msg=key)
    params, _, _ = read_encoder(tmp_path)
    np.testing.assert_array_equal(params["h"], want["h"])


def test_a_wrong_target_is_refused_with_every_difference(tmp_path):
    with Store(tmp_path) as store:
        tree = {"a": jnp.ones((2, 3)), "b": jnp.int32(1), "c": jnp.ones(2)}
        store.save(1, tree, manifest={})
        target = {"a": jnp.ones((3, 2)), "b": jnp.float32(1), "d": jnp.ones(2)}
        with pytest.raises(CheckpointError) as error:
            store.restore(target)
    text = str(error.value)
    assert "4 differences" in text
    assert "a: saved float32 [2, 3], target float32 [3, 2]" in text
    assert "b: saved int32 [], target float32 []" in text
    assert "c: saved, but not in the target" in text
    assert "d: in the target, but not saved" in text


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (3, "int; make it an array"),
        (jax.random.key(0), "random.key_data"),
        (np.array(["x"]), "only numbers"),
    ],
    ids=["python number", "typed key", "strings"],
)
def test_what_is_no_array_is_refused_by_path(tmp_path, leaf, text):
    with pytest.raises(TypeError, match=text) as error:
        Store(tmp_path).save(1, {"deep": {"leaf": leaf}}, manifest={})
    assert "deep/leaf" in str(error.value)
    assert Store(tmp_path).steps() == []


def test_leaves_that_share_a_path_are_refused(tmp_path):
    with pytest.raises(ValueError, match="share a path"):
        Store(tmp_path).save(
            1, {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, manifest={}
        )


def test_a_manifest_that_is_not_json_is_refused_at_once(tmp_path):
    with pytest.raises(TypeError, match="must be JSON"):
        Store(tmp_path).save(1, {"a": jnp.ones(1)}, manifest={"x": float("nan")})


@pytest.mark.parametrize(
    ("best", "kept"), [(None, [5, 6]), ("min", [2, 5, 6]), ("max", [1, 5, 6])]
)
def test_retention_keeps_the_last_and_the_best(tmp_path, best, kept):
    with Store(tmp_path, keep_last=2, keep_best=1, best=best) as store:
        for step, metric in enumerate([9.0, 1.0, 3.0, float("nan"), 4.0, 5.0], 1):
            store.save(step, {"a": jnp.int32(step)}, manifest={}, metric=metric)
    assert store.steps() == kept


def test_the_step_just_written_is_never_deleted(tmp_path):
    """After a fallback the newest number may be the damaged one."""
    with Store(tmp_path, keep_last=1) as store:
        store.save(9, {"a": jnp.int32(9)}, manifest={})
        store.save(5, {"a": jnp.int32(5)}, manifest={})
    assert store.steps() == [5, 9]


def test_a_step_is_replaced_only_when_the_new_one_is_complete(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, {"a": jnp.int32(1)}, manifest={})
        store.save(1, {"a": jnp.int32(2)}, manifest={})
        assert store.restore()[1] == {"a": np.int32(2)}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_no_checkpoint_is_an_error_that_says_where(tmp_path):
    with pytest.raises(CheckpointError, match="no good checkpoint in"):
        Store(tmp_path).restore()


def test_a_chosen_step_is_restored(tmp_path):
    with Store(tmp_path) as store:
        for step in (1, 2, 3):
            store.save(step, {"a": jnp.int32(step)}, manifest={"n": step})
        assert store.restore(step=2) == (2, {"a": np.int32(2)}, {"n": 2})
        with pytest.raises(CheckpointError, match="step 7"):
            store.restore(step=7)


def test_leftovers_are_cleaned_only_under_the_lock_and_only_ours(tmp_path):
    place = tmp_path / "checkpoints"
    for name in (".3.partial-999999", ".4.replaced-999999", ".mine", "notes"):
        (place / name).mkdir(parents=True)
    Store(tmp_path)
    assert len(list(place.iterdir())) == 4
    with RunLock(tmp_path):
        Store(tmp_path)
    assert sorted(p.name for p in place.iterdir()) == [".mine", "notes"]


def test_a_whole_step_killed_before_its_rename_is_recovered(tmp_path):
    with Store(tmp_path) as store:
        store.save(3, {"a": jnp.int32(3)}, manifest={})
    place = tmp_path / "checkpoints"
    (place / "3").rename(place / ".3.partial-999999")
    with RunLock(tmp_path):
        assert Store(tmp_path).steps() == [3]


def test_saving_where_a_foreign_folder_stands_moves_it_aside(tmp_path):
    foreign = tmp_path / "checkpoints" / "3"
    foreign.mkdir(parents=True)
    (foreign / "thesis.txt").write_text("mine")
    said = []
    with Store(tmp_path, warn=said.append) as store:
        store.save(3, {"a": jnp.int32(3)}, manifest={})
    assert store.steps() == [3]
    aside = tmp_path / "checkpoints" / "3.set-aside-1" / "thesis.txt"
    assert aside.read_text() == "mine"
    assert len(said) == 1
    assert "3.set-aside-1" in said[0]


def test_bad_retention_is_refused(tmp_path):
    with pytest.raises(UsageError, match="keep_last"):
        Store(tmp_path, keep_last=0)


def test_the_store_accepts_the_checkpoints_folder_itself(tmp_path):
    assert Store(tmp_path / "checkpoints").folder == Store(tmp_path).folder


@pytest.mark.parametrize("name", ["a\\b", "lr[0.1]", "caf\udce9", "[x]/run"])
def test_a_folder_whose_name_would_lose_the_arrays_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="choose another") as caught:
        Store(tmp_path / name)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


ODD = [
    "a b",
    "C:x",
    "a%20b",
    "a?b",
    "a#b",
    "a*b",
    "a]b",
    "{a}",
    "zo\u0308e",
    "a=b,c",
    "~x",
]


def test_any_other_name_of_a_folder_does(tmp_path):
    for name in ODD:
        Store(tmp_path / name).save(1, {"w": np.ones(2)}, manifest={}, wait=True)
        assert Store(tmp_path / name).restore()[1]["w"].tolist() == [1, 1]
    assert len(list(tmp_path.iterdir())) == len(ODD)


def test_a_step_whose_arrays_are_not_there_gets_no_name(tmp_path, monkeypatch):
    """Orbax warns and goes on where it does not find its own files."""
    monkeypatch.setattr(names, "unfit_for_arrays", lambda path: None)
    store = Store(tmp_path / "[x]")
    with pytest.raises(SaveError, match="no arrays"):
        store.save(1, {"w": np.ones(2)}, manifest={}, wait=True)
    assert store.steps() == []


@pytest.mark.parametrize("link", ["elsewhere", "nowhere"])
def test_a_link_in_the_place_of_a_step_is_replaced_alone(tmp_path, link):
    store = Store(tmp_path / "run")
    store.save(1, {"w": np.ones(2)}, manifest={}, wait=True)
    store.folder.joinpath("1").rename(tmp_path / "elsewhere")
    store.folder.joinpath("1").symlink_to(tmp_path / link)
    store.save(1, {"w": np.zeros(2)}, manifest={}, wait=True)
    assert store.restore()[1]["w"].tolist() == [0, 0]
    assert not store.folder.joinpath("1").is_symlink()
    assert (tmp_path / "elsewhere" / "manifest.json").is_file()


@pytest.mark.parametrize("jump", [86_400, -86_400])
def test_a_clock_that_is_put_right_during_a_save_does_not_end_it(
    tmp_path, monkeypatch, jump
):
    """Orbax measures its limits by the wall clock; so a laptop sleeps and wakes."""
    real, looks = time.time, []

    def jumping():
        looks.append(jump)
        return real() + sum(looks)

    monkeypatch.setattr(time, "time", jumping)
    Store(tmp_path).save(1, {"w": np.ones(2)}, manifest={}, wait=True)
    assert len(looks) > 2
    assert Store(tmp_path).restore()[0] == 1
