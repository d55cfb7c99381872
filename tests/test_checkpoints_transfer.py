"""Weights by path: every leaf is accounted for, and nothing unexpected passes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints.errors import TransferError, UsageError
from afterimage.checkpoints.trees import transfer

SOURCE = {
    "encoder": {"stem": {"kernel": np.ones((3, 3)), "bias": np.full(3, 2.0)}},
    "decoder": {"out": np.ones(4)},
}


def make_target():
    return {
        "encoder": {"stem": {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}},
        "heads": {"main": {"kernel": jnp.full((3, 2), 7.0)}},
    }


def test_everything_is_accounted_for():
    tree, report = transfer(SOURCE, make_target(), may_differ=("^heads/", "^decoder/"))
    np.testing.assert_array_equal(tree["encoder"]["stem"]["bias"], np.full(3, 2.0))
    np.testing.assert_array_equal(tree["heads"]["main"]["kernel"], np.full((3, 2), 7.0))
    assert "decoder" not in tree
    assert {row.path: row.status for row in report.rows} == {
        "decoder/out": "ignored",
        "encoder/stem/bias": "loaded",
        "encoder/stem/kernel": "loaded",
        "heads/main/kernel": "re-initialised",
    }
    totals = json.loads(json.dumps(report.to_dict()))["totals"]
    assert totals["loaded"] == {"leaves": 2, "parameters": 12}
    assert totals["ignored"] == {"leaves": 1, "parameters": 4}
    text = str(report)
    assert "loaded: 2 leaves, 12 parameters" in text
    assert "heads/main/kernel" in text


def test_dtype_and_kind_of_array_are_the_targets():
    target = {"a": jnp.zeros(2, jnp.bfloat16), "b": np.zeros(2, np.float32)}
    tree, report = transfer({"a": np.ones(2), "b": jnp.ones(2)}, target)
    assert isinstance(tree["a"], jax.Array)
    assert tree["a"].dtype == jnp.bfloat16
    assert isinstance(tree["b"], np.ndarray)
    assert "float64 [2] -> bfloat16 [2]" in str(report)


def test_the_source_survives_a_change_of_the_result():
    source = {"a": np.ones(2, np.float32)}
    tree, _ = transfer(source, {"a": np.zeros(2, np.float32)})
    tree["a"][:] = 5
    np.testing.assert_array_equal(source["a"], [1, 1])


def test_all_that_is_unexpected_is_one_error():
    target = {"encoder": {"stem": {"kernel": jnp.zeros((5, 5)), "gain": jnp.ones(3)}}}
    with pytest.raises(TransferError) as error:
        transfer(SOURCE, target)
    text = str(error.value)
    assert "4 leaves do not match" in text
    assert "source float64 [3, 3], target float32 [5, 5]" in text
    for path in ("stem/kernel", "stem/gain", "stem/bias", "decoder/out"):
        assert path in text
    assert len(error.value.report.unexpected) == 4


def test_integers_do_not_become_floats():
    with pytest.raises(
        TransferError, match=r"source int64 \[2\], target float32 \[2\]"
    ):
        transfer({"a": np.ones(2, np.int64)}, {"a": jnp.ones(2)})


def test_a_mismatch_that_may_differ_keeps_the_target():
    tree, report = transfer({"a": np.ones(3)}, {"a": jnp.zeros(2)}, may_differ=("^a$",))
    np.testing.assert_array_equal(tree["a"], np.zeros(2))
    assert report.rows[0].status == "mismatched"


def test_renaming_in_order_with_groups():
    source = {"backbone": {"layer1": np.ones(2), "layer2": np.ones(3)}}
    target = {"encoder": {"stages": {"1": jnp.zeros(2), "2": jnp.zeros(3)}}}
    tree, report = transfer(
        source,
        target,
        rename=((r"^backbone/", "encoder/"), (r"layer(\d)", r"stages/\1")),
    )
    np.testing.assert_array_equal(tree["encoder"]["stages"]["2"], np.ones(3))
    assert "(was backbone/layer1)" in str(report)


def test_rules_that_do_nothing_or_collide_are_all_named():
    with pytest.raises(UsageError) as error:
        transfer(
            {"a": np.ones(1), "b": np.ones(1)}, {}, rename=(("^b$", "a"), ("x", "y"))
        )
    assert "'x' -> 'y' matches no path" in str(error.value)
    assert "a and b both become a" in str(error.value)


def test_integer_keys_and_empty_dicts_stay():
    target = {"layers": {0: jnp.zeros(1)}, "stats": {}}
    tree, _ = transfer({"layers": {"0": np.ones(1)}}, target)
    assert tree["stats"] == {}
    np.testing.assert_array_equal(tree["layers"][0], [1])
