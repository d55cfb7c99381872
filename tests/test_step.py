"""The step: AdamW as optax has it, frozen leaves, non-finite steps, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from afterimage.training.optimiser import (
    EVERYTHING,
    Group,
    make_optimiser,
    make_schedule,
    split_groups,
)
from afterimage.training.options import TrainingOptions
from afterimage.training.step import (
    averaged_params,
    averaged_stats,
    compile_step,
    compile_steps,
    init_state,
    make_step,
)


def _params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "encoder": {
            "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 1, 4)) * 0.3},
            "norm": {"scale": jnp.ones(4)},
        },
        "decoder": {"kernel": jax.random.normal(keys[1], (4, 1)), "bias": jnp.zeros(1)},
    }


def _loss(params, stats, batch, key, step):
    del key, step
    x = batch["image"].astype(jnp.float32) / 255
    conv = params["encoder"]["conv"]["kernel"]
    h = jax.lax.conv_general_dilated(
        x, conv, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jax.nn.relu(h * params["encoder"]["norm"]["scale"].reshape(1, 1, 1, -1))
    bias = params["decoder"]["bias"].reshape(1, 1, 1, -1)
    out = h @ params["decoder"]["kernel"] + bias
    value = jnp.mean((out - x) ** 2) * batch["weight"].mean()
    return value, ({"mse": value}, stats)


def _batch(seed, weight=1.0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (8, 6, 6, 1), dtype=np.uint8)
    return {"image": image, "weight": np.full(8, weight, np.float32)}


def _setup(groups=EVERYTHING, stats=None, loss=_loss, follow=None, **settings):
    options = TrainingOptions(**{"batch_size": 8, **settings})
    params = _params()
    part = split_groups(params, groups)
    optimiser = make_optimiser(options, part)
    ema, stats = options.ema > 0, stats or {}
    state = init_state(
        params, stats, optimiser=optimiser, partition=part, seed=1, ema=ema
    )
    schedule = make_schedule(options, total=10, warmup=2)
    step = make_step(
        loss,
        optimiser=optimiser,
        schedule=schedule,
        partition=part,
        options=options,
        follow=follow,
    )
    return state, step, part


def _same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_is_optax_adamw_with_clipping_and_masked_decay():
    state, step, _ = _setup(weight_decay=0.1, lr=0.01, clip=0.5)
    params = _params()
    mask = {
        "encoder": {"conv": {"kernel": True}, "norm": {"scale": False}},
        "decoder": {"kernel": True, "bias": False},
    }
    rates = optax.join_schedules(
        [
            optax.linear_schedule(0.005, 0.015, 2),
            lambda t: 0.01 * 0.5 * (1 + jnp.cos(jnp.pi * t / 8)),
        ],
        [2],
    )
    reference = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(rates, b1=0.9, b2=0.999, weight_decay=0.1, mask=mask),
    )
    opt = reference.init(params)
    run = compile_step(step)

    @jax.jit
    def expected(params, opt, batch):
        grads = jax.grad(lambda p: _loss(p, {}, batch, None, 0)[0])(params)
        updates, opt = reference.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    for i in range(4):
        batch = _batch(i)
        params, opt = expected(params, opt, batch)
        state, _ = run(state, batch, {})
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7),
        state["params"],
        params,
    )


def test_frozen_leaves_keep_their_bits_and_have_no_moments():
    groups = (Group("encoder", "^encoder/", freeze=True), Group("rest", ".*"))
    state, step, _ = _setup(groups, weight_decay=0.5, ema=0.9)
    before = jax.tree.map(np.asarray, state["params"])
    moments = [leaf.shape for leaf in jax.tree.leaves(state["opt"])]
    assert (3, 3, 1, 4) not in moments
    run = compile_step(step)
    for i in range(3):
        state, _ = run(state, _batch(i), {})
    _same(state["params"]["encoder"], before["encoder"])
    assert not np.array_equal(
        state["params"]["decoder"]["kernel"], before["decoder"]["kernel"]
    )
    assert set(state["ema"]) == {"decoder/kernel", "decoder/bias"}


def test_a_frozen_encoder_costs_no_backward_pass():
    def flops(groups):
        state, step, _ = _setup(groups)
        cost = jax.jit(step).lower(state, _batch(0), {}).compile().cost_analysis()
        return cost["flops"]

    frozen = (Group("encoder", "^encoder/", freeze=True), Group("rest", ".*"))
    forward = 2 * 8 * 36 * 9 * 4
    assert flops(EVERYTHING) - flops(frozen) > 0.8 * forward


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_step_changes_nothing_and_is_counted(bad):
    state, step, _ = _setup(ema=0.9)
    run = compile_step(step)
    state, _ = run(state, _batch(0), {})
    before = jax.tree.map(np.asarray, state)
    for row in (1, 2):
        state, metrics = run(state, _batch(1, weight=bad), {})
        assert int(metrics["bad_steps"]) == row
    for part in ("params", "opt", "ema", "stats"):
        _same(state[part], before[part])
    assert int(state["skipped"]) == 2
    state, metrics = run(state, _batch(2), {})
    assert int(metrics["bad_steps"]) == 0
    assert int(metrics["skipped"]) == 2
    assert int(state["step"]) == 4


def test_accumulation_gives_the_whole_batch_gradient():
    whole, step_whole, _ = _setup()
    parts, step_parts, _ = _setup(accumulate=4)
    for i in range(3):
        whole, a = compile_step(step_whole)(whole, _batch(i), {})
        parts, b = compile_step(step_parts)(parts, _batch(i), {})
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
        whole["params"],
        parts["params"],
    )


def test_what_follows_does_so_once_a_step_not_once_a_micro_batch():
    """From the parameters that the losses saw; a bad step leaves it where it was."""
    bias = np.full(1, 4.0, "f4")

    def follow(params, stats, step):
        share = 0.5 / (1 + step)
        teacher, now = stats["teacher"], params["decoder"]["bias"]
        return {**stats, "teacher": teacher + share * (now - teacher)}

    for accumulate in (1, 2):
        state, step, _ = _setup(
            accumulate=accumulate, stats={"teacher": bias}, follow=follow, lr=0.1
        )
        run, expected = compile_step(step), bias
        for i in range(3):
            now = np.asarray(state["params"]["decoder"]["bias"])
            expected = expected + 0.5 / (1 + i) * (now - expected)
            state, _ = run(state, _batch(i), {})
            np.testing.assert_allclose(state["stats"]["teacher"], expected, rtol=1e-6)
        state, _ = run(state, _batch(0, weight=np.nan), {})
        np.testing.assert_allclose(state["stats"]["teacher"], expected, rtol=1e-6)


def test_a_stretch_equals_single_steps():
    single, step, _ = _setup(ema=0.9)
    stretch, _, _ = _setup(ema=0.9)
    batches = [_batch(i) for i in range(3)]
    losses = []
    run = compile_step(step)
    for batch in batches:
        single, metrics = run(single, batch, {})
        losses.append(float(metrics["loss"]))
    stacked = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
    stretch, metrics = compile_steps(step)(stretch, stacked, {})
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        single,
        stretch,
    )


def test_resident_images_give_the_same_step():
    host, step, _ = _setup()
    resident, _, _ = _setup()
    images = np.concatenate([_batch(0)["image"], _batch(1)["image"]])
    index = np.array([3, 1, 12, 0, 7, 9, 15, 2], np.int32)
    weight = np.ones(8, np.float32)
    run = compile_step(step)
    host, a = run(host, {"image": images[index], "weight": weight, "index": index}, {})
    resident, b = run(resident, {"weight": weight, "index": index}, {"image": images})
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        host["params"],
        resident["params"],
    )


def test_the_running_mean_follows_the_parameters():
    state, step, part = _setup(ema=0.5, lr=0.1)
    run = compile_step(step)
    expected = jax.tree.map(np.asarray, state["params"]["decoder"]["bias"])
    for i in range(4):
        state, _ = run(state, _batch(i), {})
        decay = min(0.5, (1 + i) / (10 + i))
        now = np.asarray(state["params"]["decoder"]["bias"])
        expected = decay * expected + (1 - decay) * now
    np.testing.assert_allclose(
        averaged_params(state, part)["decoder"]["bias"], expected, rtol=1e-5
    )


def _counting(params, stats, batch, key, step):
    """As `_loss`; the moments of one layer move, as a normalisation's do."""
    value, (metrics, _) = _loss(params, stats, batch, key, step)
    norm, still = stats["encoder"]["norm"], stats["encoder"]["still"]
    moved = {"mean": norm["mean"] + 1.0 + step, "var": 0.9 * norm["var"]}
    encoder = {"norm": moved, "still": still, "codes": stats["encoder"]["codes"] + 1}
    return value, (metrics, {**stats, "encoder": encoder})


