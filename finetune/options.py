"""Settings of fine-tuning beyond modes: anchors, tasks, other images, a teacher."""

import dataclasses
import re
from typing import Any, Literal

from afterimage.training.options import Augmentation

_RESERVED = ("classes", "source", "train", "target")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnchorOptions:
    """Staying near the source model."""

    l2_sp: float = 0.0
    """L2-SP: weight of half the squared distance of the encoder's parameters from
    where they began; 0.01 is customary. Needs --weight-decay 0."""

    l2_sp_fisher: bool = False
    """Weigh each parameter of L2-SP by its Fisher information, which needs a source
    with a classifier (an earlier fine-tuning run)."""

    l2_head: float = 0.0
    """Weight of half the squared size of the heads, beside L2-SP; 0.01 is customary."""

    kl: float = 0.0
    """Weight of the divergence from the source model's own predictions; 1 is customary.
    Needs a source with a classifier."""

    kl_temperature: float = 2.0
    """Both predictions are softened by this temperature first."""

    delta: float = 0.0
    """DELTA: weight of the squared distance of the feature maps from the source's."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = [
            f"{name}={getattr(self, name)}: at least 0"
            for name in ("l2_sp", "l2_head", "kl", "delta")
            if not getattr(self, name) >= 0
        ]
        if not self.kl_temperature > 0:
            found.append(f"kl_temperature={self.kl_temperature}: more than 0")
        if self.l2_sp_fisher and not self.l2_sp:
            found.append("l2_sp_fisher weighs l2_sp, which is 0: give l2_sp=0.01")
        return found

    @property
    def anchors(self) -> list[str]:
        """The settings in use that need the source model to stay at hand."""
        return [name for name in ("l2_sp", "kl", "delta") if getattr(self, name)]

    @property
    def needs_source_head(self) -> list[str]:
        """The settings in use that need a source with a classifier."""
        return [name for name in ("l2_sp_fisher", "kl") if getattr(self, name)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Several questions about the same images."""

    tasks: tuple[str, ...] = ()
    """Further tasks on the same encoder, each with a head of its own: columns of a
    csv file, or label arrays y_train_NAME in an npz file. An image may lack the label
    of any task (an empty cell, -1 or NaN)."""

    task_weighting: Literal["fixed", "uncertainty", "pcgrad"] = "fixed"
    """fixed: the sum of the losses; uncertainty: each task's weight is learned, noisy
    ones weigh less; pcgrad: where two tasks' gradients on the encoder conflict, each
    gives up what hurts the other."""

    task_weights: tuple[float, ...] = ()
    """Weights of the labels' own task and of each of --tasks. Default: 1 each."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = []
        if not self.tasks and (self.task_weights or self.task_weighting != "fixed"):
            found.append(
                "task_weights and task_weighting need further tasks: give tasks"
            )
        elif self.task_weights and len(self.task_weights) != len(self.tasks) + 1:
            found.append(
                f"task_weights has {len(self.task_weights)} numbers for "
                f"{len(self.tasks) + 1} tasks: give one for the labels' own and for "
                "each of tasks"
            )
        if not all(0 <= weight < float("inf") for weight in self.task_weights):
            found.append(f"task_weights={self.task_weights}: at least 0")
        if self.task_weights and self.task_weighting == "uncertainty":
            found.append("task_weights: task_weighting='uncertainty' learns them")
        if len(set(self.tasks)) < len(self.tasks):
            found.append(f"tasks={self.tasks}: each name once")
        found += [
            f"tasks: {name!r} cannot be a name; use letters, digits, - and _, and none "
            f"of {', '.join(_RESERVED)}"
            for name in self.tasks
            if name in _RESERVED or not re.fullmatch(r"[\w-]+", name)
        ]
        return found


Distillation = Literal["logits", "features", "relational"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlabelledOptions:
    """Further images, of which no label is known."""

    unlabelled: str | None = None
    """Images that are trained on without labels: the classifier's sure predictions are
    to hold where the image is changed strongly. rest: all training images of --data,
    whatever --labels leaves of their labels; target: those of --target; or others, as
    --data names them."""

    unlabelled_ratio: int = 1
    """Images without labels a step for each labelled one: FixMatch's mu, 7 there. Such
    a step takes as much longer; --batch-size counts the labelled ones."""

    unlabelled_weight: float = 1.0
    """Weight of that term beside the labelled images' loss."""

    weak_augment: Augmentation | None = None
    """Random changes of the images that are predicted, as in --augment; their labels
    are learned where the same images are changed strongly. The gentler, the more of
    the predictions are right. Default: those of --augment."""

    strong_augment: Augmentation = "strong"
    """Random changes of the images that learn these labels: the stronger, the more
    there is to learn from an image whose label is already predicted. strong-affine
    also draws them larger and smaller."""

    confidence: float = 0.95
    """A prediction counts as sure from this probability on."""

    distribution_alignment: bool = False
    """Predictions of classes that are predicted more rarely than the labelled images
    have them are raised, those of others lowered, before they count as sure: no class
    dies out. For unlabelled images whose classes are about as frequent as the labelled
    ones', or with alignment_frequencies=predicted."""

    alignment_momentum: float = 0.0
    """Share of the earlier steps in the mean of the predictions which
    --distribution-alignment goes by: 0.99 for that of about a hundred steps, which
    shows what the mean of one batch hides; 0: this step's alone."""

    alignment_frequencies: Literal["labelled", "predicted"] = "labelled"
    """What --distribution-alignment takes for the frequencies of the classes. labelled:
    those of the labelled images; predicted: what is predicted of the others, in the
    running mean (--alignment-momentum) at a quarter of a phase's steps, until when
    nothing is learned from these predictions. For unlabelled images whose classes are
    of other frequencies."""

    propagation: float = 0.0
    """For this share of the steps a prediction counts only where label propagation says
    the same: the labels spread over near neighbours in the pretrained features, once
    before the first step. 0.5 keeps a kind of image that the few labels lack from being
    learned as another class; needs an encoder that tells such kinds apart."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = []
        if not 0 <= self.propagation <= 1:
            found.append(f"propagation={self.propagation}: in [0, 1]")
        if self.unlabelled_ratio < 1:
            found.append(f"unlabelled_ratio={self.unlabelled_ratio}: at least 1")
        if self.unlabelled_weight <= 0:
            found.append(f"unlabelled_weight={self.unlabelled_weight}: more than 0")
        if not 0 <= self.confidence < 1:
            found.append(f"confidence={self.confidence}: in [0, 1)")
        if not 0 <= self.alignment_momentum < 1:
            found.append(f"alignment_momentum={self.alignment_momentum}: in [0, 1)")
        if self.alignment_momentum and not self.distribution_alignment:
            found.append(
                f"alignment_momentum={self.alignment_momentum}: only with "
                "distribution_alignment"
            )
        if self.alignment_frequencies == "predicted" and not self.alignment_momentum:
            found.append(
                "alignment_frequencies='predicted' is a mean of many steps: give "
                "distribution_alignment and alignment_momentum, 0.99 for instance"
            )
        if self.unlabelled is None:
            found += [
                f"{name}={getattr(self, name)}: only with unlabelled"
                for name in (
                    "unlabelled_ratio",
                    "unlabelled_weight",
                    "weak_augment",
                    "strong_augment",
                    "confidence",
                    "distribution_alignment",
                    "propagation",
                )
                if not is_default(self, name)
            ]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """Learning from a finished classifier, the teacher."""

    teacher: str | None = None
    """Distillation: a finished fine-tuning run whose classifier is learned from, of any
    architecture, at the same image size. It sees the same augmented images."""

    distil: tuple[Distillation, ...] = ()
    """What of the teacher is learned. logits: its softened predictions; features: what
    its head reads, through a learned linear map; relational: distances and angles
    between images in that space. Default with a teacher: logits."""

    distil_weight: tuple[float, ...] = ()
    """One weight for each of --distil. Default: 1 each, relational 25."""

    distil_temperature: float = 4.0
    """Teacher and student predictions are softened by this temperature."""

    label_weight: float = 1.0
    """Weight of the cross-entropy with the labels beside a teacher; 0: the teacher
    alone."""

    model: str | None = None
    """Another architecture than the one in --from, for mode scratch: e.g. conv."""

    width: float | None = None
    """Channels of every stage, times this, for mode scratch. Default: that of --from,
    or 1 with --model."""

    def problems(self) -> list[str]:
        """Every setting that cannot work, in one list."""
        found = []
        if self.teacher is None:
            names = ("distil", "distil_weight", "distil_temperature", "label_weight")
            found += [
                f"{name}={getattr(self, name)!r} needs somebody to learn from: give "
                "teacher, a finished fine-tuning run"
                for name in names
                if not is_default(self, name)
            ]
        if len(set(self.distil)) < len(self.distil):
            found.append(f"distil={self.distil}: each kind once")
        if self.distil_weight and len(self.distil_weight) != len(self.distilled):
            found.append(
                f"distil_weight has {len(self.distil_weight)} numbers for "
                f"{len(self.distilled)} kinds of distil: give one each"
            )
        if not all(weight > 0 for weight in self.distil_weight):
            found.append(f"distil_weight={self.distil_weight}: more than 0")
        if not self.distil_temperature > 0:
            found.append(f"distil_temperature={self.distil_temperature}: more than 0")
        if not self.label_weight >= 0:
            found.append(f"label_weight={self.label_weight}: at least 0")
        if self.label_weight == 0 and "logits" not in self.distilled:
            found.append("label_weight=0 and no distil logits: nobody teaches the head")
        if self.width is not None and not 0 < self.width <= 16:
            found.append(f"width={self.width}: in (0, 16]")
        return found

    @property
    def distilled(self) -> tuple[Distillation, ...]:
        """The kinds of distillation in use."""
        if self.teacher is None:
            return ()
        return self.distil or ("logits",)


def is_default(options: Any, name: str) -> bool:
    """Whether a setting has its default value."""
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    return getattr(options, name) == fields[name]
