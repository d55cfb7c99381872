"""A small classifier on disk, as fine-tuning would leave it; for several modules."""

import pathlib

import jax
import numpy as np

from afterimage.data import Preprocessing
from afterimage.evaluation.nearest import Reference
from afterimage.finetune.classifier import head_entry, write_artefacts
from afterimage.models import ModelConfig
from afterimage.models.classifier import ClassifierNetwork, HeadConfig
from tests.encoder_artefact import filled, manifest_of


def write(folder, seed=0, heads=None, outputs=None, **options):
    """Write a classifier with random heads; returns the folder's path.

    `heads` maps each task to its class names, `outputs` each task of another kind to
    its outputs; `options` go to HeadConfig.
    """
    heads = heads or {"classes": ("a", "b", "c")}
    config = ModelConfig("conv", image_size=(16, 16), channels=3, width=0.25)
    made = {name: HeadConfig(len(names), **options) for name, names in heads.items()}
    manifest = manifest_of(config)
    preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
    _, params, stats = ClassifierNetwork.create(
        config, made, preprocessing, fresh=False
    )
    params["encoder"] = filled(params["encoder"], np.random.default_rng(1))
    rng = np.random.default_rng(seed)

    def drawn(leaf):
        return rng.normal(size=leaf.shape).astype(np.float32)

    params["heads"] = jax.tree.map(drawn, params["heads"])
    known = {}
    for name, one in stats["heads"].items():
        one |= {"mean": drawn(one["mean"]), "std": 1 + abs(drawn(one["std"]))}
        width = one["kept"].size if "kept" in one else one["mean"].size
        known[name] = Reference.measure(rng.normal(size=(30, width)))
    entries = {
        name: head_entry(made[name], names, (outputs or {}).get(name))
        for name, names in heads.items()
    }
    write_artefacts(pathlib.Path(folder), params, stats, manifest, entries, known)
    return str(folder)
