"""What a run is worth so far: loss, pictures and probes, the same way each time."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from afterimage.data import ImageSet
from afterimage.evaluation import effective_rank
from afterimage.models import Network
from afterimage.pictures import draw_rows
from afterimage.pretrain.probes import TRAINED, Probes, Report, probe_metrics
from afterimage.pretrain.reconstruction import Reconstruction, Tree, to_pixels
from afterimage.runs import Run, write_png
from afterimage.training.sweep import Sweep, spaced

# Images that the mean image, the rank, and the loss without validation are taken from.
_MEAN_IMAGES, _RANK_IMAGES, _FALLBACK_IMAGES = 20_000, 2_000, 1_000

Check = Callable[[], None]


def picture_name(step: int) -> str:
    """The file in `pictures/` that shows reconstructions after this step."""
    return f"step-{step:07d}.png"


class Evaluation:
    """Made once a run, called at each evaluation; every figure is of held-out images.

    Without a validation set, loss and pictures are of training images, and there are no
    probes.
    """

    def __init__(
        self,
        reconstruction: Reconstruction,
        encoder: Network,
        *,
        train: ImageSet,
        validation: ImageSet | None,
        run: Run,
        sweep: Sweep,
    ):
        config = reconstruction.config
        self.reconstruction, self.config = reconstruction, config
        self.run, self.sweep = run, sweep
        self.held = validation or spaced(train, _FALLBACK_IMAGES)
        self.probes = Probes.of(
            train, validation, most=config.probe_images, k=config.probe_k
        )
        self.baselines: Report = {}
        self.report: Report = {}
        """The last `probe_report`, with the baselines' rows."""

        def look(params: Tree, stats: Tree, batch: Tree, key: Array):
            found, rows = reconstruction.look(params, stats, batch["image"], key)

            def total(values: Array) -> Array:
                counts = batch["mask"].reshape(-1, *(1 for _ in values.shape[1:]))
                return jnp.sum(jnp.where(counts, values, 0), axis=0)

            return jax.tree.map(total, found), rows

        def features(params: Tree, stats: Tree, batch: Tree):
            inputs = reconstruction.preprocessing.normalise(batch["image"])
            return encoder.apply(params, stats, inputs, method="features")[0]

        # One function for loss and pictures: compiling is most of a short run.
        self._look, self._features = sweep.jit(look), sweep.jit(features)
        self._samples = sweep.jit(reconstruction.samples)
        self.mean_image_loss = self._mean_image_loss(spaced(train, _MEAN_IMAGES))

    def measure_baselines(self, params: Tree, stats: Tree) -> None:
        """Probe raw pixels and the untrained encoder, before the first call.

        `params` and `stats` are those of the autoencoder as initialised.
        """
        if self.probes is not None:
            self.baselines = self.probes.baselines(
                self.run.path / "baselines.json",
                lambda images: self.features(params, stats, images, lambda: None),
            )

    def __call__(
        self, params: Tree, stats: Tree, step: int, check: Check
    ) -> Mapping[str, float]:
        """Metrics at this step; writes its picture. `check` is called between batches.

        `loss` and `relative_loss` of the held-out images, corrupted or masked as in
        training by the same draws every time, and what the objective measures;
        `effective_rank` of their features; where there are labels `knn` and `ridge`,
        each beside `_raw_pixels` and `_untrained`. Losses that are not finite come
        alone.
        """
        results = self.losses(params, stats, check)
        if not math.isfinite(results["loss"]):  # diverged: the loop ends the run
            return results
        if self.config.pictures:
            self._picture(params, stats, step)

        def features(images: ImageSet) -> np.ndarray:
            return self.features(params, stats, images, check)

        if self.probes is None:
            some = features(spaced(self.held, _RANK_IMAGES))
            return results | {"effective_rank": effective_rank(some)}
        ours = self.probes.measure(TRAINED, features)
        self.report = self.baselines | ours
        results["effective_rank"] = ours[TRAINED]["effective_rank"]
        return results | probe_metrics(self.report)

    def losses(self, params: Tree, stats: Tree, check: Check) -> dict[str, float]:
        """Mean loss over the held-out images, and the objective's own metrics.

        `relative_loss` is of the reconstruction alone, without what is paid besides.
        """
        totals: dict[str, Any] = {}
        for number, batch, _ in self.sweep.batches(self.held):
            check()
            found, _ = self._look(params, stats, batch, self._key(number))
            for name, total in found.items():
                more = np.asarray(total, np.float64)
                totals[name] = totals.get(name, 0.0) + more
        means = {name: total / len(self.held) for name, total in totals.items()}
        loss = float(means.pop("loss"))
        relative = float(means.get("reconstruction", loss)) / self.mean_image_loss
        own = self.reconstruction.summarise(means)
        return {
            "loss": loss,
            "relative_loss": relative,
            **{name: float(value) for name, value in own.items()},
        }

    def features(
        self, params: Tree, stats: Tree, images: ImageSet, check: Check
    ) -> np.ndarray:
        """Feature vectors of the autoencoder's encoder, float32 [N, D]."""
        encoder = params["encoder"], stats.get("encoder", {})
        rows = []
        for _, batch, mask in self.sweep.batches(images):
            check()
            rows.append(np.asarray(self._features(*encoder, batch))[mask])
        return np.concatenate(rows)

    def _key(self, number: int) -> Array:
        return jax.random.fold_in(jax.random.key(self.config.seed), number)

    def _picture(self, params: Tree, stats: Tree, step: int) -> None:
        chosen = spaced(self.held, self.config.pictures)
        views: list[Any] = []
        for number, batch, mask in self.sweep.batches(chosen):
            _, found = self._look(params, stats, batch, self._key(number))
            views.append([np.asarray(view)[mask] for view in found])
        columns = [np.concatenate(view) for view in zip(*views)]
        rows = dict(zip(self.reconstruction.rows, columns, strict=True))
        samples = self._samples(params, stats, columns[0], self._key(0))
        if samples is not None:
            rows["samples"] = np.asarray(samples)
        picture = draw_rows(rows)
        if self.run.first:
            write_png(picture, self.run.pictures / picture_name(step))
        self.run.metrics.picture(step, "reconstruction", picture)

    def _mean_image_loss(self, some: ImageSet) -> float:
        """The held-out loss of always predicting the mean of the training targets."""
        loss = self.reconstruction.loss

        def target_sum(batch: Tree):
            targets = loss.targets(to_pixels(batch["image"]))
            mask = batch["mask"].reshape(-1, 1, 1, 1)
            return jnp.sum(jnp.where(mask, targets, 0), axis=0)

        def constant_loss(constant: Any, batch: Tree):
            targets = loss.targets(to_pixels(batch["image"]))
            output = jnp.broadcast_to(constant[None], targets.shape)
            values = loss.per_image(output, targets)
            return jnp.sum(jnp.where(batch["mask"], values, 0))

        target_sum, constant_loss = map(self.sweep.jit, (target_sum, constant_loss))
        sums = [np.asarray(target_sum(b)) for _, b, _ in self.sweep.batches(some)]
        mean = np.sum(sums, axis=0, dtype=np.float64) / len(some)
        constant = np.asarray(loss.constant_output(jnp.asarray(mean, jnp.float32)))
        batches = self.sweep.batches(self.held)
        total = sum(float(constant_loss(constant, b)) for _, b, _ in batches)
        # Identical images are predicted perfectly by their mean: nothing to divide by.
        return max(total / len(self.held), float(np.finfo(np.float32).tiny))
