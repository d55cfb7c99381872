"""Distillation: learns from a finished classifier, the teacher.

The student learns the teacher's predictions, the features its head reads, or relations
between images in that feature space. The teacher's parameters are in `stats["distil"]`:
every checkpoint holds them, and they are never differentiated or changed. The teacher
always runs in evaluation mode. It sees the same view as the student, with its own
normalisation (Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and
consistent").
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afterimage.classifier import load_classifier
from afterimage.console import say_once
from afterimage.data import ImageSet
from afterimage.errors import UserError
from afterimage.evaluation.classification import measures
from afterimage.fields import above_0, at_least_0
from afterimage.finetune.losses import soft_kl
from afterimage.finetune.method import METHODS, Method, Model, Sections
from afterimage.finetune.methods._discrepancy import square_distances
from afterimage.finetune.scoring import Scorer
from afterimage.finetune.setup import feature_width
from afterimage.models.classifier import HEAD, ClassifierNetwork
from afterimage.training.batches import EvaluationRunner
from afterimage.training.optimiser import count_parameters
from afterimage.training.stage import Context, Term, TermResult, View

Tree = dict[str, Any]
ANGLE = 2.0
"""Weight of the angles relative to the distances, as in the paper."""
_WEIGHTS = {"relational": 25.0}
_ROUNDS = 7


@METHODS.add("distil")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Distil(Method):
    """Learns from a finished classifier, the teacher."""

    teacher: str | None = None
    """The teacher: a finished fine-tuning run, of any architecture, with the same image
    size. It sees the same augmented images as the student."""

    kinds: tuple[Literal["logits", "features", "relational"], ...] = ("logits",)
    """What the student learns from the teacher. logits: its softened predictions;
    features: the features that its head uses, through a learned linear map; relational:
    distances and angles between images in that feature space."""

    weights: tuple[float, ...] = ()
    """One weight per kind. Default: 1, but 25 for relational."""

    temperature: float = 4.0
    """Temperature that softens the predictions of teacher and student."""

    label_weight: float = 1.0
    """Weight of the loss on the labels; 0: learn only from the teacher."""

    def problems(self, config):
        found = []
        if self.teacher is None:
            found.append("teacher: give a finished fine-tuning run")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            found.append(f"kinds={self.kinds}: give at least one, each only once")
        if self.weights and len(self.weights) != len(self.kinds):
            found.append(
                f"weights={self.weights}: must have one number for each of "
                f"{len(self.kinds)} kinds"
            )
        found += above_0(self, "weights", "temperature")
        found += at_least_0(self, "label_weight")
        if self.label_weight == 0 and "logits" not in self.kinds:
            found.append(
                "label_weight=0 works only with the kind logits; otherwise the head "
                "has no training signal"
            )
        if not config.mode.trains_encoder:
            found += [
                (
                    f"{kind}: has no effect, as the encoder does not learn in mode "
                    f"{config.mode.name}"
                )
                for kind in self.kinds
                if kind != "logits"
            ]
        return found

    def open(self, config, data):
        labels = data.labels
        teacher = read_teacher(
            str(self.teacher),
            labels.train.shape,
            labels.class_names,
            logits="logits" in self.kinds,
            dtype=config.precision,
        )
        takes = teacher.classifier.preprocessing
        if said := takes.other_range(data.preprocessing):
            say_once(f"teacher={self.teacher} {said}")
        return teacher

    def state(self, setup):
        return setup.opened[self.name].kept()

    def labelled_terms(self, setup, terms, phase):
        return [terms[0].times(self.label_weight), *terms[1:]]

    def providers(self, setup, known, now):
        return setup.opened[self.name].providers(now.stats[self.name])

    def terms(self, setup, phase=0):
        default = tuple(_WEIGHTS.get(kind, 1.0) for kind in self.kinds)
        terms = []
        for kind, weight in zip(self.kinds, self.weights or default):
            if kind == "logits":
                terms.append(distil_logits(weight, self.temperature))
            elif kind == "relational":
                terms.append(distil_relations(weight))
            else:
                widths = setup.width, setup.opened[self.name].width
                terms.append(distil_features(*widths, weight, seed=setup.config.seed))
        return terms

    def results(self, setup, model):
        images = setup.data.labels.test or setup.data.labels.validation
        if images is None:
            return {}
        teacher, runner = setup.opened[self.name], setup.runner
        gain = compare(teacher, setup.scorer, runner, model, images)
        return {"distillation": gain}

    def report(self, results):
        gain = results.get("distillation")
        if gain is None:
            return Sections()
        names = ("parameters", "images_per_second", "accuracy")
        rows = [
            [who, *(gain[who].get(name) for name in names)]
            for who in ("teacher", "student")
        ]
        header = ["", *(name.replace("_", " ") for name in names)]
        headline = {
            "times fewer parameters than the teacher": f"{gain['smaller']:.2f}",
            "times as many images a second": f"{gain['faster']:.2f}",
        }
        return Sections(
            headline=headline, grids={"Teacher and student": (header, rows)}
        )


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A loaded classifier, and the positions of its classes in the student's order."""

    path: str
    classifier: ClassifierNetwork
    head: str
    params: Tree
    stats: Tree
    order: tuple[int, ...]
    """For each of the student's classes, its number in the teacher."""

    @property
    def width(self) -> int:
        """Length of the features that the teacher's head reads."""
        return feature_width(self.stats, self.head)

    def kept(self) -> Tree:
        """The initial value of `stats["distil"]`."""
        # Copies: the state is donated, and one buffer cannot be donated twice.
        both = {"params": self.params, "stats": self.stats}
        return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), both)

    def providers(self, kept: Tree) -> dict[str, Callable[[Context], Any]]:
        """`teacher/features` and `teacher/logits` of the stream `train`.

        The logits are in the student's order of classes.
        """
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
    teacher: Teacher,
    student: Scorer,
    runner: EvaluationRunner,
    model: Model,
    images: ImageSet,
) -> dict[str, Any]:
    """Teacher and student compared: parameters, images per second, accuracy.

    `agreement` is the share of images for which both predict the same class; `smaller`
    and `faster` are ratios teacher / student. Speed is the median of seven interleaved
    batches of up to 256 of these images in evaluation mode. If the teacher has other
    classes, accuracy and agreement are left out.
    """
    scorer = Scorer(teacher.classifier, teacher.head, runner)
    both = {
        # As loaded: it never changes, and a restored step may lack empty parts.
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
    """Seconds per image for each model, with interleaved batches."""
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
    path: str,
    shape: tuple[int, int, int],
    names: Sequence[str],
    *,
    logits: bool,
    dtype: str = "float32",
) -> Teacher:
    """The teacher of a run on images of this shape and these classes.

    Its classes need to match only if its `logits` are learned.

    Raises UserError if it takes other images or does not know a class, CheckpointError
    if its classifier is missing or damaged.
    """
    loaded = load_classifier(path, dtype=dtype)
    preprocessing = loaded.network.preprocessing
    takes = (*preprocessing.image_size, preprocessing.channels)
    head, known = next(iter(loaded.class_names.items()))
    loaded.require_classes(head, f"teacher={path}: a teacher")
    problems = []
    if takes != shape:
        problems.append(
            f"it needs images {takes} (height, width, channels), but this run has "
            f"{shape}: set --image-size {takes[0]} --channels {takes[2]}"
        )
    unknown = [name for name in names if name not in known]
    if unknown and logits:
        problems.append(
            f"it was not trained on the classes {', '.join(unknown)} (only on "
            f"{', '.join(known)}): rename them, or distil features or relational"
        )
    if problems:
        raise UserError(f"teacher={path}: " + "; ".join(problems))
    order = () if unknown else tuple(known.index(name) for name in names)
    return Teacher(path, loaded.network, head, loaded.params, loaded.stats, order)


