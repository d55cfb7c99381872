"""What is learned: classes, labels, numbers, classes in sequence, or episodes."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from afterimage.plugins import Registry
from afterimage.reading import NumberReading

if TYPE_CHECKING:
    from afterimage.data import ImageSet, Splits
    from afterimage.data.sets import Numbers
    from afterimage.finetune.config import FinetuneConfig
    from afterimage.finetune.data import LabelSplit, RunData
    from afterimage.finetune.run import FinetuneJob
    from afterimage.finetune.setup import RunSetup
    from afterimage.outputs import Outputs
    from afterimage.runs import Run
    from afterimage.training.stage import Term
else:  # naming a task must not start JAX
    FinetuneConfig = RunData = FinetuneJob = Run = Any
    ImageSet = Splits = Numbers = LabelSplit = RunSetup = Outputs = Term = Any

TASKS: Registry[Any] = Registry("task", "afterimage.finetune.tasks")
_OF_CLASSES = (
    *("target", "labels_per_class", "label_smoothing", "class_weights"),
    "select_by",
)
"""Settings that need classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned: the settings are its fields; it makes a run's job.

    By default it learns classes.
    """

    name: ClassVar[str]
    kept_step: ClassVar[str | None] = None
    """Which step is kept, in words; None if the best one is chosen."""

    @property
    def takes_methods_of(self) -> tuple[str, ...]:
        """The tasks whose methods it takes, those that need no classes."""
        return (self.name,)

    def problems(self, config: "FinetuneConfig") -> list[str]:
        """Problems with the settings, one sentence each, without the task's name."""
        return []

    # The data and the head.

    @property
    def reading(self) -> NumberReading | None:
        """How labels are read that are numbers; None for classes."""
        return None

    def check(self, splits: "Splits") -> None:
        """Raises DataError for labels that cannot train and test the head."""
        from afterimage.data import check_classes

        check_classes(splits)

    def strata(self, images: "ImageSet") -> np.ndarray | None:
        """The stratum of each labelled image: each gives its share to a hold-out."""
        return images.labels

    def choose(self, config: "FinetuneConfig", images: "ImageSet") -> np.ndarray:
        """Positions of a limited number of labels, by seed."""
        from afterimage.data import choose_labels

        return choose_labels(
            images,
            labels=config.labels,
            per_class=config.labels_per_class,
            seed=config.seed,
        )

    def outputs(self, labels: "LabelSplit") -> "Outputs":
        """What the main head predicts."""
        from afterimage.outputs.classes import Classes

        return Classes(names=labels.class_names)

    def loss(self, setup: "RunSetup") -> "Term":
        """The loss of the labelled images."""
        from afterimage.finetune.setup import classification_loss

        return classification_loss(setup)

    def measure(self, config: "FinetuneConfig") -> str:
        """The validation measure by which the step is chosen."""
        return config.select_by

    def describe(self, images: "ImageSet") -> tuple[str, str]:
        """(what the labels are: `10 classes`; how often each occurs)."""
        from afterimage.data import counted

        names = images.class_names or ()
        return f"{len(names)} classes", f"classes: {counted(images)}"

    # The run.

    def job(
        self, config: "FinetuneConfig", data: "RunData", run: "Run"
    ) -> "FinetuneJob | None":
        """The job for `training.job.execute`; None for the usual one."""

    def leave_out(
        self, config: "FinetuneConfig", names: Iterable[str], *, any_mode: bool = False
    ) -> list[str]:
        """Problems for settings this task does not support.

        One for each of these settings that is not at its default. Unless `any_mode`,
        also one for a mode that does not train the whole encoder, and for a choice of
        the step.
        """
        found = []
        if not any_mode and config.mode.name not in ("full", "scratch"):
            found.append(
                f"works only with mode full or scratch, not {config.mode.name}"
            )
        if not any_mode and config.select not in ("auto", "last"):
            found.append(
                f"always keeps the last step: leave select={config.select!r} out"
            )
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        return found + [
            f"does not use {name}={getattr(config, name)!r}: leave it out"
            for name in names
            if getattr(config, name) != defaults[name]
        ]


def numbers_of(images: "ImageSet") -> "Numbers":
    """The labels of a set that has passed `NumberTask.check`."""
    assert images.numbers is not None
    return images.numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberTask(Task):
    """A task whose labels are numbers, not classes."""

    columns: tuple[str, ...] = ()

    @property
    def takes_methods_of(self):
        return (self.name, "classification")

    def problems(self, config):
        found = self.leave_out(config, _OF_CLASSES, any_mode=True)
        twice = [n for n in self.columns if self.columns.count(n) > 1]
        if twice:
            found.append(f"columns: {twice[0]!r} is given twice")
        return found

    def check(self, splits):
        from afterimage.errors import DataError

        train = splits.train
        if train.numbers is None or not train.numbers.known.any():
            raise DataError(
                f"{train.name} has no labels for {self.name}: they are read from the "
                f"column `label`, or from those named by --{self.name}.columns, of a "
                "csv file, an npz file or an object"
            )

    def choose(self, config, images):
        from afterimage.errors import DataError

        assert config.labels is not None
        if config.labels > len(images):
            raise DataError(
                f"labels={config.labels}: {images.name} has only {len(images)} "
                "labelled images"
            )
        order = np.random.default_rng(config.seed).permutation(len(images))
        return np.sort(order[: config.labels])
