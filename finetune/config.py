"""Settings of a fine-tuning run: frozen, documented, checked when made."""

import dataclasses
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

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
)

if TYPE_CHECKING:
    ModeChoice: TypeAlias = Mode
    MethodChoices: TypeAlias = tuple[Method, ...]
    TaskChoice: TypeAlias = Task
else:  # a name or a mapping is given as well, and resolved
    ModeChoice = TaskChoice = Any
    MethodChoices = tuple[Any, ...] | Any

_FEWEST_STEPS, _MOST_STEPS = 300, 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingOptions, RunOptions, DataOptions):
    """Train a classifier on a pretrained encoder, from as many labels as there are."""

    from_: str
    """The pretrained encoder: a run folder, one of its checkpoints/STEP, or a bare
    encoder/ folder. Its architecture and preprocessing are used as stored."""

    data: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Where the labelled images are: digits, folder:PATH, zip:PATH[,PATH], csv:PATH,
    npz:PATH, tfds:NAME, synthetic:HxWxC."""

    target: str | None = None
    """Images of the target domain, given like data. Their labels are never trained on;
    if it has a labelled test split, the run is tested on that. In Python also "given":
    the object in `finetune(config, target=…)`."""

    mode: Annotated[ModeChoice, MODES] = Full()  # noqa: RUF009
    """Which parameters learn, when, and how fast. probe: the encoder is frozen, the
    head learns. partial: the last stages learn too. two-phase: the head first, then
    everything. gradual: the head first, then one stage after the other. full:
    everything at once. scratch: everything, from random weights."""

    methods: Annotated[MethodChoices, METHODS] = ()
    """Methods beside plain training. They combine, at most one adversary at a time."""

    task: Annotated[TaskChoice, TASKS] = Classification()  # noqa: RUF009
    """classification: classes of images. continual: groups of classes, one after the
    other. episodes: new classes from a few images each (meta-learning)."""

    labels: int | None = None
    """How many labels to use in all, balanced over the classes, chosen by seed.
    Default: every label there is."""

    labels_per_class: int | None = None
    """How many labels of each class to use; give this or labels."""

    head: Literal["linear", "mlp"] = "linear"
    """The classifier on the features: one layer, or one hidden layer before it."""

    head_width: int | None = None
    """mlp: units of the hidden layer. Default: as many as there are features."""

    features: Literal["vector", "last", "pyramid", "grid", "grid-3", "pyramid-grid"] = (
        "grid"
    )
    """What the head reads. vector: the encoder's feature vector (its bottleneck, or as
    last). last: the mean of the last map. pyramid: the means of all maps, concatenated.
    grid, pyramid-grid: the same with means over a 2x2 grid, which keeps some position;
    grid-3: of the last map over a 3x3 one."""

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

    label_smoothing: float = 0.0
    """Share of each label spread evenly over all classes; 0.1 is customary."""

    class_weights: str = "none"
    """none; balanced: each class weighs the same, however many images it has; or one
    number for each class, in the order of the class names: 1,1,2.5."""

    augment: Augmentation = "shift"
    """Random changes of the training images, e.g. shift or crop-flip; `afterimage
    methods` describes each."""

    domain_statistics: Literal["source", "target", "joint", "frozen"] | None = None
    """Which normalisation statistics an encoder with BatchNorm keeps when the training
    images come in several streams (a target domain, or images without labels). source,
    target: each stream is normalised by its own batch, and the moments of that stream
    are kept; joint: all as one batch, right where all images are of one domain; frozen:
    the stored moments. Encoders without such statistics need no choice."""

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
    labels are limited, the data's validation split is not used. With a target also by
    its predictions without labels: entropy, infomax, snd, mixval, neighbours; oracle:
    by its labels, an upper bound."""

    select_by: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    """The validation measure by which a step is best."""

    may_differ: tuple[str, ...] = ()
    """Regular expressions: parameters of the encoder that may stay fresh where the
    stored ones do not fit, e.g. after a change of channels. Anything else that does not
    fit is an error."""

    def __post_init__(self) -> None:
        resolve(self)
        # Before the other checks, which compare these values with numbers.
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
            found.append("labels and labels_per_class: give one of them")
        for name in ("labels", "labels_per_class", "head_width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: at least 1")
        if self.head_width is not None and self.head != "mlp":
            found.append(f"head_width={self.head_width}: only with head='mlp'")
        if self.encoder_lr <= 0:
            found.append(f"encoder_lr={self.encoder_lr}: more than 0 (probe freezes)")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            found.append(f"layer_decay={self.layer_decay}: in (0, 1]")
        if not 0 <= self.label_smoothing < 1:
            found.append(f"label_smoothing={self.label_smoothing}: in [0, 1)")
        found += pattern_problems("may_differ", self.may_differ)
        if self.select == "validation" and self.validation == 0:
            found.append("select='validation' needs validation above 0")
        if self.select != "last" and self.keep_best < 1:
            found.append("keep_best=0: the best step would be deleted; keep at least 1")
        of_source = "auto", "validation", "last"
        if self.target is None and self.select not in of_source:
            found.append(f"select={self.select!r} looks at a target: give target")
        return found + self._weight_problems()

    def _choice_problems(self) -> list[str]:
        """What cannot work about the mode, the task and the methods."""
        found = []
        for choice in (self.mode, self.task, *self.methods):
            problems = choice.problems(self)
            if isinstance(choice, Method):
                problems = self._method_problems(choice) + problems
            found += [_named(choice.name, problem) for problem in problems]
        streams = {stream for method in self.methods for stream in method.streams}
        if self.domain_statistics is not None and not streams and self.target is None:
            found.append(
                f"domain_statistics={self.domain_statistics!r} is about several "
                "streams of images: give target, or a method that reads others"
            )
        elif self.domain_statistics == "target" and "target" not in streams:
            found.append(
                "domain_statistics='target': no target is aligned; source, joint or "
                "frozen"
            )
        return found

    def _method_problems(self, method: Method) -> list[str]:
        found = []
        if self.task.name not in method.tasks:
            found.append(
                f"not with task {self.task.name}, only with {', '.join(method.tasks)}"
            )
        if method.needs_target and self.target is None:
            found.append("needs images of the target domain: give --target")
        if method.needs_source and not self.mode.loads_source:
            found.append(f"mode {self.mode.name} has no source to stay near")
        if method.acts_on_encoder and not self.mode.trains_encoder:
            found.append(f"in mode {self.mode.name} the encoder does not learn")
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
    def columns(self) -> tuple[str, ...]:
        """The further label columns that the methods read."""
        return tuple(column for method in self.methods for column in method.columns)

    @property
    def limited(self) -> bool:
        """Whether fewer labels than there are were asked for."""
        return self.labels is not None or self.labels_per_class is not None


def _named(choice: str, problem: str) -> str:
    """`choice.setting=value: …`, or `choice: …`."""
    return f"{choice}{'.' if re.match(r'[a-z_]+=', problem) else ': '}{problem}"