def test_the_running_mean_of_moments_follows_as_that_of_the_parameters():
    """By the same decay; what does not move keeps its bits, other statistics are those
    of the last step, and a step that is not finite changes nothing."""
    third = {"mean": np.full(2, 1 / 3, "f4"), "var": np.full(2, 0.1, "f4")}
    norm = {"mean": np.zeros(2, "f4"), "var": np.ones(2, "f4")}
    stats = {
        "encoder": {"norm": norm, "still": third, "codes": np.zeros(3, "f4")},
        "heads": {"classes": {"mean": np.zeros(2, "f4"), "std": np.ones(2, "f4")}},
    }
    state, step, _ = _setup(ema=0.5, lr=0.1, stats=stats, loss=_counting)
    run = compile_step(step)
    mean = average = 0.0
    for i in range(4):
        state, _ = run(state, _batch(i), {})
        decay = min(0.5, (1 + i) / (10 + i))
        mean += 1.0 + i
        average = decay * average + (1 - decay) * mean
    found = averaged_stats(state)
    np.testing.assert_allclose(found["encoder"]["norm"]["mean"], average, rtol=1e-6)
    assert (
        found["encoder"]["norm"]["var"] > state["stats"]["encoder"]["norm"]["var"]
    ).all()
    _same(found["encoder"]["still"], third)
    np.testing.assert_array_equal(found["encoder"]["codes"], 4.0)
    _same(found["heads"], stats["heads"])
    before = jax.tree.map(np.asarray, state["ema_stats"])
    state, _ = run(state, _batch(9, weight=np.nan), {})
    _same(state["ema_stats"], before)
    assert set(before) == {
        f"encoder/{layer}/{name}" for layer in ("norm", "still") for name in norm
    }


def test_without_a_running_mean_statistics_are_those_of_the_last_step():
    norm = {"mean": np.zeros(2, "f4"), "var": np.ones(2, "f4")}
    still = {name: leaf + 1 for name, leaf in norm.items()}
    stats = {"encoder": {"norm": norm, "still": still, "codes": np.zeros(3, "f4")}}
    state, step, _ = _setup(stats=stats, loss=_counting)
    state, _ = compile_step(step)(state, _batch(0), {})
    assert state["ema_stats"] == {}
    assert averaged_stats(state) is state["stats"]


def test_warm_up_starts_above_zero_and_cosine_ends_at_zero():
    options = TrainingOptions(lr=1.0)
    schedule = make_schedule(options, total=10, warmup=4, start=5)
    rates = [float(schedule(jnp.asarray(5 + t))) for t in (0, 3, 4, 10)]
    np.testing.assert_allclose(rates, [0.25, 1.0, 1.0, 0.0], atol=1e-6)
