"""Settings of a fine-tuning run: frozen, documented, checked on construction."""

import dataclasses
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from afterimage.fields import at_least_1
from afterimage.finetune.method import METHODS, Method
from afterimage.finetune.modes import MODES, Full, Mode, pattern_problems
from afterimage.finetune.tasks import TASKS, Task
from afterimage.finetune.tasks.classification import Classification
from afterimage.settings import given_problems, resolve
from afterimage.training.options import (
    Augmentation,
    DataOptions,
    RunOptions,
    TrainingOptions,
    check,
    whole_photos_problems,
)

if TYPE_CHECKING:
    ModeChoice: TypeAlias = Mode
    MethodChoices: TypeAlias = tuple[Method, ...]
    TaskChoice: TypeAlias = Task
else:  # a name or a mapping is accepted as well, and resolved
    ModeChoice = TaskChoice = Any
    MethodChoices = tuple[Any, ...] | Any

_FEWEST_STEPS, _MOST_STEPS = 300, 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingOptions, RunOptions, DataOptions):
    """Train a classifier on a pretrained encoder, with few or many labels."""

    from_: str
    """The pretrained encoder: a run folder, one of its checkpoints/STEP, or a bare
    encoder/ folder. Its architecture and preprocessing are used unchanged."""

    data: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """The labelled images: characters, digits, folder:PATH, zip:PATH[,PATH], csv:PATH,
    npz:PATH, tar:PATTERN, parquet:PATTERN, tfds:NAME, synthetic:HxWxC."""

    target: str | None = None
    """Images of the target domain, in the same form as data. Their labels are never
    used for training; if the target has a labelled test split, the run is tested on it.
    In Python, "given" means the object in `finetune(config, target=…)`."""

    mode: Annotated[ModeChoice, MODES] = Full()  # noqa: RUF009
    """Which parameters learn, when, and how fast. probe: only the head learns, the
    encoder is frozen. partial: the last stages learn too. two-phase: first the head,
    then everything. gradual: first the head, then one more stage per phase. full:
    everything from the start. scratch: everything, from random weights."""

    methods: Annotated[MethodChoices, METHODS] = ()
    """Methods to add to plain training. They can be combined, with at most one
    adversary."""

    task: Annotated[TaskChoice, TASKS] = Classification()  # noqa: RUF009
    """classification: one class an image. multi-label: any number of labels.
    regression: numbers. continual: groups of classes, one after another. episodes: new
    classes from a few images each (meta-learning)."""

    labels: int | None = None
    """Total number of labels to use, balanced over the classes and chosen by seed.
    Default: all labels."""

    labels_per_class: int | None = None
    """Labels of each class, instead of labels."""

    hold_out: float = 0.2
    """Share of the labelled images to test on if the data has no test split: the same
    of each class, chosen by seed. With a limited number of labels, all others instead.
    0: no test. Not for continual, episodes or a target, which have other tests."""

    head: Literal["linear", "mlp"] = "linear"
    """The classifier on the features. linear: one layer; mlp: with a hidden layer."""

    head_width: int | None = None
    """mlp: units in the hidden layer. Default: the number of features."""

    features: Literal["vector", "last", "pyramid", "grid", "grid-3", "pyramid-grid"] = (
        "grid"
    )
    """The features that the head uses. last: the mean of the last map. vector: the
    network's own, its bottleneck or its norm of last; otherwise last. pyramid: the
    means of all maps. grid, pyramid-grid: the same over a 2x2 grid, which keeps some
    position; grid-3: the last map over a 3x3 grid."""

    image_size: int | None = None
    """Side of the square, in pixels, that images are resized to. Default: the
    encoder's."""

    channels: int | None = None
    """1 converts images to greyscale, 3 to colour. Default: the encoder's."""

    batch_size: int = 64
    """Images per step, over all devices."""

    encoder_lr: float = 1.0
    """The encoder's learning rate, as a multiple of lr."""

    layer_decay: float | None = None
    """Layer-wise learning-rate decay d: layer l of L learns at lr · encoder_lr · d^(L -
    l); 0.75 is common for deep encoders. Default: none, but 1/2.6 in mode gradual."""

    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes; 0.1 is common."""

    class_weights: str = "none"
    """none; balanced: every class has the same total weight; or one number per class,
    in the order of the class names: 1,1,2.5."""

    augment: Augmentation = "shift"
    """Random augmentation of the training images: one, or several joined by commas and
    applied in order, such as shift or crop:0.5,flip,color."""

    domain_statistics: Literal["source", "target", "joint", "frozen"] | None = None
    """For an encoder with BatchNorm: which normalisation statistics it keeps if there
    are several streams of training images (a target domain, or images without labels).
    source, target: each stream is normalised by its own batch, and the moments of this
    stream are kept; joint: all streams form one batch, for images of one domain;
    frozen: the stored moments. Not needed for other encoders."""

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
    """Which step to keep: the best on validation, or the last. auto: validation, unless
    it would be cut from the labels and have under 100 images. If the number of labels
    is limited, the data's own validation split is not used. With a target: oracle uses
    its labels and is an upper bound, the others its predictions, without labels."""

    select_by: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    """The validation metric that select maximises."""

    may_differ: tuple[str, ...] = ()
    """Regular expressions: encoder parameters that may keep random values if the stored
    ones do not fit, e.g. after a change of channels. Any other mismatch is an error."""

    def __post_init__(self) -> None:
        resolve(self)
        # First: the other checks compare these values with numbers.
        check(given_problems(self))
        check(
            DataOptions.problems(self),
            TrainingOptions.problems(self),
            RunOptions.problems(self),
            self._problems(),
            self._choice_problems(),
        )

    def _problems(self) -> list[str]:
        found = []
        if self.labels is not None and self.labels_per_class is not None:
            found.append("labels and labels_per_class: give only one")
        found += at_least_1(self, "labels", "labels_per_class", "head_width")
        if self.head_width is not None and self.head != "mlp":
            found.append(f"head_width={self.head_width}: applies only to head='mlp'")
        if self.encoder_lr <= 0:
            found.append(
                f"encoder_lr={self.encoder_lr}: must be greater than 0; to freeze the "
                "encoder, use mode probe"
            )
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            found.append(f"layer_decay={self.layer_decay}: must be in (0, 1]")
        if not 0 <= self.hold_out < 1:
            found.append(
                f"hold_out={self.hold_out}: must be a share in [0, 1) (for a folder of "
                "test images, use test)"
            )
        if not 0 <= self.label_smoothing < 1:
            found.append(f"label_smoothing={self.label_smoothing}: must be in [0, 1)")
        found += pattern_problems("may_differ", self.may_differ)
        found += whole_photos_problems(self)
        if self.select == "validation" and self.validation == 0:
            found.append("select='validation': needs validation greater than 0")
        if self.select != "last" and self.keep_best < 1:
            found.append("keep_best=0: would delete the best step; keep at least 1")
        of_source = "auto", "validation", "last"
        if self.target is None and self.select not in of_source:
            found.append(
                f"select={self.select!r}: needs images of a target; set target"
            )
        return found + self._weight_problems()

    def _choice_problems(self) -> list[str]:
        """Problems with the mode, the task and the methods."""
        found = []
        for choice in (self.mode, self.task, *self.methods):
            problems = choice.problems(self)
            if isinstance(choice, Method):
                problems = self._method_problems(choice) + problems
            found += [_named(choice.name, problem) for problem in problems]
        streams = {stream for method in self.methods for stream in method.streams}
        if self.domain_statistics is not None and not streams and self.target is None:
            found.append(
                f"domain_statistics={self.domain_statistics!r}: applies only to "
                "several streams of images; set target, or use a method that adds a "
                "stream"
            )
        elif self.domain_statistics == "target" and "target" not in streams:
            found.append(
                "domain_statistics='target': no method uses the target in training; "
                "use source, joint or frozen"
            )
        return found

    def _method_problems(self, method: Method) -> list[str]:
        found = []
        if method.task not in self.task.takes_methods_of:
            found.append(f"works only with task {method.task}, not {self.task.name}")
        elif self.task.name != method.task and method.needs_classes:
            found.append(f"needs classes, which task {self.task.name} does not have")
        if method.group == "target" and self.target is None:
            found.append("needs images of the target domain: set --target")
        if method.needs_source and not self.mode.loads_source:
            found.append(
                f"needs a source model, but mode {self.mode.name} starts from random "
                "weights"
            )
        if method.acts_on_encoder and not self.mode.trains_encoder:
            found.append(
                f"has no effect, as the encoder does not learn in mode {self.mode.name}"
            )
        return found

    def _weight_problems(self) -> list[str]:
        if self.class_weights in ("none", "balanced"):
            return []
        try:
            weights = [float(w) for w in self.class_weights.split(",")]
        except ValueError:
            weights = []
        if not weights or not all(0 <= w < float("inf") for w in weights):
            return [
                f"class_weights={self.class_weights!r}: must be none, balanced, or "
                "one number per class from 0, separated by commas"
            ]
        return []

    def total_steps(self, images: int, *, default_epochs: float = 100.0) -> int:
        """Steps of the run, from steps or epochs; by default 100 epochs, but at least
        300 and at most 20,000 steps."""
        total = TrainingOptions.total_steps(self, images, default_epochs=default_epochs)
        if self.steps is None and self.epochs is None:
            return min(max(total, _FEWEST_STEPS), _MOST_STEPS)
        return total

    @property
    def columns(self) -> tuple[str, ...]:
        """The further label columns that the methods read."""
        return tuple(column for method in self.methods for column in method.columns)

    @property
    def limited(self) -> bool:
        """Whether the number of labels is limited."""
        return self.labels is not None or self.labels_per_class is not None


def _named(choice: str, problem: str) -> str:
    """`choice.setting=value: …`, or `choice: …`."""
    return f"{choice}{'.' if re.match(r'[a-z_]+=', problem) else ': '}{problem}"
