"""Evaluation during a run: loss, pictures and probes, computed the same each time.

The probes (kNN and ridge) compare the encoder with raw pixels, HOG and the encoder
before the run: untrained, or the one that is continued.
"""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from afterimage.checkpoints import schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.console import say_doing
from afterimage.data import ImageSet, array_set
from afterimage.data.views import suited_augment, two_views
from afterimage.evaluation import (
    effective_rank,
    own_view_retrieval,
    pixel_vectors,
    probe_report,
)
from afterimage.evaluation.probes import labels_a_class
from afterimage.models import FeatureInfo, Network, pool_features
from afterimage.models.dictionary import PatchDictionary, reduced
from afterimage.models.hog import hog_vectors, joined_hog
from afterimage.models.vector import (
    Parts,
    VectorRecipe,
    candidates,
    moments_of,
    usual_pool,
)
from afterimage.pictures import draw_rows
from afterimage.pretrain.choice import Joined, choose, declared
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.gallery import FOLDER, neighbours, write_rows
from afterimage.pretrain.losses import ReconstructionLoss
from afterimage.pretrain.objective import Forward, ModelSetup, Tree, to_pixels
from afterimage.report.parts import Gallery
from afterimage.runs import Run, write_json, write_png
from afterimage.training.batches import EvaluationRunner, spaced, subsample

# Most images for the mean image and the rank; for the loss without a validation set.
_MEAN_IMAGES, _RANK_IMAGES, _FALLBACK_IMAGES = 20_000, 2_000, 1_000
_DICTIONARY_IMAGES = 2_000  # for a dictionary of patches
# Most and fewest held-out images whose views are compared.
_VIEWED_IMAGES, _FEWEST_VIEWED = 250, 20
OWN_VIEW = "own_view"
"""The metric that marks the best checkpoint: it needs no label."""

Check = Callable[[], None]
RAW, HOG, UNTRAINED, TRAINED = "raw pixels", "HOG", "untrained encoder", "this encoder"
CONTINUED = "encoder before this run"
"""In place of the untrained one, if the run continues another."""
PROBES = ("ridge_10", "ridge", "knn")
Report = dict[str, dict[str, Any]]
Pooled = dict[str, np.ndarray]
_BOTTLENECK = "bottleneck"


def picture_name(step: int) -> str:
    """Name of the file in `pictures/` with the reconstructions after this step."""
    return f"step-{step:07d}.png"


