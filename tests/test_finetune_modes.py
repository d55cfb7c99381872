"""Modes as phases: who learns, who is frozen, and at which rate."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints.trees import unflatten
from afterimage.errors import UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.losses import cross_entropy
from afterimage.finetune.methods.l2_sp import l2_sp
from afterimage.finetune.methods.tasks import uncertain
from afterimage.finetune.modes import (
    MODES,
    Full,
    Gradual,
    Partial,
    Probe,
    TwoPhase,
    depths,
    partial_groups,
    weighing_groups,
)
from afterimage.training.optimiser import split_groups

PATHS = [
    "encoder/stem/conv/kernel",
    "encoder/stages/0/blocks/0/conv1/kernel",
    "encoder/stages/0/blocks/1/conv1/kernel",
    "encoder/stages/1/down/conv/kernel",
    "encoder/stages/1/blocks/0/conv1/kernel",
    "encoder/stages/1/blocks/10/conv1/kernel",
    "encoder/bottleneck/kernel",
    "heads/classes/kernel",
]
PARAMS = unflatten({path: jnp.zeros(1) for path in PATHS})
TERMS = (cross_entropy(3),)
OPTIONS = FinetuneConfig(from_="a", out="b", data="digits")


def phases(mode, paths=PATHS, terms=TERMS, **settings):
    config = dataclasses.replace(OPTIONS, mode=mode, **settings)
    return config.mode.phases(paths, terms, 10, config)


def rates(phase):
    """{path: multiplier of the learning rate, or None where frozen}."""
    partition = split_groups(PARAMS, phase.groups)
    groups = {group.name: group for group in partition.groups}
    return {
        path: None if groups[name].freeze else groups[name].lr
        for path, name in partition.of.items()
    }


def learning(phase):
    return {path for path, rate in rates(phase).items() if rate is not None}


@pytest.mark.parametrize("mode", MODES.names())
def test_every_mode_covers_every_parameter(mode):
    found = phases(Partial(stages=1) if mode == "partial" else mode)
    assert sum(phase.steps for phase in found) == 10
    for phase in found:
        assert set(rates(phase)) == set(PATHS)


def test_probe_trains_the_head_alone():
    (phase,) = phases(Probe(head_lr=0.1))
    assert learning(phase) == {"heads/classes/kernel"}
    assert phase.options.lr == 0.1


def test_two_phase_thaws_into_new_groups():
    head, everything = phases(TwoPhase(head_steps=3, head_lr=0.1), encoder_lr=0.3)
    assert (head.steps, everything.steps) == (3, 7)
    assert (head.options.lr, everything.options.lr) == (0.1, OPTIONS.lr)
    assert learning(head) == {"heads/classes/kernel"}
    assert learning(everything) == set(PATHS)
    assert rates(everything)["encoder/stem/conv/kernel"] == 0.3
    assert rates(everything)["heads/classes/kernel"] == 1.0


def test_partial_by_stage_thaws_what_follows_too():
    (phase,) = phases(Partial(stages=1))
    assert learning(phase) == {p for p in PATHS if "stages/1" in p} | {
        "encoder/bottleneck/kernel",
        "heads/classes/kernel",
    }
    (phase,) = phases(Partial(stages=2))
    assert set(PATHS) - learning(phase) == {"encoder/stem/conv/kernel"}


def test_partial_by_path_rule():
    (phase,) = phases(Partial(unfreeze=("stem", "^encoder/bottleneck/")))
    assert learning(phase) == {PATHS[0], PATHS[6], PATHS[7]}


def test_partial_with_decay_keeps_each_layers_rate():
    (partial,) = phases(Partial(stages=1), layer_decay=0.5)
    (full,) = phases(Full(), layer_decay=0.5)
    for path, rate in rates(partial).items():
        assert rate is None or rate == rates(full)[path], path


def test_layer_wise_decay_by_hand():
    (phase,) = phases(Full(), layer_decay=0.5, encoder_lr=0.8)
    # Layers: stem 0, blocks 1 2 3 4 (block 10 is the second of its stage), head L = 5.
    assert rates(phase) == {
        path: pytest.approx(0.8 * 0.5**power if power else 1.0)
        for path, power in zip(PATHS, [5, 4, 3, 2, 2, 1, 1, 0])
    }


def test_depths_count_blocks_as_numbers():
    found = depths(PATHS[:-1])
    assert list(found.values()) == [0, 1, 2, 3, 3, 4, 4]


def test_an_encoder_without_a_stem():
    paths = ["encoder/stages/0/down/kernel", "encoder/stages/1/down/kernel"]
    assert depths(paths) == {paths[0]: 1, paths[1]: 2}
    (phase,) = phases(Partial(stages=2), [*paths, "heads/classes/kernel"])
    assert [group.freeze for group in phase.groups] == [False, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": 3}, "from 1 to 2"),
        ({"stages": 0}, "1 to 2"),
        ({"unfreeze": ("stages/7", "stem")}, "'stages/7' match no parameter"),
    ],
)
def test_partial_rules_that_cannot_work(settings, message):
    with pytest.raises(UserError, match=message):
        partial_groups(PATHS[:-1], **settings)


@pytest.mark.parametrize("head_steps", [0, 10])
def test_two_phase_needs_both_phases(head_steps):
    with pytest.raises(UserError, match="head_steps"):
        phases(TwoPhase(head_steps=head_steps))


def test_two_phase_gives_the_head_a_tenth_where_no_steps_are_named():
    assert [p.steps for p in phases(TwoPhase())] == [1, 9]


def test_gradual_thaws_one_stage_after_the_other():
    head, last, everything = phases(Gradual(head_steps=4))
    assert [p.steps for p in (head, last, everything)] == [4, 3, 3]
    assert learning(head) == {"heads/classes/kernel"}
    assert learning(last) == learning(*phases(Partial(stages=1)))
    assert learning(everything) == set(PATHS)
    # ULMFiT's factor from layer to layer, and one rate for a layer in every phase.
    assert rates(everything)["encoder/stem/conv/kernel"] == pytest.approx(2.6**-5)
    for path, rate in rates(last).items():
        assert rate is None or rate == rates(everything)[path], path


def test_gradual_shares_the_steps_alike_where_none_are_named():
    assert [p.steps for p in phases(Gradual())] == [3, 3, 4]
    with pytest.raises(UserError, match="the 2 phases after it"):
        phases(Gradual(head_steps=9))


def test_terms_of_the_encoder_wait_for_it_and_bring_their_parameters():
    paths = [*PATHS, "terms/cdan/first/kernel", "terms/cdan/fixed/features"]
    terms = (*TERMS, l2_sp(0.1))
    head, everything = phases(TwoPhase(head_steps=3), paths, terms)
    assert [term.name for term in head.terms] == ["cross_entropy"]
    assert [term.name for term in everything.terms] == ["cross_entropy", "l2_sp"]
    tree = unflatten(dict.fromkeys(paths, np.zeros(1)))
    frozen = [
        {p for p, g in part.of.items() if g in part.frozen_names}
        for part in (head.partition(tree), everything.partition(tree))
    ]
    assert frozen[0] == set(paths) - {"heads/classes/kernel"}
    assert frozen[1] == {"terms/cdan/fixed/features"}
    assert weighing_groups(TERMS) == ()
    (partial,) = phases(Partial(stages=1), paths, terms)
    of = partial.partition(tree).of
    assert of["terms/cdan/first/kernel"] == "terms"


def test_the_weights_of_tasks_learn_whenever_the_heads_do():
    """With the head alone already; they keep their group from phase to phase."""
    name = "terms/cross_entropy/log_variance"
    paths, terms = [*PATHS, name], (uncertain(TERMS[0]),)
    head, everything = phases(TwoPhase(head_steps=3), paths, terms)
    tree = unflatten(dict.fromkeys(paths, np.zeros(1)))
    groups = {phase.partition(tree).of[name] for phase in (head, everything)}
    assert groups == {"weights of tasks"}
    assert weighing_groups(terms)[0].freeze is False
