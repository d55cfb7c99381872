"""A trained classifier: images in, classes and probabilities out."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from scipy.special import log_softmax, softmax

from afterimage.checkpoints import schemas, weights
from afterimage.checkpoints.errors import CheckpointError, TransferError, UsageError
from afterimage.checkpoints.manifest import numbered_steps
from afterimage.checkpoints.names import printable
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten, transfer, unflatten
from afterimage.data.preprocessing import Batch, image_batches, prepare
from afterimage.encoder import (
    joined,
    shown,
    stored_model,
    stored_preprocessing,
    stream,
)
from afterimage.errors import UserError, did_you_mean
from afterimage.evaluation.nearest import Reference
from afterimage.models.classifier import (
    HEAD,
    ClassifierNetwork,
    HeadConfig,
    Tree,
    over_views,
)
from afterimage.outputs import Outputs, outputs_of
from afterimage.pictures import draw_heat
from afterimage.runtime import jit
from afterimage.storage.reading import local

NEIGHBOURS = "neighbours"
"""In `stats`, by head: the features of training images, for `Reference`."""
_EXPLAINED = 64  # images per pass of `explain`, which also runs backwards
_NAMED = 8  # classes that `repr` names
_WORDS = {"classes": "classes", "multi-label": "labels", "regression": "numbers"}


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Where in the images the evidence for a class is."""

    classes: np.ndarray
    """[n]: the class that is explained."""
    heat: Float[np.ndarray, "n h w"]
    """Evidence by pixel: above 0 for the class, below 0 against it."""
    images: np.ndarray
    """[n, h, w, c]: the images as the network sees them: scaled and cropped."""

    @functools.cached_property
    def overlay(self) -> UInt8[np.ndarray, "n h w 3"]:
        """The images, with the evidence for the class in colour."""
        return draw_heat(self.images, self.heat)


