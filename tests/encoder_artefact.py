"""A small encoder on disk, as pretraining would leave it; for several test modules."""

import numpy as np
from flax import nnx

from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.checkpoints.weights import write_encoder
from afterimage.data import Preprocessing
from afterimage.models import ModelConfig, Network, build_encoder


def manifest_of(config: ModelConfig) -> dict:
    size, channels = config.image_size, config.channels
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    return {
        "model": config.to_dict(),
        "preprocessing": Preprocessing(size, mean, std, channels).to_dict(),
        "feature_info": [],
        "data": {"name": "synthetic", "fingerprint": "0"},
        "trained": {"steps": 3},
    }


def write(folder, name="conv", image_size=(16, 16), channels=3, **options):
    """Write an encoder of the model named, seeded; returns its config."""
    options.setdefault("width", 0.25)
    config = ModelConfig(name, image_size=image_size, channels=channels, **options)
    module = nnx.eval_shape(lambda: build_encoder(config, rngs=nnx.Rngs(0)))
    _, params, stats = Network.create(module)
    rng = np.random.default_rng(1)
    params, stats = (filled(tree, rng) for tree in (params, stats))
    write_encoder(folder, params, stats, manifest_of(config))
    return config


def filled(tree: dict, rng: np.random.Generator) -> dict:
    """Random numbers for every leaf, as a seed gives them."""
    # NumPy's numbers: initialising eagerly would compile a program for every leaf.
    flat = flatten(tree)
    for path, leaf in flat.items():
        value = rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            value /= np.sqrt(leaf.size / leaf.shape[-1])
        elif path.endswith(("scale", "var")):
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        flat[path] = value.astype(np.float32)
    return unflatten(flat)


def pictures(n, size=(16, 16), channels=3, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *size, channels), np.uint8)


def shades(file) -> str:
    """Write 42 + 18 pictures of three classes; their data spec."""
    labels = np.arange(60) % 3
    # Mean colour is what tells the classes apart: pixels show it as well as features.
    images = (pictures(60) // 4 + 60 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(
        file,
        x_train=images[:42],
        y_train=labels[:42],
        x_test=images[42:],
        y_test=labels[42:],
    )
    return f"npz:{file}"
