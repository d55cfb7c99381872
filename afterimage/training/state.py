"""The training state: one nested dict of arrays, and nothing else."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.training.groups import Partition

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
      `ema_stats`, the same over the moments of BatchNorm (`running_moments`);
      `key`, the raw data of the run's random key; `skipped` int32, non-finite steps so
      far; `bad_row` int32, how many of them came last without a break.
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
        "bad_row": jnp.zeros((), jnp.int32),
    }


def averaged_params(state: State, partition: Partition) -> dict[str, Any]:
    """The EMA parameters where a running mean is kept, else the parameters."""
    if not state["ema"]:
        return state["params"]
    _, frozen = partition.split(state["params"])
    return partition.merge(state["ema"], frozen)


def running_moments(stats: Mapping[str, Any]) -> dict[str, Any]:
    """`{path: leaf}` of the moments of BatchNorm layers: each `mean` beside a `var`.

    Other statistics (a codebook, a teacher, the weights of examples) do not follow the
    parameters' recent past, and are used as they are.
    """
    flat = flatten(stats)
    pairs = {"mean": "var", "var": "mean"}

    def paired(path: str) -> bool:
        place, _, name = path.rpartition("/")
        return name in pairs and f"{place}/{pairs[name]}" in flat

    return {path: leaf for path, leaf in flat.items() if paired(path)}


def averaged_stats(state: Mapping[str, Any]) -> dict[str, Any]:
    """What goes with `averaged_params`: statistics whose BatchNorm moments are running
    means as well, over the same steps (as timm's ModelEmaV2 averages buffers)."""
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
