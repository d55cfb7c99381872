# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # In your own JAX training
#
# An encoder is a pure function of parameters and images, so it can be a part of your
# own training step: with your own loss, your own optimiser and your own loop.

# %% tags=["quiet"]
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

import afterimage
from afterimage.data import open_data
from afterimage.pretrain import pretrain, recommend

os.chdir(tempfile.mkdtemp())
characters = open_data("characters")
images = characters.train.gather(range(len(characters.train)))
config = recommend(images, out="runs/encoder", steps=60)
pretrain(config, data=images)

# %% [markdown]
# ## The encoder
#
# `encoder.params` is a nested dict of arrays. `encoder.apply(params, images)` takes
# `uint8` images, normalises them, and gives vectors; `encoder.apply_maps` gives the
# feature maps. Both can be used in `jit`, `grad`, `vmap` and `scan`.

# %%
encoder = afterimage.load_encoder("runs/encoder")
print(encoder)
print(jax.tree.map(jnp.shape, encoder.params))

# %% [markdown]
# ## A task of our own
#
# Where is the ink? The network is to predict the height of the character's centre of
# gravity: a regression, which the commands do not train on these images.

# %%
ink = images[..., 0].astype(np.float32)
heights = (ink.sum(2) @ np.arange(28)) / ink.sum((1, 2)) / 28
rows = np.random.default_rng(0).permutation(len(images))
train, test = rows[:2000], rows[2000:]


def predict(params, batch):
    vectors = encoder.apply(params["encoder"], batch)
    return vectors @ params["weights"] + params["bias"]


def loss(params, batch, targets):
    return jnp.mean((predict(params, batch) - targets) ** 2)


params = {
    "encoder": encoder.params,
    "weights": jnp.zeros(encoder.num_features),
    "bias": jnp.asarray(heights[train].mean()),
}

# %% [markdown]
# ## A step
#
# The encoder learns ten times more slowly than the new weights.

# %%
optimiser = optax.partition(
    {"encoder": optax.adam(1e-4), "head": optax.adam(1e-3)},
    {"encoder": "encoder", "weights": "head", "bias": "head"},
)


@jax.jit
def step(params, state, batch, targets):
    value, gradient = jax.value_and_grad(loss)(params, batch, targets)
    updates, state = optimiser.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


state = optimiser.init(params)
rng = np.random.default_rng(0)
for number in range(100):
    rows = rng.choice(train, 64)
    params, state, value = step(params, state, images[rows], heights[rows])
    if number % 20 == 19:
        print(f"step {number + 1}: loss {value:.5f}")

# %%
error = np.abs(np.asarray(jax.jit(predict)(params, images[test])) - heights[test])
usual = np.abs(heights[train].mean() - heights[test])
print(f"mean error {28 * error.mean():.2f} pixels")
print(f"of predicting the mean: {28 * usual.mean():.2f} pixels")
assert error.mean() < usual.mean()

# %% [markdown]
# BatchNorm's moments are in `encoder.stats` and stay as they are: the encoder is a
# function of `params` alone. Next: [features](../guide/features.md), [export to other
# programs](../guide/export.md).
