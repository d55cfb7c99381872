"""A detector of anomalies: fitted to normal images, saved beside the run."""

import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from afterimage.anomalies.config import DEFAULT, FALSE_ALARMS, fit_problems
from afterimage.anomalies.scorer import Fitted, Scorer, resized
from afterimage.checkpoints import manifest, weights
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.trees import flatten
from afterimage.console import say_doing
from afterimage.data import ImageSet, object_spec
from afterimage.data.images import read_or_reason
from afterimage.data.preprocessing import Batch, image_batches, prepare
from afterimage.encoder import Encoder, joined, load_encoder, stream
from afterimage.errors import DataError, UserError
from afterimage.plugins import SCORERS
from afterimage.runs import beside
from afterimage.runtime import jit
from afterimage.settings import from_dict, to_dict
from afterimage.training.options import check

_PIXELS = 2**30
"""Most bytes of normal images in memory."""


class AnomalyDetector:
    """Tells images unlike the normal ones; `fit` or `load` make one.

    `images` are what `Encoder.features` takes. It never changes after construction, so
    threads may share it.
    """

    scorer: Scorer
    """How images are scored."""
    threshold: float
    """An image with a higher score is anomalous."""
    false_alarms: float
    """The share of normal images above the threshold, at most, in the mean."""
    fitted: int
    """Normal images that the scorer was fitted to."""
    held_out: int
    """Other normal images, which the threshold comes from."""

    def __init__(
        self,
        run: str | pathlib.Path,
        encoder: Encoder,
        known: Fitted,
        scores: Float[np.ndarray, " m"],
        facts: Mapping[str, Any],
    ):
        """`fit` and `load` call it, with what the scorer knows and the scores of the
        held-out images. Raises CheckpointError if they do not fit."""
        self.scorer = _scorer(facts["scorer"])
        self.run, self.encoder, self.facts = os.fspath(run), encoder, dict(facts)
        self.false_alarms = float(facts["false_alarms"])
        self.threshold = threshold_of(scores, self.false_alarms)
        self.facts["threshold"] = self.threshold
        self.fitted, self.held_out = facts["fitted"], len(scores)
        self._scores = scores
        self._known = jax.device_put(known)
        heat = self.scorer.heat_of(encoder)

        def score(params: Any, known: Fitted, images: Any) -> Any:
            return self.scorer.scores(heat(params, known, images))

        def both(params: Any, known: Fitted, images: Any) -> Any:
            found = heat(params, known, images)
            return self.scorer.scores(found), resized(found, images.shape[1:3])

        self._score, self._both = jit(score), jit(both)
        self._require_fit()

    def __repr__(self) -> str:
        return (
            f"AnomalyDetector {self.scorer.name}: {self.fitted:,} normal images, "
            f"threshold {self.threshold:.4g} from {self.held_out:,} more, for "
            f"{100 * self.false_alarms:.3g} % false alarms"
        )

    @classmethod
    def fit(
        cls,
        run: str | pathlib.Path,
        normal: Any,
        *,
        by: Any = DEFAULT,
        false_alarms: float = FALSE_ALARMS,
        held_out: float = 0.3,
        most: int = 2000,
        seed: int = 0,
        batch_size: int = 64,
    ) -> "AnomalyDetector":
        """Fit to normal images; nothing is saved.

        `run` is a run folder, a `checkpoints/STEP` or an `encoder/` folder. `normal` is
        what `Encoder.features` takes, or an `ImageSet` of the encoder's size. `by` is
        the name of a scorer, an instance, or a mapping with name and settings. At most
        `most` of the images are used, drawn by `seed`; the share `held_out` of them
        only sets the threshold (`threshold_of`).

        Raises UserError for settings that cannot work, DataError for fewer than 4
        usable images.
        """
        check(fit_problems(false_alarms, held_out, most))
        encoder = load_encoder(run)
        scorer = _scorer(by)
        images = _sample(normal, encoder, most, seed)
        if len(images) < 4:
            raise DataError(
                f"normal: {len(images)} usable images; at least 4 are needed"
            )
        held = min(max(1, round(held_out * len(images))), len(images) - 2)
        say_doing(f"Fitting to {len(images) - held:,} normal images")
        known = scorer.fit(os.fspath(run), encoder, images[held:], seed)
        facts = {
            "scorer": _settings(scorer),
            "encoder": _digest(encoder),
            "normal": {"name": object_spec(normal), "images": len(normal)},
            "fitted": len(images) - held,
            "held_out": held,
            "false_alarms": false_alarms,
        }
        unset = cls(run, encoder, known, np.zeros(1), facts)
        scores = unset.score(images[:held], batch_size=batch_size)
        return cls(run, encoder, known, scores, facts)

    def with_false_alarms(self, false_alarms: float) -> "AnomalyDetector":
        """The same with another threshold, from the same held-out images.

        Raises UserError for a share that is not in (0, 1).
        """
        check(fit_problems(false_alarms))
        facts = self.facts | {"false_alarms": false_alarms}
        return AnomalyDetector(self.run, self.encoder, self._known, self._scores, facts)

    def score(self, images: Any, *, batch_size: int = 64) -> Float[np.ndarray, " n"]:
        """How unlike the normal images each image is; ≥ 0, without a unit."""
        batches, total = image_batches(images, batch_size)
        return joined(self.stream(batches, batch_size=batch_size), total)

    def anomalous(self, images: Any, *, batch_size: int = 64) -> Bool[np.ndarray, " n"]:
        """Whether each score is above the threshold."""
        return self.score(images, batch_size=batch_size) > self.threshold

    def maps(self, images: Any, *, batch_size: int = 64) -> Float[np.ndarray, "n h w"]:
        """Where each image is unlike the normal ones; h x w is the encoder's size.

        ≥ 0, in the unit of the score, of the image scaled and cropped to that size.
        """
        batches, total = image_batches(images, batch_size)
        found = self.stream(batches, batch_size=batch_size, maps=True)
        return joined((maps for _, maps in found), total)

    def stream(
        self, batches: Iterable[Batch], *, batch_size: int = 64, maps: bool = False
    ) -> Iterator[Any]:
        """Scores of each batch in turn, or (scores, maps); for data of any size."""
        function = self._both if maps else self._score
        run = functools.partial(function, self.encoder.params, self._known)
        return stream(run, self.encoder.preprocessing, batches, batch_size)

    def save(self, folder: str | pathlib.Path | None = None) -> pathlib.Path:
        """Write it to a folder, by default the scorer's in `RUN/anomalies/`."""
        place = _folder(self.run, self.scorer.name) if folder is None else folder
        place = pathlib.Path(place)
        stats = {"held_out": self._scores}
        weights.write_encoder(
            place, self._known, stats, self.facts, kind=weights.DETECTOR
        )
        return place

    @classmethod
    def load(
        cls,
        run: str | pathlib.Path,
        *,
        by: str = DEFAULT,
        folder: str | pathlib.Path | None = None,
    ) -> "AnomalyDetector":
        """The detector that `save` wrote, with the encoder of `run`.

        Raises UserError if there is none, CheckpointError if it is damaged or was
        fitted to another encoder.
        """
        place = pathlib.Path(_folder(run, by) if folder is None else folder)
        encoder = load_encoder(run)
        if not (place / manifest.NAME).is_file():
            raise UserError(
                f"{place} holds no detector: fit one first (afterimage anomalies "
                "--normal FOLDER, with images of what is normal)"
            )
        known, stats, facts = weights.read_folder(place, weights.DETECTOR)
        scores = stats.get("held_out")
        if not isinstance(scores, np.ndarray) or scores.shape != (facts["held_out"],):
            raise CheckpointError(
                f"{place} has no scores of its {facts['held_out']} held-out images; "
                "fit it again, with normal images (--normal)"
            )
        if facts["encoder"] != _digest(encoder):
            raise CheckpointError(
                f"{place} was fitted to another encoder than that of {run}; fit it "
                "again, with normal images (--normal)"
            )
        try:
            return cls(run, encoder, known, scores, facts)
        except UserError as error:
            raise CheckpointError(f"{place}: its manifest: {error}") from error

    def _require_fit(self) -> None:
        """Raises CheckpointError if the arrays do not fit scorer and encoder."""
        preprocessing = self.encoder.preprocessing
        shape = (1, *preprocessing.image_size, preprocessing.channels)
        image = jax.ShapeDtypeStruct(shape, jnp.uint8)
        try:
            jax.eval_shape(self._both, self.encoder.params, self._known, image)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"the arrays of the detector do not fit the scorer {self.scorer.name}: "
                f"{str(error).splitlines()[0]}"
            ) from error


