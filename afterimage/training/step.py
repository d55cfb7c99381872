"""The training state, and the jitted, donating step that updates it. The loop does not
depend on what the loss means.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from afterimage import runtime
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.training.optimiser import Partition, Schedule
from afterimage.training.options import TrainingOptions

State = dict[str, Any]


def init_state(
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    *,
    optimiser: optax.GradientTransformation,
    partition: Partition,
    seed: int,
    ema: bool,
    step: int = 0,
) -> State:
    """A fresh state.

    Returns:
      `step` int32, batches consumed; `params` and `stats`, nested; `opt`, over
      trainable leaves only; `ema`, `{path: leaf}` over trainable leaves, or `{}`;
      `ema_stats`, the same over the moments of BatchNorm (`running_moments`); `key`,
      the raw data of the run's random key; `skipped` int32, non-finite steps so far;
      `bad_steps` int32, how many of the latest steps in a row were non-finite.
    """
    params = jax.tree.map(jnp.asarray, dict(params))
    stats = jax.tree.map(jnp.asarray, dict(stats))
    trainable, _ = partition.split(params)
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": params,
        "stats": stats,
        "opt": optimiser.init(trainable),
        # Copies: the state is donated, and one buffer cannot be donated twice.
        "ema": jax.tree.map(jnp.copy, trainable) if ema else {},
        "ema_stats": jax.tree.map(jnp.copy, running_moments(stats)) if ema else {},
        "key": jax.random.key_data(jax.random.key(seed)),
        "skipped": jnp.zeros((), jnp.int32),
        "bad_steps": jnp.zeros((), jnp.int32),
    }


def averaged_params(state: State, partition: Partition) -> dict[str, Any]:
    """The EMA parameters if a running mean is kept, else the parameters."""
    if not state["ema"]:
        return state["params"]
    _, frozen = partition.split(state["params"])
    return partition.merge(state["ema"], frozen)


def running_moments(stats: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaf}` of the moments of BatchNorm layers: each `mean` beside a `var`.

    Other statistics (a codebook, a teacher, the weights of examples) do not track
    recent parameters, and are used unchanged.
    """
    flat = flatten(stats)
    pairs = {"mean": "var", "var": "mean"}

    def paired(path: str) -> bool:
        place, _, name = path.rpartition("/")
        return name in pairs and f"{place}/{pairs[name]}" in flat

    return {path: leaf for path, leaf in flat.items() if paired(path)}


