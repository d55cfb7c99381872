"""Groups: ordered, complete, and a frozen one costs nothing."""

import jax.numpy as jnp
import pytest

from afterimage.errors import UserError
from afterimage.training.optimiser import Group, count_parameters, split_groups

PARAMS = {
    "encoder": {
        "stem": {"kernel": jnp.ones((3, 3, 1, 4)), "bias": jnp.zeros(4)},
        "stages": {"0": {"conv": {"kernel": jnp.ones((3, 3, 4, 4))}}},
    },
    "heads": {"label": {"kernel": jnp.ones((4, 2))}},
}


def test_the_first_match_wins_and_all_are_covered():
    groups = (Group("head", "^heads/"), Group("stem", "stem"), Group("rest", ".*"))
    part = split_groups(PARAMS, groups)
    assert part.of == {
        "encoder/stages/0/conv/kernel": "rest",
        "encoder/stem/bias": "stem",
        "encoder/stem/kernel": "stem",
        "heads/label/kernel": "head",
    }


def test_split_and_merge_are_inverse():
    groups = (Group("head", "^heads/"), Group("encoder", ".*", freeze=True))
    part = split_groups(PARAMS, groups)
    trainable, frozen = part.split(PARAMS)
    assert set(trainable) == {"heads/label/kernel"}
    merged = part.merge(trainable, frozen)
    assert merged["encoder"]["stem"]["kernel"] is PARAMS["encoder"]["stem"]["kernel"]
    assert count_parameters(merged) == count_parameters(PARAMS)
    assert "encoder: 3 leaves, 184 parameters, frozen" in part.describe(PARAMS)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ((Group("a", "nowhere"), Group("b", ".*")), "'nowhere' matches no parameter"),
        ((Group("a", "^heads/"),), "no group covers encoder/stem/bias"),
        ((Group("a", ".*"), Group("b", "stem")), "'stem' is hidden by earlier rules"),
        ((Group("a", ".*", freeze=True),), "every group is frozen"),
        ((Group("a", "^heads"), Group("a", ".*")), "two groups are named 'a'"),
    ],
)
def test_rules_that_do_not_fit_are_named(groups, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(")):
        split_groups(PARAMS, groups)


def test_all_offenders_are_listed_at_once():
    with pytest.raises(UserError) as caught:
        split_groups(PARAMS, (Group("a", "nowhere"), Group("b", "^heads/")))
    text = str(caught.value)
    assert "nowhere" in text
    assert "encoder/stem/kernel" in text
    assert "encoder/stages/0/conv/kernel" in text
