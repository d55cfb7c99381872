"""Reconstruction error of the run's own decoder.

An autoencoder that learned normal images only reconstructs what it knows: Bergmann et
al., "Improving Unsupervised Defect Segmentation by Applying Structural Similarity to
Autoencoders" (2019), section 3, with the squared error.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from afterimage.anomalies.scorer import Fitted, HeatOf, Scorer, local_mean
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.encoder import Encoder
from afterimage.errors import UserError
from afterimage.plugins import OBJECTIVES, SCORERS
from afterimage.settings import from_dict
from afterimage.training.step import averaged_stats


@SCORERS.add("reconstruction")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Scorer):
    """Squared error of the reconstruction by the run's own decoder."""

    top: float = 0.1
    """Share of an image's places, those with the highest heat, whose mean is its score:
    near 0 the highest alone, for small defects; 1 all, for images that are different as
    a whole."""

    def fit(self, run: str, encoder: Encoder, normal: np.ndarray, seed: int) -> Fitted:
        """The run's encoder and decoder; the normal images only set the threshold."""
        del normal, seed
        self._errors(encoder)  # first: other runs may have no checkpoint
        try:
            with Store(run) as store:
                _, state, _ = store.restore()
        except CheckpointError as error:
            raise UserError(
                f"from={run}: the scorer reconstruction needs the decoder, which only "
                f"the checkpoints of a pretraining run have: {error}"
            ) from error
        params = unflatten({**flatten(state["params"]), **(state.get("ema") or {})})
        stats = averaged_stats({"stats": {}, "ema_stats": {}, **state})
        own = flatten(encoder.params), flatten(params.get("encoder", {}))
        if own[0].keys() != own[1].keys() or any(
            not np.array_equal(own[0][path], own[1][path]) for path in own[0]
        ):
            raise UserError(
                f"from={run}: the newest checkpoint has another encoder than encoder/; "
                "let the run finish, or give another scorer"
            )
        return {"params": params, "stats": stats}

    def heat_of(self, encoder: Encoder) -> HeatOf:
        errors = self._errors(encoder)

        def heat(params: Mapping[str, Any], fitted: Fitted, images: Array) -> Array:
            del params  # the autoencoder has its own copy
            pixels = images
            if images.dtype == jnp.uint8:
                pixels = images.astype(jnp.float32) / 255
            found = errors(fitted["params"], fitted.get("stats", {}), pixels)
            return local_mean(found[..., None])[..., 0]

        return heat

    def _errors(self, encoder: Encoder) -> Any:
        """The objective's own; UserError if it reconstructs no pixels."""
        settings = dict(encoder.manifest["trained"].get("settings") or {})
        name = encoder.manifest["trained"].get("objective")
        errors = None
        if isinstance(name, str):
            objective = from_dict(OBJECTIVES.get(name), settings, f"objective {name}")
            errors = objective.pixel_errors(encoder.config, encoder.preprocessing)
        if errors is None:
            raise UserError(
                f"the scorer reconstruction needs an encoder whose run reconstructs "
                f"pixels, but this one was trained with the objective {name}; "
                "give another scorer"
            )
        return errors
