"""KL(p° ‖ p): keeps the predictions of the source's own classifier.

ℓ(i) = T² Σ_c p°_c (log p°_c − log p_c), p = softmax(z / T); p° from the source model, p
from the copy of its head that keeps learning with the encoder (Li & Hoiem 2016,
"Learning without forgetting"). Nats, ≥ 0, and zero before the first step.
"""

import dataclasses
from typing import ClassVar

from afterimage.fields import above_0
from afterimage.finetune.losses import soft_kl
from afterimage.finetune.method import METHODS, Method
from afterimage.finetune.source import SOURCE_HEAD
from afterimage.training.stage import Term, TermResult, View


@METHODS.add("kl-to-source")
@dataclasses.dataclass(frozen=True, kw_only=True)
class KLToSource(Method):
    """Keeps the predictions of the source's own classifier."""

    needs_source: ClassVar[bool] = True
    acts_on_encoder: ClassVar[bool] = True

    weight: float = 1.0
    """Weight of the divergence. The source must have a classifier (an earlier
    fine-tuning run)."""

    temperature: float = 2.0
    """Temperature that softens both predictions."""

    @property
    def needs_source_head(self) -> bool:
        return True

    def problems(self, config):
        return above_0(self, "weight", "temperature")

    def terms(self, setup, phase=0):
        return [kl_to_source(self.weight, self.temperature)]


def kl_to_source(weight: float, temperature: float = 2.0) -> Term:
    """w · T² KL(p° ‖ p) of the source's own head, before and now."""
    before, now = "source/logits", f"train/logits/{SOURCE_HEAD}"

    def fn(view: View) -> TermResult:
        return soft_kl(view[before], view[now], temperature), {}

    return Term(
        name="kl_to_source",
        fn=fn,
        reads=(before, now),
        weight=weight,
        encoder_only=True,
    )
