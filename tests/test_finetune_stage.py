"""Stages and phases on a network small enough to reason about: two dense layers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten
from afterimage.errors import Interrupted, UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.losses import cross_entropy
from afterimage.finetune.methods.cdan import cdan
from afterimage.finetune.methods.dann import dann
from afterimage.finetune.methods.l2_sp import l2, l2_sp
from afterimage.finetune.modes import Partial, TwoPhase
from afterimage.runs import Run
from afterimage.training.batches import BatchLoader, make_mesh
from afterimage.training.job import Trainer
from afterimage.training.loop import Callbacks, Fit, StopSignal
from afterimage.training.optimiser import (
    Group,
    make_optimiser,
    make_schedule,
    migrate,
    trainable_parts,
)
from afterimage.training.stage import Context, Stage, Term, describe
from afterimage.training.step import init_state, make_step

OPTIONS = FinetuneConfig(
    from_="a",
    out="b",
    data="digits",
    weight_decay=0.1,
    clip=1.0,
    schedule="constant",
    warmup_steps=0,
    lr=1e-2,
)
WIDE = 64


def network(seed=0, width=WIDE):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": {
            "stages": {
                "0": {"kernel": 0.1 * jax.random.normal(keys[0], (width, width))},
                "1": {"kernel": 0.1 * jax.random.normal(keys[1], (width, width))},
            }
        },
        "heads": {"classes": {"kernel": 0.1 * jax.random.normal(keys[2], (width, 3))}},
    }
    return params, {"encoder": {"mean": jnp.zeros(width)}}


def provide(params, stats, batch, key, step, trainable):
    """A batch-normalising encoder: centred by the batch in training mode."""

    def forward(ctx):
        x = batch["image"]
        train = "encoder" in trainable
        mean = x.mean(0) if train else stats["encoder"]["mean"]
        for stage in params["encoder"]["stages"].values():
            x = jnp.tanh((x - mean[None]) @ stage["kernel"])
        kept = {"mean": 0.9 * stats["encoder"]["mean"] + 0.1 * mean} if train else None
        return x, kept or stats["encoder"]

    return {
        "params": lambda _: params,
        "train/label": lambda _: batch["label"],
        "train/forward": forward,
        "train/features": lambda ctx: ctx["train/forward"][0],
        "train/logits/classes": lambda ctx: (
            ctx["train/features"] @ params["heads"]["classes"]["kernel"]
        ),
        "stats/next": lambda ctx: {"encoder": ctx["train/forward"][1]},
    }


def batch(step, size=8, width=WIDE):
    rng = np.random.default_rng(step)
    labels = rng.integers(0, 3, size).astype(np.int32)
    images = rng.normal(size=(size, width)).astype(np.float32) + labels[:, None] + 1
    return {"image": jnp.asarray(images), "label": jnp.asarray(labels)}


@functools.cache
def make_stage(mode, steps=6, head_steps=3):
    paths = list(flatten(network()[0]))
    modes = {"partial": Partial(stages=1), "two-phase": TwoPhase(head_steps=head_steps)}
    config = dataclasses.replace(OPTIONS, mode=modes.get(mode, mode))
    phases = config.mode.phases(paths, (cross_entropy(3),), steps, config)
    return Stage(phases=phases, providers=provide)


@functools.cache
def parts(stage, index):
    """(step under jit, optimiser, partition) of a phase, compiled once."""
    params, _ = network()
    phase = stage.phases[index]
    partition = phase.partition(params)
    optimiser = make_optimiser(phase.options, partition)
    schedule = make_schedule(phase.options, phase.steps, 0, stage.start(index))
    step = make_step(
        stage.loss(index, params),
        optimiser=optimiser,
        schedule=schedule,
        partition=partition,
        options=phase.options,
    )
    return jax.jit(step), optimiser, partition


def train(stage, index, state, steps):
    step, _, _ = parts(stage, index)
    for _ in range(steps):
        state, _ = step(state, batch(int(state["step"])), {})
    return state


def fresh(stage, index=0, seed=0, ema=False):
    params, stats = network(seed)
    _, optimiser, partition = parts(stage, index)
    return init_state(
        params, stats, optimiser=optimiser, partition=partition, seed=0, ema=ema
    )


def moments(opt):
    """Parameter paths that hold moments."""
    names = [
        jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(opt)
    ]
    return {p for p in flatten(network()[0]) if any(f"'{p}'" in name for name in names)}


@pytest.mark.parametrize(
    ("mode", "frozen"),
    [
        ("probe", {"encoder/stages/0/kernel", "encoder/stages/1/kernel"}),
        ("partial", {"encoder/stages/0/kernel"}),
        ("full", set()),
    ],
)
def test_frozen_means_frozen(mode, frozen):
    """Bit-identical leaves and statistics, weight decay on; no moments."""
    stage = make_stage(mode)
    state = fresh(stage)
    before, stats = flatten(state["params"]), flatten(state["stats"])
    after = train(stage, 0, state, 5)
    for path, leaf in flatten(after["params"]).items():
        assert np.array_equal(leaf, before[path]) == (path in frozen), path
    moved = not np.array_equal(
        flatten(after["stats"])["encoder/mean"], stats["encoder/mean"]
    )
    assert moved == (not frozen)
    assert moments(after["opt"]) == set(before) - frozen


def test_a_frozen_encoder_costs_no_backward_pass():
    """FLOPs of the compiled step: probe as with stop_gradient, far below full.

    Forward of n multiplications costs n; a gradient of all layers 2n more, less the
    first layer's input.
    """

    def flops(stage):
        state = fresh(stage)
        step, _, _ = parts(stage, 0)
        compiled = step.lower(state, batch(0, size=256), {}).compile()
        return compiled.cost_analysis()["flops"]

    def stopped(params, stats, batch, key, step, trainable):
        rules = provide(params, stats, batch, key, step, frozenset())
        forward = rules["train/forward"]
        hold = jax.lax.stop_gradient
        return {**rules, "train/forward": lambda ctx: hold(forward(ctx))}

    probe, full = make_stage("probe"), make_stage("full")
    reference = dataclasses.replace(probe, providers=stopped)
    assert flops(probe) == pytest.approx(flops(reference), rel=0.01)
    # Encoder: 2 matrices forward, 2 + 1 backward.
    assert flops(full) > 1.9 * flops(probe)
    assert flops(probe) < flops(make_stage("partial")) < flops(full)


def test_two_phase_thaws_with_a_fresh_count():
    """The head keeps moments and count; the encoder's first step is a full one."""
    stage = make_stage("two-phase", steps=103, head_steps=100)
    state = train(stage, 0, fresh(stage), 100)
    _, _, before = parts(stage, 0)
    step, optimiser, after = parts(stage, 1)
    trainable, _ = after.split(state["params"])
    opt = migrate(state["opt"], optimiser.init(trainable), before, after)

    inner = opt[1].inner_states
    assert int(inner["heads"].inner_state[0].count) == 100
    assert int(inner["encoder"].inner_state[0].count) == 0
    kept = state["opt"][1].inner_states["heads"].inner_state[0].mu
    now = inner["heads"].inner_state[0].mu
    np.testing.assert_array_equal(
        now["heads/classes/kernel"], kept["heads/classes/kernel"]
    )
    # Adam's first update has size lr whatever the gradient; with the head's count of
    # 100 the encoder's would be (1 - 0.9) / sqrt(1 - 0.999) · 0.31 = 0.98 of that at
    # 100 updates, 2.5 at 1000: the count above and the size here settle it together.
    encoder = state["params"]["encoder"]["stages"]["0"]["kernel"]
    moved, _ = step({**state, "opt": opt}, batch(0), {})
    change = moved["params"]["encoder"]["stages"]["0"]["kernel"] - encoder
    plain = change + OPTIONS.lr * OPTIONS.weight_decay * encoder
    np.testing.assert_allclose(np.median(np.abs(plain)), OPTIONS.lr, rtol=1e-3)


