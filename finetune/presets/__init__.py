"""Named settings for fine-tuning; each measured where it says so, and only there."""

from collections.abc import Mapping
from typing import Any

from afterimage.cli import Preset, find_preset
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import domains, labels, learning

PRESETS: Mapping[str, Preset] = {
    **labels.PRESETS,
    **domains.PRESETS,
    **learning.PRESETS,
}


def preset_config(name: str, **settings: Any) -> FinetuneConfig:
    """The preset's configuration; `settings` (at least `from_`, `out`) win over it.

    Raises UserError for an unknown preset or settings that cannot work.
    """
    return FinetuneConfig(**{**find_preset(PRESETS, name).settings, **settings})