def distil_logits(weight: float, temperature: float) -> Term:
    """w · T² KL(softmax(t / T) ‖ softmax(z / T)), t and z teacher and student logits.

    Hinton et al. 2015, "Distilling the knowledge in a neural network": T² keeps the
    gradient's size as T grows, so that w need not change with T. Nats, ≥ 0.
    """
    own = f"train/logits/{HEAD}"

    def fn(view: View) -> TermResult:
        teacher, student = view["teacher/logits"], view[own]
        agree = (teacher.argmax(-1) == student.argmax(-1)).mean()
        return soft_kl(teacher, student, temperature), {"agreement": agree}

    return Term(
        name="distil_logits", fn=fn, reads=("teacher/logits", own), weight=weight
    )


def distil_features(
    width: int, teacher_width: int, weight: float, *, seed: int
) -> Term:
    """w · ½ mean_d (f A + b − t)_d², A and b learned, f and t standardised features.

    The hint of FitNets (Romero et al. 2015), whose regressor maps the narrower student
    to the teacher's width, applied to the features the heads read. It is a mean over d,
    where the paper has a sum, so that w does not depend on the teacher's width.
    """
    own = f"train/features/{HEAD}"
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (width, teacher_width)) / jnp.sqrt(width)

    def fn(view: View) -> TermResult:
        lift = view["params"]["terms"]["distil_features"]
        lifted = view[own] @ lift["kernel"] + lift["bias"][None]
        teacher = jax.lax.stop_gradient(view["teacher/features"])
        return 0.5 * jnp.mean(jnp.square(lifted - teacher), -1), {}

    return Term(
        name="distil_features",
        fn=fn,
        reads=("params", "teacher/features", own),
        weight=weight,
        params={"kernel": kernel, "bias": jnp.zeros(teacher_width)},
        encoder_only=True,
    )


