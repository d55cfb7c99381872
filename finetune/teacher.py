"""A finished classifier that another one learns from: distillation.

Its parameters lie in `stats["teacher"]`, so every checkpoint holds them, nothing
differentiates or moves them, and it always runs in evaluation mode. It sees the view
that the student sees, normalised in its own way (Beyer et al. 2022, "A good teacher is
patient and consistent").
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from afterimage.data import ImageSet
from afterimage.errors import UserError
from afterimage.finetune.artefact import load_classifier
from afterimage.finetune.classifier import Classifier
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.scoring import Scorer, measures
from afterimage.training.groups import count_parameters
from afterimage.training.sweep import Sweep
from afterimage.training.terms import Context

Tree = dict[str, Any]
Model = tuple[Any, Any]
"""(params, stats)"""
_ROUNDS = 7


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A loaded classifier, and where its classes stand in the student's order."""

    path: str
    classifier: Classifier
    head: str
    params: Tree
    stats: Tree
    order: tuple[int, ...]
    """The teacher's number of each of the student's classes."""

    @property
    def width(self) -> int:
        """Length of the features that the teacher's head reads."""
        known = self.stats["heads"][self.head]
        return known.get("kept", known["mean"]).size

    def kept(self) -> Tree:
        """What `stats["teacher"]` begins as."""
        # Copies: the state is donated, and one buffer cannot be donated twice.
        both = {"params": self.params, "stats": self.stats}
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), both)

    def rules(self, kept: Tree) -> dict[str, Callable[[Context], Any]]:
        """`teacher/features` and `teacher/logits` of the stream `train`, the logits in
        the student's order of classes."""
        params, stats = kept["params"], kept["stats"]

        def maps(ctx: Context) -> Any:
            images = self.classifier.preprocessing.normalise(ctx["train/view"])
            return self.classifier.maps(params, stats, images)[0]

        def features(ctx: Context) -> Any:
            return self.classifier.head_features(
                params, stats, ctx["teacher/maps"], self.head
            )

        def logits(ctx: Context) -> Any:
            found = self.classifier.logits(
                params, stats, ctx["teacher/maps"], self.head
            )
            return found[:, np.asarray(self.order)]

        return {
            "teacher/maps": maps,
            "teacher/features": features,
            "teacher/logits": logits,
        }


def compare(
    teacher: Teacher, student: Scorer, sweep: Sweep, model: Model, images: ImageSet
) -> dict[str, Any]:
    """What the student gained: parameters, images a second, accuracy of both.

    `agreement` is the share of images on which both predict the same class; `smaller`
    and `faster` are ratios teacher / student. Speed is the median of seven interleaved
    batches of up to 256 of these images in evaluation mode. A teacher of other classes
    has neither accuracy nor agreement.
    """
    scorer = Scorer(teacher.classifier, teacher.head, sweep)
    both = {
        # As it was read: it never moves, and a restored step may lack what is empty.
        "teacher": (scorer, teacher.head, (teacher.params, teacher.stats)),
        "student": (student, student.head, model),
    }
    seconds = _seconds([(s, m) for s, _, m in both.values()], images)
    found: dict[str, Any] = {}
    for (name, (_, head, (params, _))), each in zip(both.items(), seconds):
        parts = [params["encoder"], params["heads"][head]]
        found[name] = {
            "parameters": count_parameters(parts),
            "images_per_second": 1 / each,
        }
    ratios = {
        "smaller": found["teacher"]["parameters"] / found["student"]["parameters"],
        "faster": seconds[0] / seconds[1],
    }
    found = {"path": teacher.path, "images": len(images), **found, **ratios}
    if teacher.order:
        logits = {name: s.logits(*m, images) for name, (s, _, m) in both.items()}
        logits["teacher"] = logits["teacher"][:, np.asarray(teacher.order)]
        assert images.labels is not None
        for name, scores in logits.items():
            found[name]["accuracy"] = measures(scores, images.labels)["accuracy"]
        same = logits["teacher"].argmax(1) == logits["student"].argmax(1)
        found["agreement"] = float(same.mean())
    return found


def _seconds(models: Sequence[tuple[Scorer, Model]], images: ImageSet) -> list[float]:
    """Seconds an image of each model, their batches interleaved."""
    batch = images.gather(np.arange(min(256, len(images))))
    taken = np.zeros((_ROUNDS + 1, len(models)))
    for row in taken:
        for i, (scorer, (params, stats)) in enumerate(models):
            began = time.perf_counter()
            jax.block_until_ready(scorer.predict(params, stats, batch))
            row[i] = time.perf_counter() - began
    # The first round compiles.
    return (np.median(taken[1:], axis=0) / len(batch)).tolist()


def read_teacher(
    config: FinetuneConfig, shape: tuple[int, int, int], names: Sequence[str]
) -> Teacher | None:
    """The teacher of a run on images of this shape and these classes, or None.

    Raises UserError where it takes other images or does not know a class;
    CheckpointError where there is no classifier or it is damaged.
    """
    if config.teacher is None:
        return None
    loaded = load_classifier(config.teacher, dtype=config.precision)
    preprocessing = loaded.classifier.preprocessing
    takes = (*preprocessing.image_size, preprocessing.channels)
    head, known = next(iter(loaded.class_names.items()))
    problems = []
    if takes != shape:
        problems.append(
            f"it takes images {takes} (height, width, channels), and this run has "
            f"{shape}: give --image-size {takes[0]} --channels {takes[2]}"
        )
    unknown = [name for name in names if name not in known]
    if unknown and "logits" in config.distilled:
        problems.append(
            f"it does not know the classes {', '.join(unknown)} (it knows "
            f"{', '.join(known)}): name them alike, or distil features or relational"
        )
    if problems:
        raise UserError(f"teacher={config.teacher}: " + "; ".join(problems))
    order = () if unknown else tuple(known.index(name) for name in names)
    return Teacher(
        config.teacher, loaded.classifier, head, loaded.params, loaded.stats, order
    )