class Numbers(BatchLoader):
    """Batches of plain vectors, one step a dispatch."""

    def __init__(self):
        self.data = {}

    @property
    def steps_per_dispatch(self):
        return 1

    def blocks(self, start, lengths):
        for number, _ in enumerate(lengths, start):
            yield 1, np.zeros((1, 8), int), batch(number)


@pytest.mark.slow
def test_resume_across_the_boundary_is_exact(tmp_path):
    """The trainer stopped after any step, in the head's phase, at the boundary and
    behind it: the same command ends bit-identical to a run that was not stopped."""
    stage = make_stage("two-phase")
    trainer = Trainer(stage, network()[0], mesh=make_mesh(1), images=8)

    def run(name, stop_after=None):
        config = dataclasses.replace(
            OPTIONS,
            out=str(tmp_path / name),
            log_every=1,
            save_every=1,
            keep_last=9,
            steps=6,
            tensorboard=False,
        )
        stop = StopSignal()

        def told(step, _):
            if step == stop_after:
                stop.name = "a test"

        with (
            Run(config.out, kind="t", config=config) as folder,
            Store(folder.path, keep_last=9, keep_best=1) as store,
        ):

            def fresh():
                return trainer.fresh(*network(), seed=0, ema=False)

            state = trainer.resume(store, fresh)
            folder.metrics.start(0 if state is None else int(state["step"]))
            plan = Fit(
                run=folder,
                store=store,
                config=config,
                total=stage.steps,
                evaluate=lambda *_: {},
                callbacks=Callbacks(on_log=told),
            )
            try:
                return trainer.train(
                    fresh() if state is None else state,
                    plan,
                    lambda _: Numbers(),
                    stop,
                )
            finally:
                plan.progress.close()

    whole = run("whole")
    for step in range(1, stage.steps):
        with pytest.raises(Interrupted):
            run(f"stopped-{step}", stop_after=step)
        again = run(f"stopped-{step}")
        jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_phases_by_step():
    stage = make_stage("two-phase", steps=10)
    assert stage.steps == 10
    assert [stage.start(i) for i in range(3)] == [0, 3, 10]
    assert [stage.phase_of(s) for s in (0, 1, 3, 4, 10)] == [0, 0, 0, 1, 1]
    with pytest.raises(UserError, match=r"step 11.*10 steps"):
        stage.phase_of(11)