def averaged_stats(state: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics for `averaged_params`: BatchNorm moments are running means too,
    over the same steps (as timm's ModelEmaV2 averages buffers)."""
    if not state["ema_stats"]:
        return state["stats"]
    return {**state["stats"], **unflatten(flatten(state["stats"]) | state["ema_stats"])}


def abstract(state: State) -> State:
    """Shapes, dtypes and shardings of a state: a restore target."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=getattr(x, "sharding", None)
        ),
        state,
    )


Batch = Mapping[str, Array]
Loss = Callable[..., tuple[Array, tuple[dict[str, Array], Any]]]
"""loss(params, stats, batch, key, step) -> (scalar, (metrics, new stats))"""
Estimator = Callable[[Callable[..., Any]], Callable[..., Any]]
"""estimator(f) = g, where f(trainable, stats, batch, key) -> (value, (metrics, stats))
and g takes the same arguments and returns (f's result, the gradient by `trainable`)"""
Step = Callable[[State, Batch, Batch], tuple[State, dict[str, Array]]]
"""step(state, batch, resident data) -> (state, metrics)"""
Follow = Callable[[Any, Any, Array], Any]
"""follow(params, stats, step) -> stats, once a step: what follows the parameters"""
Combine = Callable[[dict[str, Array], Array], tuple[dict[str, Array], dict[str, Array]]]
"""combine({path: [losses, ...]}, key) -> ({path: gradient}, metrics)"""


def plain_gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The plain gradient, by reverse mode."""
    return jax.value_and_grad(loss, has_aux=True)


def _micro_batches(batch: Batch, count: int) -> list[dict[str, Array]]:
    # Strided, so that the rows of a sharded batch stay on their device.
    return [{k: v[i::count] for k, v in batch.items()} for i in range(count)]


def _gradients(
    loss: Loss,
    estimator: Estimator,
    partition: Partition,
    state: State,
    batch: Batch,
    accumulate: int,
    combine: Combine | None,
) -> tuple[Array, dict[str, Array], Any, dict[str, Array]]:
    """(loss, metrics, stats, gradients), means over the micro-batches; but each of them
    continues from the statistics of the one before."""
    trainable, frozen = partition.split(state["params"])
    key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])

    def of_trainable(trainable, stats, batch, key):
        params = partition.merge(trainable, frozen)
        return loss(params, stats, batch, key, state["step"])

    def combined(value, metrics, stats, grads):
        if combine is None:
            return value, metrics, stats, grads
        grads, found = combine(grads, jax.random.fold_in(key, accumulate))
        return value.sum(), {**metrics, **found}, stats, grads

    grad = estimator(of_trainable) if combine is None else _rows(of_trainable)
    if accumulate == 1:
        (value, (metrics, stats)), grads = grad(trainable, state["stats"], batch, key)
        return combined(value, metrics, stats, grads)
    # Unrolled: a convolution's gradient inside a scan is many times slower on CPU.
    stats, total = state["stats"], None
    for i, part in enumerate(_micro_batches(batch, accumulate)):
        part_key = jax.random.fold_in(key, i)
        (value, (metrics, stats)), grads = grad(trainable, stats, part, part_key)
        now = (value, metrics, grads)
        total = now if total is None else jax.tree.map(jnp.add, total, now)
    value, metrics, grads = jax.tree.map(lambda x: x / accumulate, total)
    return combined(value, metrics, stats, grads)


def _rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like `jax.value_and_grad` with `has_aux`, for several losses [n]: one gradient
    each, stacked. One forward pass, n backward ones."""

    def run(params, *rest):
        values, pull, aux = jax.vjp(lambda p: function(p, *rest), params, has_aux=True)
        units = jnp.eye(len(values), dtype=values.dtype)
        each = [pull(unit)[0] for unit in units]
        return (values, aux), jax.tree.map(lambda *rows: jnp.stack(rows), *each)

    return run


def _resident_rows(batch: Batch, data: Batch) -> dict[str, Array]:
    """This batch's rows of the data on the devices; `target/index` indexes
    `target/image`."""
    return {
        name: jnp.take(rows, batch[name[: name.rfind("/") + 1] + "index"], axis=0)
        for name, rows in data.items()
    }


def make_step(
    loss: Loss,
    *,
    optimiser: optax.GradientTransformation,
    schedule: Schedule,
    partition: Partition,
    options: TrainingOptions,
    gradient: Estimator = plain_gradient,
    combine: Combine | None = None,
    follow: Follow | None = None,
) -> Step:
    """The unjitted step; `gradient` says how the loss is differentiated. A non-finite
    loss or gradient leaves everything but the counts unchanged: parameters, moments,
    running mean and statistics.

    With `combine` there are several losses, [n], whose gradients it merges; by default
    the loss is a scalar.

    Each micro-batch changes the statistics in turn; `follow` then does so once, from
    the parameters that the losses saw.

    Metrics are device scalars: `loss`, `grad_norm` (before clipping), `lr`, `skipped`,
    `bad_steps`, and what the loss reports.
    """

    def step(state: State, batch: Batch, data: Batch):
        batch = {**batch, **_resident_rows(batch, data)}
        value, metrics, stats, grads = _gradients(
            loss, gradient, partition, state, batch, options.accumulate, combine
        )
        if follow is not None:
            stats = follow(state["params"], stats, state["step"])
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        trainable, frozen = partition.split(state["params"])
        direction, opt = optimiser.update(grads, state["opt"], trainable)
        rate = schedule(state["step"])
        new = jax.tree.map(lambda x, d: x - rate * d, trainable, direction)
        ema, ema_stats = state["ema"], state["ema_stats"]
        if ema:
            count = state["step"].astype(jnp.float32)
            decay = jnp.minimum(options.ema, (1 + count) / (10 + count))
            ema = {p: decay * ema[p] + (1 - decay) * new[p] for p in ema}
            # Written so that constant moments stay bit-identical.
            moments = running_moments(stats) if ema_stats else {}
            ema_stats = {
                p: x + (1 - decay) * (moments[p] - x) for p, x in ema_stats.items()
            }

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        bad = 1 - finite.astype(jnp.int32)
        after = {
            "step": state["step"] + 1,
            # Frozen leaves pass through without even a select.
            "params": partition.merge(keep(new, trainable), frozen),
            "stats": keep(stats, state["stats"]),
            "opt": keep(opt, state["opt"]),
            "ema": keep(ema, state["ema"]),
            "ema_stats": keep(ema_stats, state["ema_stats"]),
            "key": state["key"],
            "skipped": state["skipped"] + bad,
            "bad_steps": (state["bad_steps"] + 1) * bad,
        }
        report = {"loss": value, **metrics, "grad_norm": norm, "lr": rate}
        report |= {"skipped": after["skipped"], "bad_steps": after["bad_steps"]}
        return after, report

    return step


def compile_step(step: Step, *, platform: str | None = None) -> Any:
    """The step under jit, a `Step`; the state is donated. By default it is compiled
    for the platform of this process."""
    return runtime.jit(step, platform=platform, donate_argnums=0)


def compile_steps(step: Step, *, platform: str | None = None) -> Any:
    """Several steps in one dispatch: batches are stacked along a new first axis.

    For accelerators: on CPU a convolution's gradient inside a scan is a measured trap.
    """

    def several(state: State, batches: Batch, data: Batch):
        return jax.lax.scan(lambda s, b: step(s, b, data), state, batches)

    return runtime.jit(several, platform=platform, donate_argnums=0)
