"""Streams: the labelled one, and an unlabelled one of a target domain beside it.

Every stream gives as many images a step (the unlabelled one `--unlabelled-ratio` times
as many) and names its values by itself: `train/features/classes`,
`target/features/classes`. Nothing of a stream is computed
that no term reads.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from afterimage.data import ImageSet, Preprocessing, Splits
from afterimage.data.augmentations import Augment
from afterimage.data.augmentations.tones import strong as strong_view
from afterimage.errors import UserError
from afterimage.finetune.anchors import anchor_rules
from afterimage.finetune.classifier import Classifier
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.domains.composing import COMPOSERS, strength
from afterimage.finetune.labels import HEAD, Chosen, labelled, matched
from afterimage.finetune.source import open_for
from afterimage.finetune.teacher import Teacher
from afterimage.finetune.terms.consistency import COUNTED
from afterimage.training.terms import Context

TRAIN, TARGET = "train", "target"
UNLABELLED, STRONG = "unlabelled", "strong"
REST, OF_TARGET = "rest", "target"


@dataclasses.dataclass(frozen=True)
class Target:
    """Images of the target domain by their use."""

    images: ImageSet
    """What training sees: without labels."""
    oracle: ImageSet | None
    """The labelled ones among them: for the oracle's choice of a step, nothing else."""
    test: ImageSet | None
    """The labelled test split."""
    name: str
    fingerprint: str


def open_target(
    config: FinetuneConfig, stored: Preprocessing, class_names: tuple[str, ...]
) -> Target | None:
    """The target domain at the encoder's shape; None where no target is given.

    Raises DataError for images of another shape, or labels of classes that the source
    domain does not have.
    """
    if config.target is None:
        return None
    splits = open_for(config, stored, config.target)
    known, test = labelled(splits.train), labelled(splits.test)
    return Target(
        images=dataclasses.replace(splits.train, labels=None),
        oracle=matched(known, class_names) if known is not None else None,
        test=matched(test, class_names) if test is not None else None,
        name=splits.train.name,
        fingerprint=splits.train.fingerprint,
    )


def open_unlabelled(
    config: FinetuneConfig, stored: Preprocessing, splits: Splits, chosen: Chosen
) -> ImageSet | None:
    """The images of `config.unlabelled` without labels; None where none are wanted.

    `rest` is the training split without the images that choose the step, `target` the
    training images of `config.target`.
    """
    if config.unlabelled is None:
        return None
    if config.unlabelled == REST:
        images = splits.train
        if chosen.validation is not None:
            held = set(chosen.validation.ids)
            kept = [i for i, name in enumerate(images.ids) if name not in held]
            images = images.subset(kept)
    else:
        named = config.unlabelled
        spec = config.target if named == OF_TARGET else named
        images = open_for(config, stored, spec).train
    return dataclasses.replace(images, labels=None, tasks={})


def supply(
    classifier: Classifier,
    augment: Augment,
    *,
    streams: Sequence[str] = (TRAIN,),
    weak: Augment | None = None,
    strong: Augment = strong_view,
    momentum: float = 0.0,
    statistics: str | None = None,
    teacher: Teacher | None = None,
    composing: str = "none",
) -> Callable[..., Mapping[str, Callable[[Context], Any]]]:
    """What all streams, the weights of examples and the anchors supply to the terms.

    Images without labels are predicted under the `weak` augmentation, that of the
    others by default, and learned from under the `strong` one; `stats["predicted"]`
    keeps the running mean of what is predicted, `stats["frequencies"]` what it was when
    that began to be learned from, `stats["propagated"]` the class that
    label propagation gave to each.

    With `composing` the labelled images are composed with the target's, after the
    augmentation of both.

    `statistics` says whose moments an encoder with BatchNorm keeps: `source` and
    `target` normalise each stream by its own batch, `joint` runs both as one batch
    (a forward pass of either then computes both), `frozen` none. Without such layers
    all four are the same function.
    """
    parts = {stream: classifier.supply(augment, stream) for stream in streams}
    if UNLABELLED in parts:
        parts[UNLABELLED] = classifier.supply(weak or augment, UNLABELLED)
        parts[STRONG] = classifier.supply(strong, STRONG, of=UNLABELLED)

    def rules(params, stats, batch, key, step, moving):
        if statistics == "frozen":
            moving = moving - {"encoder"}
        found: dict[str, Callable[[Context], Any]] = {}
        last = TARGET if statistics == "target" else TRAIN
        for stream in sorted(parts, key=lambda name: name == last):
            found |= parts[stream](params, stats, batch, key, step, moving)
        if composing != "none":
            found[f"{TRAIN}/view"] = _composed(composing, found[f"{TRAIN}/view"], key)
        if statistics == "joint" and "encoder" in moving:
            found |= _joint(classifier, params, stats, tuple(parts))
        found |= _looked_up(stats, batch)
        if "anchors" in stats:
            found |= anchor_rules(classifier, stats["anchors"], tuple(parts))
        if teacher is not None:
            found |= teacher.rules(stats["teacher"])
        if "predicted" in stats:
            following = found["stats/next"]
            found |= _predicted(stats, momentum, following)
        return found

    return rules


