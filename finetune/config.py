"""Settings of a fine-tuning run: flat, frozen, documented, checked when made."""

import dataclasses
import re
from typing import Literal

from afterimage.fields import field_problems
from afterimage.finetune.continual.options import ContinualOptions
from afterimage.finetune.domains.options import SourceOptions, TargetOptions
from afterimage.finetune.episodes.options import EpisodeOptions
from afterimage.finetune.options import (
    AnchorOptions,
    DistillationOptions,
    TaskOptions,
    UnlabelledOptions,
    is_default,
)
from afterimage.training.options import (
    Augmentation,
    DataOptions,
    RunOptions,
    TrainingOptions,
    check,
)

_COUNTS = (
    "labels",
    "labels_per_class",
    "keep_features",
    "head_width",
    "head_steps",
    "unfreeze_stages",
)
_FEWEST_STEPS, _MOST_STEPS = 300, 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(
    AnchorOptions,
    TargetOptions,
    UnlabelledOptions,
    DistillationOptions,
    ContinualOptions,
    EpisodeOptions,
    SourceOptions,
    TaskOptions,
    TrainingOptions,
    RunOptions,
    DataOptions,
):
    """Train a classifier on a pretrained encoder, from as many labels as there are."""

    from_: str
    """The pretrained encoder: a run folder, one of its checkpoints/STEP, or a bare
    encoder/ folder. Its architecture and preprocessing are used as they are stored."""

    mode: Literal["probe", "partial", "two-phase", "gradual", "full", "scratch"] = (
        "full"
    )
    """probe: the encoder is frozen, the head learns. partial: the last stages learn
    too. two-phase: the head first, then everything. gradual: the head first, then one
    stage more after the other. full: everything at once. scratch: everything, from
    random weights (what a transfer is compared with)."""

    labels: int | None = None
    """Use so many labels in all, balanced over the classes, chosen by seed. Default:
    every label there is."""

    labels_per_class: int | None = None
    """The same, counted by class; give one of the two."""

    head: Literal["linear", "mlp"] = "linear"
    """The classifier on the features: one layer, or one hidden layer before it."""

    head_width: int | None = None
    """mlp: units of the hidden layer. Default: as many as there are features."""

    features: Literal["vector", "last", "pyramid", "grid", "grid-3", "pyramid-grid"] = (
        "grid"
    )
    """What the head reads. vector: the encoder's feature vector (its bottleneck, or as
    last). last: the mean of the last map. pyramid: the means of all maps, concatenated.
    grid, pyramid-grid: the same with means over a 2x2 grid, so that some position is
    kept; grid-3: of the last map over a 3x3 one."""

    feature_selection: Literal["none", "fisher", "mutual-information", "l1"] = "none"
    """The head reads only the best features, scored on the labelled training images
    before the first step. fisher: variance between classes over that within;
    mutual-information: with the label, each feature alone; l1: weights of a sparse
    linear classifier."""

    keep_features: int | None = None
    """How many features are kept by --feature-selection."""

    image_size: int | None = None
    """Side of the square the images are resized to, pixels. Default: the encoder's."""

    channels: int | None = None
    """1 makes every image grey, 3 colour. Default: the encoder's."""

    batch_size: int = 64
    """Images a step, over all devices together."""

    encoder_lr: float = 1.0
    """The encoder learns at this multiple of lr."""

    layer_decay: float | None = None
    """Layer-wise learning-rate decay d: layer l of L learns at lr · encoder_lr ·
    d^(L - l); 0.75 is customary for deep encoders. Default: none; in mode gradual
    1/2.6."""

    head_lr: float | None = None
    """Learning rate while the head learns alone (probe, first phase of the rest).
    Default: ten times lr; a head on standardised features bears it."""

    head_steps: int | None = None
    """Steps of the head's own phase in two-phase and gradual. Default: a tenth of the
    run; in gradual as many as each other phase."""

    unfreeze_stages: int | None = None
    """partial: so many of the encoder's last stages learn."""

    unfreeze: tuple[str, ...] = ()
    """partial: parameters learn whose path one of these regular expressions finds, e.g.
    '^encoder/stages/2/'."""

    label_smoothing: float = 0.0
    """Share of each label spread evenly over all classes; 0.1 is customary."""

    class_weights: str = "none"
    """none; balanced: each class weighs the same, however many images it has; or one
    number a class, in the order of the class names: 1,1,2.5."""

    augment: Augmentation = "shift"
    """Random changes of the training images. shift: small translations; crop-flip:
    crops and mirroring; light: shift, with brightness and contrast; shear: shift, leant
    both ways; affine: shear, drawn larger or smaller by up to a third; tones: affine,
    each channel's range a random one, half of them inverted; strong: shear, with tones
    as in light, further, and a square erased."""

    select: Literal[
        "auto",
        "validation",
        "last",
        "entropy",
        "infomax",
        "snd",
        "mixval",
        "neighbours",
        "oracle",
    ] = "auto"
    """Which step is kept: the best on validation, or the last. auto: validation, unless
    it had to be cut from so few labels that it would have under 100 images. Where
    labels are limited, a validation split of the data is not used. With --target also
    by its predictions without labels: entropy, infomax, snd, mixval, neighbours;
    oracle: by its labels, an upper bound."""

    select_by: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    """The validation measure by which a step is best."""

    may_differ: tuple[str, ...] = ()
    """Regular expressions: parameters of the encoder that may stay fresh where the
    stored ones do not fit, e.g. after a change of --channels. Anything else that does
    not fit is an error."""

    def __post_init__(self) -> None:
        # First: the other checks compare these values with numbers.
        check(field_problems(self))
        check(
            DataOptions.problems(self),
            AnchorOptions.problems(self),
            TargetOptions.problems(self),
            UnlabelledOptions.problems(self),
            DistillationOptions.problems(self),
            ContinualOptions.problems(self),
            EpisodeOptions.problems(self),
            SourceOptions.problems(self),
            TaskOptions.problems(self),
            TrainingOptions.problems(self),
            RunOptions.problems(self),
            self._mistakes(),
        )

    def _mistakes(self) -> list[str]:
        found = []
        if self.labels is not None and self.labels_per_class is not None:
            found.append("labels and labels_per_class: give one of them")
        for name in _COUNTS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: at least 1")
        if self.head_width is not None and self.head != "mlp":
            found.append(f"head_width={self.head_width}: only with head='mlp'")
        if self.encoder_lr <= 0:
            found.append(f"encoder_lr={self.encoder_lr}: more than 0 (probe freezes)")
        if self.head_lr is not None and self.head_lr <= 0:
            found.append(f"head_lr={self.head_lr}: more than 0")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            found.append(f"layer_decay={self.layer_decay}: in (0, 1]")
        if not 0 <= self.label_smoothing < 1:
            found.append(f"label_smoothing={self.label_smoothing}: in [0, 1)")
        for name in ("unfreeze", "may_differ"):
            for rule in getattr(self, name):
                try:
                    re.compile(rule)
                except re.error as error:
                    found.append(f"{name}={rule!r}: not a regular expression ({error})")
        if self.select == "validation" and self.validation == 0:
            found.append("select='validation' needs validation above 0")
        if self.select != "last" and self.keep_best < 1:
            found.append("keep_best=0: the best step would be deleted; keep at least 1")
        selects = self.feature_selection != "none"
        if selects != (self.keep_features is not None):
            found.append(
                f"feature_selection={self.feature_selection!r} and keep_features="
                f"{self.keep_features}: give both, or none"
            )
        if selects and self.mode == "scratch":
            found.append("feature_selection: mode='scratch' has no features to score")
        found += self._encoder_mistakes()
        found += self._task_mistakes()
        return found + self._mode_mistakes() + self._weight_mistakes()

    def _encoder_mistakes(self) -> list[str]:
        """Settings that act on the encoder, where the mode leaves them no meaning."""
        found = []
        for name in self.anchors:
            if self.mode == "scratch":
                found.append(f"{name}: mode='scratch' has no source to stay near")
        if self.mode == "probe":
            used = [*self.anchors, *(["align"] if self.align else [])]
            used += [f"distil {name}" for name in self.distilled if name != "logits"]
            found += [f"{name}: a probe's encoder does not learn" for name in used]
        of_source = "auto", "validation", "last"
        if self.target is None and self.select not in of_source:
            found.append(f"select={self.select!r} looks at a target: give target")
        if self.target is None and self.unlabelled == "target":
            found.append("unlabelled='target' looks at a target: give target")
        if self.domain_statistics is not None:
            if self.target is None and self.unlabelled is None:
                found.append(
                    f"domain_statistics={self.domain_statistics!r} is about several "
                    "streams of images: give target or unlabelled"
                )
            elif self.domain_statistics == "target" and not self.align:
                found.append(
                    "domain_statistics='target': no target is aligned; source, joint "
                    "or frozen"
                )
        if len({self.data, *self.sources}) <= len(self.sources):
            found.append(f"data={self.data!r}, sources={self.sources}: each once")
        if "mdan" in self.align and not self.sources:
            found.append("align='mdan' needs several sources: give sources, or dann")
        if self.label_shift != "none" and self.label_smoothing:
            found.append("label_shift reads probabilities: leave label_smoothing at 0")
        return found

    def _task_mistakes(self) -> list[str]:
        """Settings that a sequence of tasks, or episodes, leave no meaning."""
        if not self.by_last_step:
            return []
        what, found = "sequence" if self.meta == "none" else "meta", []
        if self.mode not in ("full", "scratch"):
            found.append(f"mode={self.mode!r}: with {what} only full or scratch")
        if self.select not in ("auto", "last"):
            found.append(f"select={self.select!r}: with {what} the last step counts")
        alone = [
            *("target", "unlabelled", "teacher", "l2_sp", "l2_head", "kl", "delta"),
            *("class_weights", "label_smoothing", "ema", "tasks", "sources"),
            *("feature_selection", "keep_features"),
        ]
        if self.meta != "none":
            alone += ["sequence", "accumulate"]
        if self.meta == "proto-maml" and self.head != "linear":
            found.append(
                f"head={self.head!r}: with meta='proto-maml' the head begins as the "
                "nearest class mean, which is linear"
            )
        return found + [
            f"{name}={getattr(self, name)!r}: not with {what}; leave it out"
            for name in alone
            if not is_default(self, name)
        ]

    def _mode_mistakes(self) -> list[str]:
        found = []
        thaws = self.unfreeze_stages is not None or bool(self.unfreeze)
        if self.mode == "partial" and not thaws:
            found.append(
                "mode='partial' needs to know what thaws: unfreeze_stages or unfreeze"
            )
        if self.mode != "partial" and thaws:
            found.append(f"unfreeze and unfreeze_stages: not in mode={self.mode!r}")
        if self.mode not in ("two-phase", "gradual") and self.head_steps is not None:
            found.append(
                f"head_steps={self.head_steps}: only in mode='two-phase' and 'gradual'"
            )
        if self.mode in ("partial", "full", "scratch") and self.head_lr is not None:
            found.append(
                f"head_lr={self.head_lr}: only where the head learns alone, in mode="
                "'probe', 'two-phase' and 'gradual'"
            )
        for name in ("model", "width"):
            if self.mode != "scratch" and getattr(self, name) is not None:
                found.append(
                    f"{name}={getattr(self, name)!r}: only in mode='scratch'; weights "
                    "of another shape cannot be loaded"
                )
        if self.mode == "probe" and self.layer_decay is not None:
            found.append("layer_decay: a probe's encoder does not learn")
        return found

    def _weight_mistakes(self) -> list[str]:
        if self.class_weights in ("none", "balanced"):
            return []
        try:
            weights = [float(w) for w in self.class_weights.split(",")]
        except ValueError:
            weights = []
        if not weights or not all(0 <= w < float("inf") for w in weights):
            return [
                f"class_weights={self.class_weights!r}: none, balanced, or numbers "
                "from 0 separated by commas"
            ]
        return []

    def total_steps(self, images: int, *, default_epochs: float = 100.0) -> int:
        """Steps of the run: steps or epochs where given, else 100 epochs, but at least
        300 steps and at most 20,000."""
        total = TrainingOptions.total_steps(self, images, default_epochs=default_epochs)
        if self.steps is None and self.epochs is None:
            return min(max(total, _FEWEST_STEPS), _MOST_STEPS)
        return total

    @property
    def by_last_step(self) -> bool:
        """Whether the run is a sequence of tasks or of episodes: no step is chosen."""
        return bool(self.sequence) or self.meta != "none"

    @property
    def weighs_examples(self) -> bool:
        """Whether training images have weights of their own."""
        return self.density_ratio != "none" or bool(self.source_weights)

    @property
    def limited(self) -> bool:
        """Whether fewer labels than there are were asked for."""
        return self.labels is not None or self.labels_per_class is not None
