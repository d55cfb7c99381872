"""What fine-tuning does with an encoder and its heads: terms read it, files keep it."""

import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from afterimage import runtime
from afterimage.checkpoints.weights import write_classifier, write_encoder
from afterimage.classifier import NEIGHBOURS
from afterimage.data.augmentations import Augment
from afterimage.evaluation.nearest import Reference
from afterimage.models.classifier import ClassifierNetwork, HeadConfig, Maps, Tree
from afterimage.outputs import Outputs
from afterimage.training.stage import Context


def providers(
    classifier: ClassifierNetwork,
    augment: Augment,
    stream: str = "train",
    of: str | None = None,
) -> Callable[..., Mapping[str, Callable[[Context], Any]]]:
    """What one stream of images provides to the terms of a stage.

    The labelled stream `train` takes its images from `batch["image"]`, any other
    from `batch["NAME/image"]`; each draws its own augmentation. With `of`, the
    stream is another view of the images of the stream `of`.
    """
    prefix = "" if stream == "train" else f"{stream}/"
    source = f"{of}/" if of is not None else prefix
    heads = classifier.heads

    def provide(params, stats, batch, key, step, trainable):
        whole = batch.get(f"{source}aspect")

        def view(_: Context) -> Array:
            pixels = batch[f"{source}image"].astype(jnp.float32) / 255
            own = jax.random.fold_in(key, zlib.crc32(prefix.encode()))
            aspect = {} if whole is None else {"aspect": whole}
            return augment(own if prefix else key, pixels, **aspect)

        def image(ctx: Context) -> Array:
            return classifier.preprocessing.normalise(ctx[f"{stream}/view"])

        def forward(ctx: Context) -> tuple[Maps, Tree]:
            train = "encoder" in trainable
            return classifier.maps(params, stats, ctx[f"{stream}/image"], train=train)

        def following(ctx: Context) -> Tree:
            if not ctx.read(f"{stream}/forward"):
                return stats
            return {**stats, "encoder": ctx[f"{stream}/forward"][1]}

        def features(head: str) -> Callable[[Context], Array]:
            return lambda ctx: classifier.head_features(
                params, stats, ctx[f"{stream}/maps"], head
            )

        def logits(head: str) -> Callable[[Context], Array]:
            network, own = classifier.heads[head][1], params["heads"][head]
            return lambda ctx: network.apply(own, {}, ctx[f"{stream}/features/{head}"])[
                0
            ]

        return {
            **_labels(batch, stream, prefix),
            "params": lambda _: params,
            "step": lambda _: step,
            "stats/next": following,
            f"{stream}/view": view,
            f"{stream}/image": image,
            f"{stream}/forward": forward,
            f"{stream}/maps": lambda ctx: ctx[f"{stream}/forward"][0],
            f"{stream}/features": lambda ctx: classifier.features(
                params, stats, ctx[f"{stream}/maps"]
            ),
            **{f"{stream}/features/{head}": features(head) for head in heads},
            **{f"{stream}/logits/{head}": logits(head) for head in heads},
        }

    return provide


def _labels(
    batch: Mapping[str, Any], stream: str, prefix: str
) -> dict[str, Callable[[Context], Any]]:
    """`STREAM/label`, and `STREAM/label/TASK` for any further tasks."""
    own = f"{prefix}label"
    return {
        f"{stream}/label{key.removeprefix(own).replace('.', '/')}": (
            lambda _, key=key: batch[key]
        )
        for key in batch
        if key == own or key.startswith(f"{own}.")
    }


def standardise(
    classifier: ClassifierNetwork,
    params: Tree,
    stats: Tree,
    batches: Iterable[Mapping[str, np.ndarray]],
    heads: Sequence[str],
) -> Tree:
    """`stats` with the feature mean and deviation of `heads` over these batches.

    Batches have `image` (uint8) and `mask`. Deviations are clipped from below at a
    hundredth of the largest, so that nearly constant features are not blown up.
    """
    kinds = {name: classifier.heads[name][0].features for name in heads}

    @runtime.jit
    def moments(params, stats, images, mask):
        maps, _ = classifier.maps(
            params, stats, classifier.preprocessing.normalise(images)
        )
        found = {}
        for name, kind in kinds.items():
            x = classifier.features(params, stats, maps, kind)
            weight = mask.astype(x.dtype)[:, None]
            found[name] = (x * weight).sum(0), (x**2 * weight).sum(0)
        return found

    total, count = None, 0
    for batch in batches:
        found = moments(params, stats, batch["image"], batch["mask"])
        # Sum in float64: large squares are subtracted below.
        found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        total = found if total is None else jax.tree.map(np.add, total, found)
        count += int(np.asarray(batch["mask"]).sum())
    assert total is not None
    found = dict(stats["heads"])
    for name, (first, second) in total.items():
        mean = first / count
        std = np.sqrt(np.maximum(second / count - mean**2, 0.0))
        std = np.maximum(std, 0.01 * std.max()) if std.max() > 0 else np.ones_like(std)
        found[name] = {
            **found[name],
            "mean": jnp.asarray(mean, jnp.float32),
            "std": jnp.asarray(std, jnp.float32),
        }
    return {**stats, "heads": found}


def head_entry(
    head: HeadConfig, class_names: Sequence[str], outputs: Outputs | None = None
) -> dict[str, Any]:
    """One head in a classifier's manifest; `outputs` where they are not classes."""
    entry = outputs.entry() if outputs is not None else None
    more = {} if entry is None else {"outputs": entry}
    return {**head.to_dict(), "class_names": list(class_names), **more}


def write_artefacts(
    run: pathlib.Path,
    params: Tree,
    stats: Tree,
    manifest: Mapping[str, Any],
    heads: Mapping[str, Any],
    references: Mapping[str, Reference] = {},
) -> None:
    """Writes `encoder/` and `classifier/`: the encoder alone, and with these heads.

    `references` are the features of training images by head, for `Classifier`.

    Anything else that was trained (a discriminator) or kept (a teacher) is left out.
    """
    write_encoder(run / "encoder", params["encoder"], stats["encoder"], manifest)
    kept = [
        {
            "encoder": tree["encoder"],
            "heads": {name: tree["heads"][name] for name in heads},
        }
        for tree in (params, stats)
    ]
    if references:
        kept[1][NEIGHBOURS] = {
            name: {"features": one.vectors, "usual": one.usual}
            for name, one in references.items()
        }
    manifest = {**manifest, "heads": dict(heads)}
    write_classifier(run / "classifier", kept[0], kept[1], manifest)