@dataclasses.dataclass(frozen=True)
class EvaluationBudget:
    """How many images evaluations look at: about a twentieth of the cost of a run.

    Counted in images, not measured, so that it is the same on every machine and when a
    run resumes. The loss of an image is taken to cost a third of training on it, its
    features a sixth. A few images are always looked at, however short the run.
    """

    trained: int
    """Images that the run trains on, repeats included."""
    evaluations: int

    @property
    def loss_images(self) -> int:
        """Most held-out images; all evaluations cost a fiftieth of the training."""
        return max(256, int(0.06 * self.trained / self.evaluations))

    @property
    def images(self) -> int:
        """Most training images for anything else: a twentieth of those trained on."""
        return max(1_000, self.trained // 20)

    def due(self, number: int, images: int, before: int) -> bool:
        """Whether evaluation `number`, from 1 on, computes features of `images` images.

        The last one always does. So do as many others, evenly spaced, as keep the cost
        of all, and of `before` more at the start, at 3 % of training.
        """
        affordable = int(0.18 * self.trained / images) - before
        times, of = min(max(affordable, 1), self.evaluations), self.evaluations
        return number * times // of > (number - 1) * times // of


class Evaluation:
    """Created once per run, called at each evaluation; scores use held-out images.

    Without a validation set, loss and pictures use training images, and there are no
    probes. Probes and the rank may be left out of some evaluations, never of the last.
    """

    def __init__(
        self,
        config: PretrainConfig,
        setup: ModelSetup,
        encoder: Network,
        info: Sequence[FeatureInfo],
        *,
        train: ImageSet,
        validation: ImageSet | None,
        run: Run,
        sweep: EvaluationRunner,
        total: int,
    ):
        self.config, self.setup, self.run, self.sweep = config, setup, run, sweep
        self.train, self.rank = train, 0.0
        self.objective = objective = config.objective
        every, _ = config.cadence(total)
        self.total, self.every = total, every
        self.budget = EvaluationBudget(total * config.batch_size, -(-total // every))
        self.held = validation or subsample(train, _FALLBACK_IMAGES)
        self.held = subsample(self.held, self.budget.loss_images)
        self.probes = Probes.of(
            train,
            validation,
            most=min(config.probe_images, self.budget.images),
            most_held=max(1_000, self.budget.images // 4),
            k=config.probe_k,
        )
        size, (pool, transform) = setup.model.image_size, objective.default_vector
        pool = usual_pool(pool, info, size)
        self.own = pool, transform
        """The objective's own feature vector."""
        pools = (*candidates(info, size), pool)
        self.pools = tuple(dict.fromkeys(pools))
        self.bottleneck = setup.model.bottleneck is not None
        self.last: tuple[Pooled, Pooled] | None = None
        """The pooled maps of the probes' images at the last call, …"""
        self.first: tuple[Pooled, Pooled] | None = None
        """… and those of the encoder before the run, if they are known."""
        self.before = UNTRAINED if config.from_ is None else CONTINUED
        self.ranked: tuple[ImageSet, Pooled] | None = None
        """Without probes, some images and their pooled maps."""
        self.joined: Joined | None = None
        """Those of the probes' images, or of the images in `ranked`."""
        self.viewed = subsample(self.held, _VIEWED_IMAGES)
        """Images of which two views are compared."""
        self.views: tuple[ImageSet, ...] = ()
        self.baselines: Report = {}
        self.report: Report = {}
        """The last `probe_report`, with the baselines' rows."""

        def look(params: Tree, stats: Tree, batch: Tree, key: Array):
            forward = Forward(setup, params, stats, key, counted=batch["mask"])
            measures, rows = objective.measure(forward, to_pixels(batch["image"]))

            def total(values: Array) -> Array:
                counts = batch["mask"].reshape(-1, *(1 for _ in values.shape[1:]))
                return jnp.sum(jnp.where(counts, values, 0), axis=0)

            return jax.tree.map(total, measures), rows

        def features(params: Tree, stats: Tree, batch: Tree):
            inputs = setup.preprocessing.normalise(batch["image"])
            method = "features" if self.bottleneck else None
            found = encoder.apply(params, stats, inputs, method=method)[0]
            if self.bottleneck:
                return {_BOTTLENECK: found}
            return {pool: pool_features(found, pool) for pool in self.pools}

        def samples(params: Tree, stats: Tree, pixels: Array, key: Array):
            return objective.samples(Forward(setup, params, stats, key), pixels)

        # One function for loss and pictures, since compiling dominates a short run.
        self._look, self._features = sweep.jit(look), sweep.jit(features)
        self._samples = sweep.jit(samples)
        scores = objective.scores(setup)
        self.mean_image_loss: float | None = None
        """The loss of the mean image; None if nothing is reconstructed."""
        if scores is not None:
            some = subsample(train, min(_MEAN_IMAGES, 2 * self.budget.images))
            self.mean_image_loss = self._mean_image_loss(scores, some)

    def measure_baselines(self, params: Tree, stats: Tree) -> None:
        """Probe raw pixels, HOG and the encoder before the run, before the first call.

        `params` and `stats` are those of the network before the first step.
        """
        if self.probes is None:
            return

        def before() -> Sequence[np.ndarray]:
            self.first = self._pooled(params, stats, lambda: None)
            return self._vectors(*self.first)

        file = self.run.path / "baselines.json"
        self.baselines = self.probes.baselines(file, self.before, before)

    def _pooled(self, params: Tree, stats: Tree, check: Check) -> tuple[Pooled, Pooled]:
        assert self.probes is not None
        train = self.features(params, stats, self.probes.train, check)
        return train, self.features(params, stats, self.probes.held, check)

    def __call__(
        self, params: Tree, stats: Tree, step: int, check: Check
    ) -> Mapping[str, float]:
        """Metrics at this step; writes its picture. `check` is called between batches.

        `loss` and `relative_loss` of the held-out images, corrupted or masked as in
        training with the same draws every time, and the objective's own metrics;
        `effective_rank` of their features, and `own_view` of two views of them; with
        labels also `knn`, `ridge_10` and `ridge`, each with its baselines
        `_raw_pixels`, `_hog` and `_untrained` (or `_before`, if the run continues
        another). If the loss is not finite, or features are not due, the losses are
        returned alone.
        Features are the objective's own vector.
        """
        self.last = None
        results, columns = self.losses(params, stats, check)
        if not math.isfinite(results["loss"]):  # diverged: the loop ends the run
            return results
        if columns:
            self._picture(params, stats, step, columns)
        if not self._due(step):
            return results
        results |= self._own_view(params, stats, check)
        if self.probes is None:
            some = self._for_rank
            pooled = self.features(params, stats, some, check)
            self.ranked = some, pooled
            self.rank = effective_rank(self._vectors(pooled)[0])
            return results | {"effective_rank": self.rank}
        self.last = self._pooled(params, stats, check)
        ours = self.probes.score(TRAINED, *self._vectors(*self.last))
        self.report = self.baselines | ours
        self.rank = results["effective_rank"] = ours[TRAINED]["effective_rank"]
        return results | probe_metrics(self.report)

    def _own_view(self, params: Tree, stats: Tree, check: Check) -> dict[str, float]:
        """How often one view of an image is nearest to its other view; the views are
        the same in every run on these images, whatever its augmentation."""
        if len(self.viewed) < _FEWEST_VIEWED:
            return {}
        if not self.views:
            pixels = self.viewed.gather(np.arange(len(self.viewed)))
            views = two_views(pixels, suited_augment(pixels))
            self.views = tuple(array_set(v, None, None, "views") for v in views)
        pooled = (self.features(params, stats, view, check) for view in self.views)
        first, second = (self._vectors(view)[0] for view in pooled)
        return {OWN_VIEW: own_view_retrieval(first, second)}

    @property
    def _for_rank(self) -> ImageSet:
        return subsample(self.held, min(_RANK_IMAGES, self.budget.images))

    def _due(self, step: int) -> bool:
        """Whether features are computed at this step: it depends on nothing else."""
        number = -(-step // self.every)
        images = 2 * len(self.viewed)
        if self.probes is None:
            return self.budget.due(number, images + len(self._for_rank), before=0)
        images += len(self.probes.train) + len(self.probes.held)
        return self.budget.due(number, images, before=1)

    def _vectors(
        self, train: Pooled, *others: Pooled, like: VectorRecipe | None = None
    ) -> list[np.ndarray]:
        """Vectors of pooled maps, with the statistics of `train`: the objective's own,
        or pooled and transformed `like` another."""
        if self.bottleneck:
            return [pooled[_BOTTLENECK] for pooled in (train, *others)]
        pool, transform = (like.pool, like.transform) if like else self.own
        vector = VectorRecipe.fit(pool, transform, moments_of(train[pool]))
        return [vector.transformed(pooled[pool]) for pooled in (train, *others)]

    def conclude(
        self, params: Tree, stats: Tree, initial: tuple[Tree, Tree]
    ) -> tuple[VectorRecipe | None, dict[str, Any]]:
        """(the feature vector, `vector` and `probes` of the manifest), after the run.

        The vector is chosen by the labelled images of the last call (`choose`); without
        them it is the default: the objective's own, joined with a dictionary of
        patches and HOG. A bottleneck stays the vector: None. The report then has the
        probes of this vector, also of the encoder before the run, whose parameters and
        statistics are `initial`.
        """
        vector, entries = None, {}
        if not self.bottleneck:
            if self.probes is not None and self.last is not None:
                say_doing("Choosing the feature vector")
                labels, k = self.probes.labels, self.config.probe_k
                joined = self._joined(self.probes.train, self.probes.held)
                self.joined = joined
                vector, entry = choose(self.own, *self.last, labels, k=k, joined=joined)
                same = (vector.pool, vector.transform) == self.own
                if not same or vector.joins:
                    self._measure_again(self.probes, vector, joined, initial)
            else:
                most = min(_RANK_IMAGES, self.budget.images)
                some = subsample(self.train, most)
                pooled = self.features(params, stats, some, lambda: None)
                self.ranked, self.joined = (some, pooled), self._joined(some)
                vector, entry = declared(self.own, pooled, self.joined)
            entries["vector"] = entry
        return vector, entries | {"probes": self._passed()}

    def _joined(self, train: ImageSet, held: ImageSet | None = None) -> Joined | None:
        """A dictionary of patches of training images; its vectors and HOG of both."""
        if not self.objective.joins_patches:
            return None
        normalise = self.setup.preprocessing.normalise

        def over(images: ImageSet, function: Callable[[Array], Array]) -> np.ndarray:
            """`function` of all normalised images, batch by batch."""
            run = self.sweep.jit(lambda batch: function(normalise(batch["image"])))
            batches = self.sweep.batches(images)
            found = [np.asarray(run(batch))[mask] for _, batch, mask in batches]
            return np.concatenate(found)

        fitted = subsample(train, _DICTIONARY_IMAGES)
        dictionary = PatchDictionary.fit(over(fitted, reduced))

        def parts(images: ImageSet) -> Parts:
            return {
                "patches": over(images, dictionary),
                "hog": over(images, joined_hog),
            }

        return Joined(dictionary, parts(train), parts(held) if held else None)

    def neighbours(self, vector: VectorRecipe | None) -> Gallery | None:
        """Images and their nearest images, by `vector` (None: the bottleneck).

        From the features of the last call or of `conclude`, so that it costs a search
        among few images.
        """
        parts = (self.joined.train, self.joined.held) if self.joined else (None, None)
        if self.probes is not None and self.last is not None:
            vectors, asked = (
                _finished(vector, pooled, part)
                for pooled, part in zip(self.last, parts)
            )
            return neighbours(self.probes.held, asked, self.probes.train, vectors)
        if self.ranked is None:
            return None
        some, pooled = self.ranked
        vectors = _finished(vector, pooled, parts[0])
        return neighbours(some, vectors, some, vectors)

    def _measure_again(
        self,
        probes: "Probes",
        vector: VectorRecipe,
        joined: Joined | None,
        initial: tuple[Tree, Tree],
    ) -> None:
        """The report, with this vector of the encoder and of that before the run; the
        latter without patches and HOG, which need no network."""
        assert self.last is not None
        first = self.first or self._pooled(*initial, lambda: None)
        pair = self._vectors(*first, like=vector)
        self.report = self.report | probes.score(self.before, *pair)
        if not vector.joins or joined is None:
            pair = self._vectors(*self.last, like=vector)
        else:
            parts = (joined.train, joined.held)
            pair = [
                _finished(vector, pooled, part)
                for pooled, part in zip(self.last, parts, strict=True)
            ]
        self.report = self.report | probes.score(TRAINED, *pair)
        self.rank = self.report[TRAINED]["effective_rank"]

    def _passed(self) -> dict[str, Any]:
        """The `probes` of the manifest: the last report in short."""
        if self.probes is None or not self.report:
            return {"effective_rank": self.rank}
        known, truth = self.probes.labels
        return {
            "effective_rank": self.rank,
            "train": len(known),
            "images": len(truth),
            "classes": len(np.unique(known)),
            "per_class": labels_a_class(known),
            "accuracy": {
                name: {probe: row[probe]["value"] for probe in PROBES}
                for name, row in self.report.items()
            },
        }

    def losses(
        self, params: Tree, stats: Tree, check: Check
    ) -> tuple[dict[str, float], list[np.ndarray]]:
        """(mean loss over the held-out images and the objective's own metrics; the rows
        of a picture of some of them).

        `relative_loss` covers the reconstruction only, without penalties.
        """
        totals: dict[str, Any] = {}
        shown = spaced(len(self.held), self.config.pictures)
        pictures: list[list[np.ndarray]] = [[] for _ in self.objective.rows]
        for number, batch, mask in self.sweep.batches(self.held):
            check()
            found, rows = self._look(params, stats, batch, self._key(number))
            for name, total in found.items():
                more = np.asarray(total, np.float64)
                totals[name] = totals.get(name, 0.0) + more
            here = shown[shown // len(mask) == number] % len(mask)
            if len(here):
                for column, row in zip(pictures, rows, strict=True):
                    column.append(np.asarray(row)[here])
        means = {name: total / len(self.held) for name, total in totals.items()}
        loss = float(means.pop("loss"))
        relative = self.relative_loss({"loss": loss, **means})
        own = self.objective.summarise(means)
        own = {name: float(value) for name, value in own.items()}
        columns = [np.concatenate(column) for column in pictures if column]
        return {"loss": loss, **relative, **own}, columns

    def relative_loss(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """{"relative_loss": …}: 1 is no better than the mean image, 0 is perfect."""
        if self.mean_image_loss is None:
            return {}
        loss = float(metrics.get("reconstruction", metrics["loss"]))
        return {"relative_loss": loss / self.mean_image_loss}

    def features(
        self, params: Tree, stats: Tree, images: ImageSet, check: Check
    ) -> Pooled:
        """The encoder's maps in every pooling that may become the vector: float32
        [N, D]; or its bottleneck."""
        encoder = params["encoder"], stats.get("encoder", {})
        rows: dict[str, list[np.ndarray]] = {}
        for _, batch, mask in self.sweep.batches(images):
            check()
            for pool, found in self._features(*encoder, batch).items():
                rows.setdefault(pool, []).append(np.asarray(found)[mask])
        # The device sorts names; here the simplest pooling comes first.
        names = (_BOTTLENECK,) if self.bottleneck else self.pools
        return {name: np.concatenate(rows[name]) for name in names}

    def _key(self, number: int) -> Array:
        return jax.random.fold_in(jax.random.key(self.config.seed), number)

    def _picture(
        self, params: Tree, stats: Tree, step: int, columns: list[np.ndarray]
    ) -> None:
        rows = dict(zip(self.objective.rows, columns, strict=True))
        samples = self._samples(params, stats, columns[0], self._key(0))
        if samples is not None:
            rows["samples"] = np.asarray(samples)
        picture = draw_rows(rows)
        if self.run.is_main_process:
            write_png(picture, self.run.pictures / picture_name(step))
            write_rows(rows, self.run.path / FOLDER / picture_name(step))
        self.run.metrics.picture(step, "reconstruction", picture)

    def _mean_image_loss(self, loss: ReconstructionLoss, some: ImageSet) -> float:
        """The held-out loss of always predicting the mean of the training targets."""

        @self.sweep.jit
        def sums(constant: Any, batch: Tree):
            targets = loss.targets(to_pixels(batch["image"]))
            mask = batch["mask"].reshape(-1, 1, 1, 1)
            output = jnp.broadcast_to(constant[None], targets.shape)
            values = loss.per_image(output, targets)
            total = jnp.sum(jnp.where(batch["mask"], values, 0))
            return jnp.sum(jnp.where(mask, targets, 0), axis=0), total

        nothing = np.zeros(some.shape, np.float32)
        batches = self.sweep.batches(some)
        targets = [np.asarray(sums(nothing, batch)[0]) for _, batch, _ in batches]
        mean = np.sum(targets, axis=0, dtype=np.float64) / len(some)
        constant = np.asarray(loss.constant_output(jnp.asarray(mean, jnp.float32)))
        batches = self.sweep.batches(self.held)
        total = sum(float(sums(constant, batch)[1]) for _, batch, _ in batches)
        # The mean predicts identical images perfectly: avoid dividing by zero.
        return max(total / len(self.held), float(np.finfo(np.float32).tiny))


def _finished(
    vector: VectorRecipe | None, pooled: Pooled, parts: Parts | None
) -> np.ndarray:
    """The finished feature vectors (None: the bottleneck) of pooled maps; `parts` are
    joined to those of the same images."""
    if vector is None:
        return pooled[_BOTTLENECK]
    return vector.transformed(vector.joined(pooled[vector.pool], parts or {}))


class Probes:
    """Both probes, fitted to labelled training images and scored on held-out ones.

    The encoder never sees a label: the probes only measure its features.
    """

    def __init__(self, train: ImageSet, held: ImageSet, *, k: int):
        self.train, self.held, self.k = train, held, k

    @classmethod
    def of(
        cls,
        train: ImageSet,
        validation: ImageSet | None,
        *,
        most: int,
        most_held: int,
        k: int,
    ) -> "Probes | None":
        """None without held-out images, without labels, or with a single class."""
        if validation is None or most == 0:
            return None
        pair = _labelled(train, most), _labelled(validation, min(most, most_held))
        if pair[0] is None or pair[1] is None:
            return None
        assert pair[0].labels is not None
        if len(np.unique(pair[0].labels)) < 2:
            return None
        return cls(pair[0], pair[1], k=k)

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels of the training and of the held-out images."""
        assert self.train.labels is not None
        assert self.held.labels is not None
        return np.asarray(self.train.labels), np.asarray(self.held.labels)

    def score(self, name: str, train: np.ndarray, held: np.ndarray) -> Report:
        """`probe_report` of these vectors of the images, under `name`."""
        return probe_report({name: (train, held)}, self.labels, k=self.k)

    def measured(self) -> Report:
        """Scores of raw pixels and HOG, which need no network."""
        pair = [s.gather(np.arange(len(s))) for s in (self.train, self.held)]
        raw = self.score(RAW, *map(pixel_vectors, pair))
        # Together, so that one shape is compiled.
        both = hog_vectors(np.concatenate(pair))
        return raw | self.score(HOG, both[: len(pair[0])], both[len(pair[0]) :])

    def baselines(
        self,
        file: pathlib.Path,
        before: str,
        vectors: Callable[[], Sequence[np.ndarray]],
    ) -> Report:
        """Scores of raw pixels, HOG and, named `before`, the `vectors` of the encoder
        before the run; measured once, then kept in `file`."""
        # Several processes must take the same path: all compute, only the first writes.
        if jax.process_count() == 1:
            with contextlib.suppress(CheckpointError):  # if absent or damaged, measure
                stored = schemas.read(file, schemas.Baselines, "delete it")
                if set(stored) == {RAW, HOG, before}:
                    return stored
        say_doing(f"Measuring raw pixels, HOG and the {before}")
        report = self.measured() | self.score(before, *vectors())
        if jax.process_index() == 0:
            write_json(file, report)
        return report


def probe_metrics(report: Report) -> dict[str, float]:
    """{"knn": …, "knn_raw_pixels": …, "knn_hog": …, "knn_untrained": …, and the same
    for "ridge" and "ridge_10"}."""
    suffixes = {TRAINED: "", RAW: "_raw_pixels", HOG: "_hog"}
    suffixes |= {UNTRAINED: "_untrained", CONTINUED: "_before"}
    return {
        probe + suffix: report[name][probe]["value"]
        for probe in PROBES
        for name, suffix in suffixes.items()
        if name in report
    }


def _labelled(images: ImageSet, most: int) -> ImageSet | None:
    if images.labels is None:
        return None
    rows = np.flatnonzero(images.labels >= 0)
    return subsample(images.subset(rows), most) if len(rows) else None