def test_parts_with_a_frozen_leaf_keep_their_statistics():
    params, _ = network()

    def trainable(mode):
        return trainable_parts(make_stage(mode).phases[0].partition(params))

    assert trainable("full") == {"encoder", "heads/classes"}
    assert trainable("probe") == trainable("partial") == {"heads/classes"}


def check(stage):
    params, stats = network()
    stage.check(params, stats, batch(0))


def test_a_sound_stage_passes():
    for mode in ("probe", "partial", "two-phase", "full"):
        check(make_stage(mode))


def test_every_mistake_is_reported_at_once():
    def pairs(view):
        return jnp.zeros((2, 2)), {}

    stage = make_stage("probe")
    phase = dataclasses.replace(
        stage.phases[0],
        steps=0,
        terms=(
            cross_entropy(3, head="clases"),
            Term(name="pairs", fn=pairs, reads=("train/features",)),
            Term(name="pairs", fn=pairs, reads=("train/features",)),
        ),
    )
    holes = dataclasses.replace(
        stage.phases[0], groups=(Group("h", "^heads/"),), terms=()
    )
    with pytest.raises(UserError) as caught:
        check(dataclasses.replace(stage, phases=(phase, holes)))
    message = str(caught.value)
    for part in (
        "'train/logits/clases' is not available; did you mean 'train/logits/classes'?",
        "shape (2, 2)",
        "'pairs' appears 2 times",
        "steps=0",
        "phases: 'probe' appears 2 times",
        "no group covers encoder/stages/0/kernel",
        "has no term",
    ):
        assert part in message, part


def test_a_group_that_grows_between_phases_is_refused():
    stage = make_stage("two-phase")
    head, everything = stage.phases
    everything = dataclasses.replace(everything, groups=(Group("heads", ".*"),))
    with pytest.raises(UserError, match="group of their own"):
        check(dataclasses.replace(stage, phases=(head, everything)))


def test_no_phase_at_all():
    with pytest.raises(UserError, match="at least one phase"):
        check(Stage(phases=(), providers=provide))


def test_two_terms_share_one_forward_pass():
    calls = []

    def counted(*args):
        rules = dict(provide(*args))
        forward = rules["train/forward"]
        rules["train/forward"] = lambda ctx: (calls.append(1), forward(ctx))[1]
        return rules

    size = Term(
        name="size",
        fn=lambda view: ((view["train/features"] ** 2).mean(-1), {}),
        reads=("train/features",),
        weight=0.1,
    )
    stage = make_stage("full")
    terms = (*stage.phases[0].terms, size)
    phase = dataclasses.replace(stage.phases[0], terms=terms)
    stage = Stage(phases=(phase,), providers=counted)
    params, stats = network()
    total, (metrics, _) = stage.loss(0, params)(
        params, stats, batch(0), jax.random.key(0), jnp.int32(0)
    )
    assert len(calls) == 1
    expected = metrics["cross_entropy"] + 0.1 * metrics["size"]
    assert float(total) == pytest.approx(float(expected))


