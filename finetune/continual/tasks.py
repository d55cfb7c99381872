"""A sequence of tasks: which classes, which images, which outputs."""

import dataclasses
import unicodedata
from collections.abc import Sequence

import numpy as np

from afterimage.data import ImageSet, choose_labels
from afterimage.errors import DataError, UserError, did_you_mean
from afterimage.finetune.classifier import HeadConfig
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.labels import HEAD
from afterimage.finetune.terms.continual import Outlet


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Classes by task, and the heads that tell them apart."""

    classes: tuple[tuple[int, ...], ...]
    """The numbers of each task's classes."""
    names: tuple[str, ...]
    """All class names of the data."""
    per_task: bool
    """A head a task (task-incremental), else one for all (class-incremental)."""

    def __len__(self) -> int:
        return len(self.classes)

    def label(self, number: int) -> str:
        """A task's name for people: its classes."""
        return ",".join(self.names[c] for c in self.classes[number])

    def head(self, number: int) -> str:
        """The name of the head that tells this task's classes apart."""
        return f"task-{number + 1}" if self.per_task else HEAD

    def heads(self, config: FinetuneConfig) -> dict[str, HeadConfig]:
        """Every head of the classifier."""

        def made(classes: int) -> HeadConfig:
            return HeadConfig(
                classes, config.head, config.features, width=config.head_width
            )

        if not self.per_task:
            return {HEAD: made(len(self.names))}
        return {self.head(i): made(len(c)) for i, c in enumerate(self.classes)}

    def head_classes(self) -> dict[str, tuple[str, ...]]:
        """The class names of each head, in the order of its outputs."""
        if not self.per_task:
            return {HEAD: self.names}
        return {
            self.head(i): tuple(self.names[c] for c in classes)
            for i, classes in enumerate(self.classes)
        }

    def outlets(self, numbers: Sequence[int]) -> tuple[Outlet, ...]:
        """Where the classes of these tasks are told apart.

        Task-incremental: each task's own. Class-incremental: one of all their classes.
        """
        if self.per_task:
            return tuple(
                Outlet(self.head(i), tuple(range(len(c))), c)
                for i in numbers
                for c in (self.classes[i],)
            )
        seen = tuple(c for i in numbers for c in self.classes[i])
        return (Outlet(HEAD, seen, seen),) if seen else ()

    def images(self, images: ImageSet, numbers: Sequence[int]) -> ImageSet:
        """The images of these tasks' classes, labels as they are in the data."""
        assert images.labels is not None
        wanted = [c for i in numbers for c in self.classes[i]]
        return images.subset(np.flatnonzero(np.isin(images.labels, wanted)))

    def memory(self, images: ImageSet, number: int, size: int, seed: int) -> ImageSet:
        """`size` images of each class of the tasks before `number`, chosen by seed.

        A function of the seed alone: a resumed run finds the same. Raises DataError for
        a class with fewer images.
        """
        seen = [c for i in range(number) for c in self.classes[i]]
        try:
            kept = choose_labels(images, per_class=size, classes=seen, seed=seed)
        except DataError as error:
            raise DataError(f"memory={size}: {error}") from None
        return images.subset(kept)


def make_tasks(config: FinetuneConfig, names: tuple[str, ...]) -> Tasks:
    """The tasks that `config.sequence` names.

    Raises UserError, with everything at once, for unknown classes, classes in two
    tasks, tasks of one class, fewer than two tasks.
    """
    given = [unicodedata.normalize("NFC", task) for task in config.sequence]
    groups = [tuple(n.strip() for n in task.split(",")) for task in given]
    flat = [name for group in groups for name in group]
    problems = [
        f"{name!r} is no class of the data{did_you_mean(name, names)}"
        for name in dict.fromkeys(flat)
        if name not in names
    ]
    twice = sorted({name for name in flat if flat.count(name) > 1})
    problems += [f"{name!r} is named twice" for name in twice]
    problems += [
        f"task {i} has one class, {group!r}: nothing to tell apart"
        for i, group in enumerate(groups, 1)
        if len(group) < 2
    ]
    if len(groups) < 2:
        problems.append("a sequence needs at least two tasks: --sequence 0,1 2,3")
    if problems:
        raise UserError(
            f"sequence={' '.join(config.sequence)}: "
            + "; ".join(problems)
            + ". The classes "
            f"are {', '.join(names)}"
        )
    numbers = tuple(tuple(names.index(n) for n in group) for group in groups)
    return Tasks(numbers, names, config.scenario == "task")
