"""DELTA: keeps feature maps near those of the source model.

w · Σ_l ½ mean_{h,w,c} (M_l − M°_l)² over the encoder's feature maps of the training
images: the behavioural regulariser of Li et al. 2019, "DELTA: deep learning transfer
using feature map with attention", with equal weights for all channels, without its
supervised attention. It is a mean over positions and channels, where the paper has a
sum, so that w does not depend on the image size.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from afterimage.fields import above_0
from afterimage.finetune.method import METHODS, Method
from afterimage.training.stage import Term, TermResult, View


@METHODS.add("delta")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Delta(Method):
    """Keeps feature maps near those of the source (DELTA)."""

    needs_source: ClassVar[bool] = True
    acts_on_encoder: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = False

    weight: float = 0.1
    """Weight of half the mean squared distance of the feature maps."""

    def problems(self, config):
        return above_0(self, "weight")

    def terms(self, setup, phase=0):
        return [delta(self.weight)]


def delta(weight: float) -> Term:
    """w · Σ_l ½ mean_{h,w,c} (M_l − M°_l)²."""
    before, now = "source/maps", "train/maps"

    def fn(view: View) -> TermResult:
        pairs = zip(view[now], view[before], strict=True)
        parts = [
            0.5 * jnp.mean(jnp.square(x - jax.lax.stop_gradient(y)), (1, 2, 3))
            for x, y in pairs
        ]
        return sum(parts[1:], parts[0]), {}

    return Term(
        name="delta", fn=fn, reads=(before, now), weight=weight, encoder_only=True
    )
