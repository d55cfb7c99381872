"""Stochastic depth: residual blocks are skipped at random while the encoder learns.

Block l of L is skipped for an image with probability r·l/L (Huang et al. 2016, "Deep
Networks with Stochastic Depth", section 3). Evaluation uses every block.
"""

import dataclasses
from typing import ClassVar

from afterimage.errors import UserError
from afterimage.finetune.method import METHODS, Method
from afterimage.models import abstract_encoder
from afterimage.models.layers import StochasticDepth as Skipping
from afterimage.training.stage import Context


@METHODS.add("stochastic-depth")
@dataclasses.dataclass(frozen=True, kw_only=True)
class StochasticDepth(Method):
    """Skips residual blocks at random, deeper ones more often."""

    acts_on_encoder: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = False

    rate: float = 0.1
    """Probability that the last block is skipped; earlier ones less, in proportion to
    their depth."""

    def problems(self, config):
        found = []
        if not 0 < self.rate < 1:
            found.append(f"rate={self.rate}: must be between 0 and 1")
        if config.domain_statistics in ("joint", "frozen"):
            found.append(
                f"does not work with domain_statistics={config.domain_statistics!r}; "
                "use source or target"
            )
        return found

    def open(self, config, data):
        """Raises UserError for an encoder without residual blocks."""
        if not abstract_encoder(data.model).residual_blocks:
            raise UserError(
                f"stochastic-depth: model {data.model.name} has no residual blocks to "
                "skip; leave it out"
            )

    def providers(self, setup, known, now):
        """The maps of the labelled images, unless the encoder is frozen."""
        if "encoder" not in now.trainable:
            return {}
        skipping = Skipping(self.rate, now.key_of(self))

        def forward(ctx: Context):
            images = ctx["train/image"]
            return setup.classifier.maps(
                now.params, now.stats, images, train=True, depth=skipping
            )

        return {"train/forward": forward}