class Classifier:
    """A trained encoder with its heads; `load_classifier` returns one.

    Images are given as to `Encoder.features`: uint8, or float in [0, 1], NHWC, one HWC
    image, or a list of HWC images of any sizes. `task` names a head where there are
    several; by default it is the main one. The results do not depend on how images are
    batched (to 1e-5).

    It never changes after construction, so threads may share it.
    """

    network: ClassifierNetwork
    """The networks as pure functions of (params, stats, images)."""
    params: Tree
    """Parameters, {"encoder", "heads"}."""
    stats: Tree
    """BatchNorm's moments, and what standardises the heads' features."""
    manifest: Mapping[str, Any]
    """The artefact's metadata: model, data, heads, how it was trained."""
    class_names: Mapping[str, tuple[str, ...]]
    """{task: its classes, in the order of the probabilities}; of other heads the names
    of their labels or numbers."""
    outputs: Mapping[str, Outputs]
    """{task: what it predicts: classes, several labels, or numbers}."""
    references: Mapping[str, Reference]
    """{task: features of training images}; empty for a checkpoint of a run that is not
    finished, and for runs older than this."""

    def __init__(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        manifest: Mapping[str, Any],
        *,
        dtype: str = "float32",
    ):
        """Raises CheckpointError if the arrays do not fit the manifest."""
        entries = {name: dict(entry) for name, entry in manifest["heads"].items()}
        # The artefact may be someone else's: keep control characters off the terminal.
        self.class_names = {
            name: tuple(map(printable, entry.pop("class_names")))
            for name, entry in entries.items()
        }
        self.outputs = {
            name: outputs_of(entry.pop("outputs", None), self.class_names[name])
            for name, entry in entries.items()
        }
        stats = dict(stats)
        known = stats.pop(NEIGHBOURS, {})
        try:
            self.network, fresh_params, fresh_stats = ClassifierNetwork.create(
                stored_model(manifest),
                {name: HeadConfig(**entry) for name, entry in entries.items()},
                stored_preprocessing(manifest),
                dtype=dtype,
                fresh=False,
            )
            params, _ = transfer(params, fresh_params)
            stats, _ = transfer(stats, fresh_stats)
        except (TransferError, UserError) as error:
            raise CheckpointError(f"it does not match its manifest. {error}") from error
        self.params, self.stats = jax.device_put((params, stats))
        self.manifest = dict(manifest)
        self.references = self._references(known)
        self._functions: dict[Any, Any] = {}

    def _references(self, known: Mapping[str, Any]) -> dict[str, Reference]:
        found = {}
        for task, arrays in known.items():
            vectors, usual = arrays.get("features"), arrays.get("usual")
            width = self.stats["heads"][task]["mean"].size if task in self.tasks else 0
            width = self.network.heads[task][0].keep or width if width else 0
            fits = np.ndim(vectors) == 2 and np.shape(vectors)[1] == width
            if not fits or np.shape(usual) != (101,) or not len(vectors):
                raise CheckpointError(
                    f"the stored features of training images do not fit the head "
                    f"{printable(task)!r}"
                )
            found[task] = Reference(np.asarray(vectors), np.asarray(usual))
        return found

    def __repr__(self) -> str:
        """Architecture, input, classes and training data, a line each."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        preprocessing, trained = self.preprocessing, self.manifest["trained"]
        height, width = preprocessing.image_size
        lines = [
            f"Classifier {self.manifest['model']['name']}: {count:,} parameters",
            f"{height} x {width} px, {preprocessing.channels} channels",
        ]
        for task, names in self.class_names.items():
            some = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
            of = "" if task == HEAD else f"{task}: "
            lines.append(f"{of}{len(names)} {_WORDS[self.outputs[task].kind]} ({some})")
        how = [f"mode {trained['mode']}"] if "mode" in trained else []
        how += [f"{trained['steps']} steps"] if "steps" in trained else []
        how += [f"{trained['labels']} labels"] if "labels" in trained else []
        data = self.manifest["data"]["name"] or "unknown images"
        lines.append(f"trained on {data}" + (f" ({', '.join(how)})" if how else ""))
        return printable("\n  ".join(lines), keep="\n")

    @property
    def preprocessing(self) -> Any:
        """Trained size, channels, mean and standard deviation."""
        return self.network.preprocessing

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its heads, the main one first: `classes`, and further tasks."""
        return tuple(sorted(self.class_names, key=lambda name: name != HEAD))

    @property
    def classes_(self) -> np.ndarray:
        """The class names of the main head, as scikit-learn's classifiers have them."""
        return self.classes()

    def classes(self, task: str | None = None) -> np.ndarray:
        """The class names of a task, in the order of its probabilities."""
        return np.array(self.class_names[self.task(task)])

    def task(self, name: str | None = None) -> str:
        """The head of this name; by default the main one, or the only one.

        Raises UserError for an unknown name, and without a name if there are several
        heads and none is the main one.
        """
        if name is None and (len(self.tasks) == 1 or HEAD in self.class_names):
            return self.tasks[0]
        if name is None or name not in self.class_names:
            known, hint = ", ".join(self.tasks), did_you_mean(name or "", self.tasks)
            raise UserError(f"task={name!r}: must be one of {known}{hint}")
        return name

    def require_classes(self, task: str, why: str) -> None:
        """Raise UserError if this head predicts anything but classes."""
        kind = self.outputs[task].kind
        if kind != "classes":
            raise UserError(f"{why} needs a head of classes, and this is {kind}")

    def logits(self, images: Any, **how: Any) -> Float[np.ndarray, "n classes"]:
        """The head's outputs; arguments as for `predict_proba`.

        For classes unnormalised log-probabilities, for several labels log-odds, for
        numbers the predictions in standard deviations from the mean.
        """
        return self._over(images, **how)[0]

    def values(self, images: Any, **how: Any) -> Float[np.ndarray, "n k"]:
        """Probabilities, or the predicted numbers in the units of the labels."""
        outputs = self.outputs[self.task(how.get("task"))]
        return outputs.values(self.logits(images, **how))

    def predict_proba(
        self,
        images: Any,
        *,
        task: str | None = None,
        views: str = "none",
        batch_size: int = 256,
        progress: bool = False,
    ) -> Float[np.ndarray, "n classes"]:
        """Probabilities of the classes, in the order of `classes_`; rows sum to 1.

        Of several labels each has its own probability. Numbers have none: UserError.
        `views` (one of VIEWS: flip, shift, shift-flip) averages them over 2, 9 or 18
        views of each image. Raises UserError for input that is not an image.
        """
        how = {"task": task, "views": views, "progress": progress}
        if self.outputs[self.task(task)].activation == "identity":
            raise UserError("predict_proba: this head predicts numbers; use predict")
        return self.values(images, batch_size=batch_size, **how)

    def predict_log_proba(
        self, images: Any, **how: Any
    ) -> Float[np.ndarray, "n classes"]:
        """Logarithms of `predict_proba`, from the logits, so that none is −∞."""
        self.require_classes(self.task(how.get("task")), "predict_log_proba")
        return log_softmax(self.logits(images, **how).astype(np.float64), axis=1)

    def predict(self, images: Any, **how: Any) -> np.ndarray:
        """The name of the most probable class of each image.

        With several labels, 0 or 1 for each, [n, labels] in the order of `classes_`.
        With numbers, float64 [n, k] in the units of the labels; [n] if there is one.
        """
        outputs = self.outputs[self.task(how.get("task"))]
        return outputs.predicted(self.logits(images, **how))

    def features(self, images: Any, **how: Any) -> Float[np.ndarray, "n d"]:
        """What the head reads: the encoder's features, standardised and selected."""
        return self._over(images, **how)[1]

    def stream(
        self,
        batches: Iterable[Batch],
        *,
        task: str | None = None,
        views: str = "none",
        batch_size: int = 256,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(logits, features) of each batch in turn, for data larger than memory.

        A batch is an array [b, H, W, C] or a list of [H, W, C], b ≤ `batch_size`.
        """
        function = self._outputs(self.task(task), views)
        return stream(function, self.preprocessing, batches, batch_size)

    def explain(
        self,
        images: Any,
        *,
        classes: Any = None,
        task: str | None = None,
        batch_size: int = _EXPLAINED,
    ) -> Explanation:
        """Where in each image the evidence for a class is.

        `classes` are the names to explain, one for all images or one each; by default
        the predicted ones (of several labels the most probable, of numbers the first).
        The heat is

            e(i, j) = h · w · Σ_c A(i, j, c) ∂z/∂A(i, j, c),    z = z_k − mean_l z_l

        for the maps A (h × w) that the head reads and its logits z, enlarged to the
        image. For a linear head on means of the maps, over the whole or a grid, its
        mean over the pixels is z up to a constant that no image changes, and on means
        over the whole it is the class activation map of Zhou et al. 2016; for other
        heads it is HiResCAM (Draelos and Carin 2020), Grad-CAM without the average over
        the pixels that would lose a grid's position. For labels and numbers z = z_k.

        Raises UserError for an unknown class.
        """
        name = self.task(task)
        batches, total = image_batches(images, batch_size)
        ready = [prepare(batch, self.preprocessing) for batch in batches]
        numbers = self._numbers(classes, name, total)
        heat = self._function(("explain", name), functools.partial(self._heat, name))
        logits = self._outputs(name, "none")
        parts, chosen, start = [], [], 0
        for batch in ready:
            if numbers is None:
                mine = np.asarray(logits(batch)[0]).argmax(1)
                if self.outputs[name].activation == "identity":
                    mine = np.zeros_like(mine)
            else:
                mine = numbers[start : start + len(batch)]
            size = batch_size if total > batch_size else len(batch)
            padding = [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)]
            target = np.pad(mine, padding[0]).astype(np.int32)
            parts.append(np.asarray(heat(np.pad(batch, padding), target))[: len(batch)])
            chosen.append(mine)
            start += len(batch)
        names = self.classes(name)[np.concatenate(chosen)]
        return Explanation(names, np.concatenate(parts), np.concatenate(ready))

    def _heat(self, task: str, params, stats, images: Array, target: Array) -> Array:
        maps, _ = self.network.maps(params, stats, self.preprocessing.normalise(images))

        def evidence(maps: list[Array]) -> Array:
            z = self.network.logits(params, stats, maps, task)
            own = jnp.take_along_axis(z, target[:, None], 1)[:, 0]
            if self.outputs[task].activation != "softmax":
                return own.sum()
            return (own - z.mean(1)).sum()

        heat = jnp.zeros(images.shape[:3])
        for a, slope in zip(maps, jax.grad(evidence)(maps)):
            e = (a * slope).sum(-1) * (a.shape[1] * a.shape[2])
            heat += jax.image.resize(e, heat.shape, "linear")
        return heat

    def _numbers(self, classes: Any, task: str, total: int) -> np.ndarray | None:
        """The numbers of the classes to explain; None for the predicted ones."""
        if classes is None:
            return None
        names = self.class_names[task]
        given = np.atleast_1d(np.asarray(classes)).astype(str).tolist()
        unknown = [name for name in given if name not in names]
        if unknown:
            raise UserError(
                f"{unknown[0]!r} is not a class of this classifier"
                f"{did_you_mean(unknown[0], names)} Its classes: {', '.join(names)}"
            )
        if len(given) not in (1, total):
            raise UserError(
                f"{len(given)} classes for {total} images; give one for all, or one "
                "per image"
            )
        numbers = np.array([names.index(name) for name in given])
        return np.broadcast_to(numbers, (total,))

    def _over(
        self,
        images: Any,
        *,
        task: str | None = None,
        views: str = "none",
        batch_size: int = 256,
        progress: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(logits, features)."""
        batches, total = image_batches(images, batch_size)
        parts = self.stream(batches, task=task, views=views, batch_size=batch_size)
        return joined(shown(parts, total, "predicting") if progress else parts, total)

    def _outputs(self, task: str, views: str) -> Any:
        """The jitted function of images that gives (logits, features)."""

        def both(params, stats, images):
            maps, _ = self.network.maps(
                params, stats, self.preprocessing.normalise(images)
            )
            features = self.network.head_features(params, stats, maps, task)
            if views == "none":
                return self.network.logits(params, stats, maps, task), features
            predict = functools.partial(self.network.predict, head=task)
            viewed = over_views(predict, views, self.outputs[task].activation)
            return viewed(params, stats, images), features

        return self._function((task, views), both)

    def _function(self, key: Any, run: Any) -> Any:
        """`run(params, stats, …)` on this classifier's weights, compiled once."""
        precision = "highest" if self.network.encoder.dtype == "float32" else None

        def exactly(*arguments: Any) -> Any:
            with jax.default_matmul_precision(precision):
                return run(*arguments)

        if key not in self._functions:
            self._functions.setdefault(key, jit(exactly))
        return functools.partial(self._functions[key], self.params, self.stats)


def probabilities(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """The softmax of logits, in float64."""
    return softmax(logits.astype(np.float64), axis=1)


def load_classifier(path: str | pathlib.Path, *, dtype: str = "float32") -> Classifier:
    """Load a classifier from a fine-tuning run, a checkpoint or a classifier folder.

    `path` is the run's folder, its `classifier/`, or one of its `checkpoints/STEP`. Of
    a run that is not finished, the newest step is loaded. Every file is compared with
    its checksum, and none is run as code. `dtype` is the network's compute type.

    Raises UserError if there is no such folder, CheckpointError if it holds no
    classifier or a damaged one, or if its arrays do not match its manifest (all
    differences are listed).
    """
    place = local(path, "classifier")
    if not place.is_dir():
        raise UserError(
            f"there is no folder {path}; give a fine-tuning run, one of its "
            "checkpoints/STEP, or a classifier/ folder"
        )
    params, stats, manifest = _read(place)
    try:
        return Classifier(params, stats, manifest, dtype=dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read(place: pathlib.Path) -> tuple[Tree, Tree, dict[str, Any]]:
    try:
        return weights.read_classifier(place)
    except UsageError:
        steps = [place] if (place / "state").is_dir() else []
        steps += [folder for _, folder in reversed(numbered_steps(place))]
        for step in steps:
            if (found := _read_step(step)) is not None:
                return found
        raise


def _read_step(step: pathlib.Path) -> tuple[Tree, Tree, dict[str, Any]] | None:
    """(params, stats, manifest) of a step; None if it is damaged or has no heads."""
    try:
        manifest = weights.read_folder(step / weights.ENCODER, weights.ENCODER)[2]
        if schemas.mistakes(manifest, schemas.ClassifierManifest):
            return None
        heads = manifest["heads"]
        _, tree, _ = Store(step.parent.parent).restore(step=int(step.name))
    except (CheckpointError, ValueError):
        return None
    # The running means, where they are kept.
    params = unflatten(flatten(tree["params"]) | flatten(tree.get("ema", {})))
    stats = {"encoder": {}, "heads": {}, **tree["stats"]}
    stats = unflatten(flatten(stats) | flatten(tree.get("ema_stats", {})))
    kept = [
        {
            "encoder": part.get("encoder", {}),
            "heads": {name: part["heads"][name] for name in heads},
        }
        for part in (params, stats)
    ]
    return kept[0], kept[1], manifest
