"""Pseudo-labels: learns from confident predictions for images without labels.

FixMatch: ℓ(i) = [max_c q_c ≥ τ] · −log p_k, k = argmax_c q_c, with q the probabilities
of the weakly augmented image, without gradient, p those of the same image with strong
augmentation, τ the confidence (Sohn et al. 2020, "FixMatch: simplifying semi-supervised
learning with consistency and confidence", eq. 4). The mean is over all images: with few
confident predictions the term is small. There are two optional additions:

- Distribution alignment: q is first moved towards the class frequencies (`aligned`), so
  that no class dies out.
- Propagation: for a share of the steps a prediction counts only if label propagation
  over neighbours in the pretrained features agrees (`_propagation.py`). Neighbours may
  still separate classes that a classifier trained on few labels confuses.

The metric `pseudo_labels_sure` is the share of images that count.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afterimage.fields import above_0, at_least_1
from afterimage.finetune.data import labelled
from afterimage.finetune.method import METHODS, Method, Model, Stream
from afterimage.models.classifier import HEAD
from afterimage.training.options import Augmentation
from afterimage.training.stage import Context, Term, TermResult, View

COUNTED = 0.25
"""The share of the steps after which the predicted frequencies are fixed."""
REST, OF_TARGET = "rest", "target"
STREAM, STRONG = "unlabelled", "strong"


@METHODS.add("pseudo-labels")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PseudoLabels(Method):
    """Learns from confident predictions for images without labels (FixMatch)."""

    streams: ClassVar[tuple[str, ...]] = (STREAM, STRONG)

    images: str = REST
    """The images without labels. rest: all training images of data, with or without
    labels; target: those of the target; or other images, in the same form as data."""

    ratio: int = 1
    """Unlabelled images per labelled image in each step: FixMatch's mu, 7 in the paper.
    Steps take proportionally longer; batch_size counts only labelled images."""

    weight: float = 1.0
    """Weight relative to the loss of the labels."""

    weak_augment: Augmentation | None = None
    """Augmentation of the images for prediction; the same images under strong_augment
    are then trained on these predictions. Weaker augmentation gives more correct
    predictions. Default: augment."""

    strong_augment: Augmentation = "strong"
    """Augmentation of the images for training; with stronger augmentation there is more
    to learn from them. strong-affine also scales them."""

    confidence: float = 0.95
    """Minimum probability of a confident prediction."""

    distribution_alignment: bool = False
    """Before confidence is checked, raise the probabilities of classes that are
    predicted less often than their frequency, and lower the others, so that no class
    disappears. Use it if the unlabelled images have the class frequencies of the
    labelled ones, or with alignment_frequencies=predicted."""

    alignment_momentum: float = 0.0
    """Share of earlier steps in the mean prediction that distribution alignment uses.
    0.99 averages about a hundred steps, which is far less noisy than one batch; 0: only
    the current step."""

    alignment_frequencies: Literal["labelled", "predicted"] = "labelled"
    """The class frequencies that distribution alignment aims for. labelled: those of
    the labelled images; predicted: the running mean of the predictions
    (alignment_momentum) after a quarter of a phase's steps, for unlabelled images with
    other class frequencies. Until then nothing is learned from these images."""

    propagation: float = 0.0
    """During this share of the steps, a prediction counts only if label propagation
    agrees: before the first step, labels are propagated to near neighbours in the
    pretrained features. 0.5 keeps groups of images that have no label from being
    learned as another class; the features must separate these groups."""

    def problems(self, config):
        found = []
        if self.images == OF_TARGET and config.target is None:
            found.append("images='target' needs a target domain: set --target")
        if not 0 <= self.propagation <= 1:
            found.append(f"propagation={self.propagation}: must be in [0, 1]")
        found += at_least_1(self, "ratio") + above_0(self, "weight")
        if not 0 <= self.confidence < 1:
            found.append(f"confidence={self.confidence}: must be in [0, 1)")
        if not 0 <= self.alignment_momentum < 1:
            found.append(
                f"alignment_momentum={self.alignment_momentum}: must be in [0, 1)"
            )
        if self.alignment_momentum and not self.distribution_alignment:
            found.append(
                f"alignment_momentum={self.alignment_momentum}: applies only with "
                "distribution_alignment"
            )
        if self.alignment_frequencies == "predicted" and not self.alignment_momentum:
            found.append(
                "alignment_frequencies='predicted' needs distribution_alignment, and "
                "alignment_momentum to average over many steps, e.g. 0.99"
            )
        return found

    def open_streams(self, data, opener):
        """`rest` is the training split without the images that choose the step.

        With all labels, the images held out for the test are left out too.
        """
        if self.images == REST:
            images, labels = data.splits.train, data.labels
            held = set(labels.validation.ids if labels.validation is not None else ())
            of_train = labels.held_out is not None and not opener.config.limited
            if labels.test is not None and of_train:
                held |= set(labels.test.ids)
            if held:
                kept = [i for i, name in enumerate(images.ids) if name not in held]
                images = images.subset(kept)
        elif self.images == OF_TARGET:
            images = data.target_images
        else:
            images = opener(self.images).train
        images = dataclasses.replace(images, labels=None, tasks={})
        stream = Stream(
            images, self.ratio, self.weak_augment, {STRONG: self.strong_augment}
        )
        return {STREAM: stream}

    def state(self, setup):
        kept: dict[str, Any] = {}
        if self.alignment_momentum:
            frequencies = setup.data.labels.frequencies()
            kept["predicted"] = jnp.asarray(frequencies)
            if self.alignment_frequencies == "predicted":
                # An array of its own: one buffer cannot be donated twice.
                kept["frequencies"] = jnp.asarray(frequencies)
        if self.propagation:
            count = len(setup.data.streams[STREAM].images)
            kept["propagated"] = jnp.zeros(count, jnp.int32)
        return kept or None

    def measure(self, setup, model, say):
        """The class of every image without a label, by label propagation."""
        kept = model[1].get(self.name)
        if not self.propagation:
            return kept
        # Imported here: only propagation needs a graph.
        from afterimage.finetune.methods._propagation import propagated
        from afterimage.finetune.neighbours import PrincipalFeatures

        images, known = setup.data.streams[STREAM].images, setup.data.labels
        some = labelled(known.train)
        assert some is not None
        say(f"Propagating the labels to the neighbours of {len(images):,} images ...")

        def maps(model: Model, images: Array) -> list[Array]:
            pixels = setup.classifier.preprocessing.normalise(images)
            return setup.classifier.maps(*model, pixels)[0]

        project = PrincipalFeatures(maps, model, setup.runner, setup.config.seed)
        classes = propagated(project, some, images, len(known.class_names))
        reached = (classes >= 0).sum()
        say(
            f"{len(some):,} labels were propagated to {reached:,} of {len(images):,} "
            "images"
        )
        return {**kept, "propagated": jnp.asarray(classes, jnp.int32)}

    def providers(self, setup, known, now):
        kept, found = now.stats.get(self.name, {}), {}
        if "propagated" in kept:
            index = now.batch[f"{STREAM}/index"]
            found[f"{STREAM}/propagated"] = lambda _: jnp.take(
                kept["propagated"], index
            )
        if "predicted" in kept:
            found |= self._running(kept, known["stats/next"])
        return found

    def _running(
        self, kept: Mapping[str, Any], following: Callable[[Context], Any]
    ) -> dict[str, Callable[[Context], Any]]:
        """The running mean of the predictions, and its value when learning began.

        Both are for this step's terms and for the next step.
        """
        names = {"predicted": f"{STREAM}/predicted"}

        def mean(ctx: Context) -> Array:
            guess = jax.lax.stop_gradient(ctx[f"{STREAM}/logits/{HEAD}"])
            now = jax.nn.softmax(guess).mean(0)
            share = self.alignment_momentum
            return share * kept["predicted"] + (1 - share) * now

        def frequencies(ctx: Context) -> Array:
            counting = ctx["progress"] < COUNTED
            return jnp.where(counting, ctx[names["predicted"]], kept["frequencies"])

        found: dict[str, Callable[[Context], Any]] = {names["predicted"]: mean}
        if "frequencies" in kept:
            names["frequencies"] = f"{STREAM}/frequencies"
            found[names["frequencies"]] = frequencies

        def after(ctx: Context) -> Any:
            own = {**kept, **{part: ctx[name] for part, name in names.items()}}
            return {**following(ctx), self.name: own}

        return {**found, "stats/next": after}

    def terms(self, setup, phase=0):
        aligned = self.distribution_alignment
        term = pseudo_labels(
            self.weight,
            self.confidence,
            frequencies=setup.data.labels.frequencies() if aligned else None,
            running=self.alignment_momentum > 0,
            counted=self.alignment_frequencies == "predicted",
            propagation=self.propagation,
        )
        return [term]


def pseudo_labels(
    weight: float = 1.0,
    confidence: float = 0.95,
    *,
    frequencies: Sequence[float] | None = None,
    running: bool = False,
    counted: bool = False,
    propagation: float = 0.0,
) -> Term:
    """The term of FixMatch.

    With class `frequencies`, q is first `aligned` to them, using the mean of these
    images' q or, with `running`, `unlabelled/predicted`. With `counted`, q is aligned
    to `unlabelled/frequencies` instead, and no image counts while these are being
    measured (`progress` below COUNTED). While `progress` is below `propagation`, k must
    also equal `unlabelled/propagated`.
    """
    reads = [f"{STREAM}/logits/{HEAD}", f"{STRONG}/logits/{HEAD}"]
    if running:
        reads.append(f"{STREAM}/predicted")
    if counted:
        reads.append(f"{STREAM}/frequencies")
    if propagation:
        reads.append(f"{STREAM}/propagated")
    if counted or propagation:
        reads.append("progress")

    def fn(view: View) -> TermResult:
        guess = jax.nn.softmax(jax.lax.stop_gradient(view[reads[0]]))
        if frequencies is not None:
            mean = view["unlabelled/predicted"] if running else guess.mean(0)
            aim = view["unlabelled/frequencies"] if counted else frequencies
            guess = aligned(guess, jnp.asarray(aim, guess.dtype), mean)
        sure = guess.max(-1) >= confidence
        if counted:
            sure &= view["progress"] >= COUNTED
        logp = jax.nn.log_softmax(view[reads[1]])
        label = guess.argmax(-1)
        if propagation:
            sure &= (label == view["unlabelled/propagated"]) | (
                view["progress"] >= propagation
            )
        each = -jnp.take_along_axis(logp, label[:, None], axis=1)[:, 0]
        return jnp.where(sure, each, 0.0), {"pseudo_labels_sure": sure.mean()}

    return Term(name="pseudo_labels", fn=fn, reads=tuple(reads), weight=weight)


def aligned(
    guess: Float[Array, "b c"],
    frequencies: Float[Array, " c"],
    mean: Float[Array, " c"],
) -> Float[Array, "b c"]:
    """Distribution alignment: q_ic π_c / mean_c, normalised over the classes.

    A class that is predicted more rarely than its frequency π gains, so that no class
    dies out (Berthelot et al. 2020, "ReMixMatch", §3.1). There the `mean` of the
    predictions is over the last 128 batches: the noise of one batch exceeds the effect
    of a class that is often, but not always, mistaken for another.
    """
    ratio = frequencies / jnp.maximum(mean, 1e-6)
    weighed = guess * ratio[None]
    return weighed / weighed.sum(-1, keepdims=True)