def distil_relations(weight: float) -> Term:
    """w · (RKD-D + 2 RKD-A) between the features the heads read; see `relations`."""
    own = f"train/features/{HEAD}"

    def fn(view: View) -> TermResult:
        teacher = jax.lax.stop_gradient(view["teacher/features"])
        distance, angle = relations(teacher, view[own])
        extra = {"distil_distance": distance, "distil_angle": angle}
        return distance + ANGLE * angle, extra

    return Term(
        name="distil_relations",
        fn=fn,
        reads=("teacher/features", own),
        weight=weight,
        encoder_only=True,
    )


def relations(
    teacher: Float[Array, "n d"], student: Float[Array, "n e"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(distance, angle) losses of relational distillation (Park et al. 2019, RKD).

    distance: mean_{i≠j} h(‖t_i − t_j‖ / μ_t, ‖s_i − s_j‖ / μ_s), μ the mean distance;
    angle: mean over i, j, k, all different, of h(cos ∠ t_i t_j t_k, cos ∠ s_i s_j s_k);
    h is Huber's loss with δ = 1. Zero for spaces that differ by a rotation and a scale.
    """
    n = len(teacher)
    pairs = 1.0 - jnp.eye(n)
    distance = _huber(_distances(student, pairs) - _distances(teacher, pairs))
    apart = pairs[:, :, None] * pairs[:, None, :] * pairs[None]
    angle = _huber(_angles(student) - _angles(teacher))
    return (
        jnp.sum(distance * pairs) / pairs.sum(),
        jnp.sum(angle * apart) / jnp.maximum(apart.sum(), 1.0),
    )


def _huber(x: Array) -> Array:
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * x**2, size - 0.5)


def _distances(x: Array, pairs: Array) -> Array:
    """‖x_i − x_j‖ divided by its mean; a floor keeps the root's gradient finite."""
    found = jnp.sqrt(jnp.maximum(square_distances(x, x), 1e-12)) * pairs
    return found * pairs.sum() / jnp.maximum(found.sum(), 1e-12)


def _angles(x: Array) -> Array:
    """[j, i, k]: the cosine of the angle at x_j between x_i and x_k."""
    apart = x[None, :] - x[:, None]
    length = jnp.sqrt(jnp.maximum(jnp.sum(apart**2, -1, keepdims=True), 1e-12))
    unit = apart / length
    return jnp.einsum("jid,jkd->jik", unit, unit)