def test_description_counts_frozen_and_trainable():
    text = describe(make_stage("two-phase"), network()[0])
    assert "phase head: 3 steps at 0.1, 192 of 8,384 parameters learn" in text
    assert "phase all: 3 steps at 0.01, 8,384 of 8,384 parameters learn, 0 are" in text


def test_conflicts_of_terms_are_all_found_before_the_first_step():
    """Two adversaries, decay beside L2-SP, a source of another shape, weights on a
    loss of pairs, a stream that nobody supplies."""
    start = {"encoder": {"stages": {"0": {"kernel": jnp.zeros((2, 2))}}}}

    def with_source(*args):
        return {
            **provide(*args),
            "source/params": lambda _: start,
            "train/weight": lambda _: jnp.ones(8),
            "train/few": lambda _: jnp.ones(4),
            "train/features/classes": lambda ctx: ctx["train/features"],
        }

    pairs = Term(
        name="pairs",
        fn=lambda view: (jnp.sum(view["train/features"]), {}),
        reads=("train/features",),
        examples="train/weight",
    )
    each = Term(
        name="each",
        fn=lambda view: (jnp.sum(view["train/features"], axis=1), {}),
        reads=("train/features",),
        examples="train/few",
    )
    one, other = dann(WIDE), cdan(WIDE, 3)
    stage = make_stage("full")
    terms = (cross_entropy(3), l2_sp(0.1), l2(0.1), pairs, each, one, other)
    phase = dataclasses.replace(stage.phases[0], terms=terms)
    with pytest.raises(UserError) as caught:
        check(Stage(phases=(phase,), providers=with_source))
    message = str(caught.value)
    for part in (
        "2 adversaries on the stream 'target' (dann, cdan); keep only one",
        "weight decay and the term 'l2_sp' pull 2 leaves",
        "weight decay and the term 'l2_head' pull 1 leaves",
        "--weight-decay 0",
        "encoder/stages/0/kernel is (64, 64), in the source it is (2, 2)",
        "encoder/stages/1/kernel is (64, 64), in the source it is missing",
        "loss of shape () cannot be weighted by the example weights 'train/weight'",
        "(8,) cannot be weighted by the example weights 'train/few' of shape (4,)",
        "'target/features/classes' is not available: there is no stream 'target'",
        "--target",
    ):
        assert part in message, part


def test_weights_of_examples_multiply_any_term_by_example():
    weights = jnp.arange(8.0)

    def weighted(*args):
        return {**provide(*args), "train/weight": lambda _: weights}

    stage = make_stage("full")
    plain, term = cross_entropy(3), cross_entropy(3, examples="train/weight")
    params, stats = network()
    args = (params, stats, batch(0), jax.random.key(0), jnp.int32(0))
    each, _ = plain.fn(Context(weighted(*args, {"encoder"})).only(plain.reads, "each"))
    phase = dataclasses.replace(stage.phases[0], terms=(term,))
    total, (metrics, _) = Stage(phases=(phase,), providers=weighted).loss(0, params)(
        *args
    )
    assert float(total) == pytest.approx(float(jnp.mean(weights * each)), rel=1e-5)
    assert float(metrics["cross_entropy"]) == pytest.approx(float(each.mean()))


def test_progress_runs_over_the_phase():
    told = Term(
        name="told", fn=lambda view: (view["progress"], {}), reads=("progress",)
    )
    stage = make_stage("two-phase")
    stage = Stage(
        phases=tuple(dataclasses.replace(p, terms=(told,)) for p in stage.phases),
        providers=provide,
    )
    params, stats = network()
    found = [
        float(stage.loss(i, params)(params, stats, batch(0), None, jnp.int32(s))[0])
        for i, s in ((0, 0), (0, 2), (1, 3), (1, 5))
    ]
    assert found == pytest.approx([0, 2 / 3, 0, 2 / 3])