def threshold_of(scores: Float[np.ndarray, " m"], false_alarms: float) -> float:
    """The k-th highest score, k = (m + 1) `false_alarms` rounded down, at least 1.

    A new score of the same kind is higher with probability k / (m + 1): split conformal
    prediction (Vovk et al., "Algorithmic Learning in a Random World", 2005, chapter 4).
    """
    count = max(1, int(false_alarms * (len(scores) + 1) + 1e-9))
    return float(np.sort(scores)[-count])


def _scorer(by: Any) -> Scorer:
    """The scorer that a name, a mapping or an instance means."""
    if isinstance(by, Scorer):
        return by
    settings = {"name": by} if isinstance(by, str) else dict(by)
    kind = SCORERS.get(settings.pop("name", ""), settings.pop("package", None))
    return from_dict(kind, settings, f"scorer {kind.name}")


def _settings(scorer: Scorer) -> dict[str, Any]:
    """Its name, package and settings, for a manifest; `_scorer` reads them back."""
    package = SCORERS.origin(scorer.name)
    origin = {} if package is None else {"package": package}
    return {"name": scorer.name, **origin, **to_dict(scorer)}


def _digest(encoder: Encoder) -> str:
    """SHA-256 of the encoder's parameters and statistics."""
    found = hashlib.sha256()
    for path, leaf in sorted(
        flatten({"params": encoder.params, "stats": encoder.stats}).items()
    ):
        found.update(path.encode())
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()


def _folder(run: str | pathlib.Path, scorer: str) -> pathlib.Path:
    return beside(os.fspath(run), "anomalies") / scorer


def _sample(normal: Any, encoder: Encoder, most: int, seed: int) -> np.ndarray:
    """At most `most` images at the encoder's size, drawn by seed, without broken ones.

    At most 1 GiB of pixels, however many there are.
    """
    preprocessing = encoder.preprocessing
    height, width = preprocessing.image_size
    most = min(most, max(4, _PIXELS // (height * width * preprocessing.channels)))
    draw = np.random.default_rng(seed).permutation
    if not isinstance(normal, ImageSet):
        (rows, *_), total = image_batches(normal, max(1, len(normal)))
        order = draw(total)[:most]
        chosen: Any = (
            [rows[row] for row in order] if isinstance(rows, list) else rows[order]
        )
        return prepare(chosen, preprocessing)
    order, good = draw(len(normal)), []
    while len(order) and len(good) < most:
        part, order = order[: most - len(good)], order[most - len(good) :]
        found = read_or_reason(normal, part)
        good += [one for one in found if not isinstance(one, str)]
    return prepare(np.stack(good) if good else [], preprocessing)