def _looked_up(
    stats: Mapping[str, Any], batch: Mapping[str, Any]
) -> dict[str, Callable[[Context], Any]]:
    """What `stats` holds of every image, of those in the batch."""
    places = {
        f"{TRAIN}/weight": ("examples", "weight", "index"),
        f"{UNLABELLED}/propagated": ("propagated", "class", f"{UNLABELLED}/index"),
    }
    return {
        name: lambda _, of=stats[kept][what], at=index: jnp.take(of, batch[at])
        for name, (kept, what, index) in places.items()
        if kept in stats
    }


def _predicted(
    stats: Mapping[str, Any], momentum: float, following: Callable[[Context], Any]
) -> dict[str, Callable[[Context], Any]]:
    """The running mean of the predictions of images without labels, and what it was
    when they began to be learned from, for this step's terms and for the next step."""
    names = {"predicted": f"{UNLABELLED}/predicted"}

    def mean(ctx: Context) -> Array:
        guess = jax.lax.stop_gradient(ctx[f"{UNLABELLED}/logits/{HEAD}"])
        now = jax.nn.softmax(guess).mean(0)
        return momentum * stats["predicted"] + (1 - momentum) * now

    def frequencies(ctx: Context) -> Array:
        counting = ctx["progress"] < COUNTED
        return jnp.where(counting, ctx[names["predicted"]], stats["frequencies"])

    found: dict[str, Callable[[Context], Any]] = {names["predicted"]: mean}
    if "frequencies" in stats:
        names["frequencies"] = f"{UNLABELLED}/frequencies"
        found[names["frequencies"]] = frequencies

    def kept(ctx: Context) -> Any:
        return {**following(ctx), **{part: ctx[name] for part, name in names.items()}}

    return {**found, "stats/next": kept}


def _composed(
    name: str, augmented: Callable[[Context], Array], key: Array
) -> Callable[[Context], Array]:
    """The rule of the labelled images' view, composed with the target's."""
    own = jax.random.fold_in(key, zlib.crc32(b"composing"))

    def view(ctx: Context) -> Array:
        most = strength(ctx["progress"])
        return COMPOSERS[name](own, augmented(ctx), ctx[f"{TARGET}/view"], most)

    return view


def _joint(
    classifier: Classifier, params: Any, stats: Any, streams: tuple[str, ...]
) -> dict[str, Callable[[Context], Any]]:
    """One forward pass in training mode of all streams as a single batch."""

    def forward(ctx: Context) -> Any:
        images = jnp.concatenate([ctx[f"{stream}/image"] for stream in streams])
        return classifier.maps(params, stats, images, train=True)

    def share(number: int) -> Callable[[Context], Any]:
        def rule(ctx: Context) -> Any:
            maps, after = ctx["joint/forward"]
            sizes = [len(ctx[f"{stream}/image"]) for stream in streams]
            start = sum(sizes[:number])
            return [m[start : start + sizes[number]] for m in maps], after

        return rule

    return {
        "joint/forward": forward,
        **{f"{stream}/forward": share(n) for n, stream in enumerate(streams)},
    }


def check_statistics(config: FinetuneConfig, stats: Mapping[str, Any]) -> None:
    """Raises UserError where BatchNorm's moments would be anybody's: say whose."""
    several = bool(config.align) or config.unlabelled is not None
    if several and config.domain_statistics is None and jax.tree.leaves(stats):
        raise UserError(
            "This encoder keeps normalisation statistics (BatchNorm), and two streams "
            "of images would share them: give --domain-statistics source, target, "
            "joint or frozen (joint where all are of one domain)"
        )
