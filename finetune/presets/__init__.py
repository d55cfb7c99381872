"""Named settings for fine-tuning."""

from collections.abc import Mapping
from typing import Any

from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import domains, labels, learning
from afterimage.presets import Preset, find_preset

PRESETS: Mapping[str, Preset] = {
    **labels.PRESETS,
    **domains.PRESETS,
    **learning.PRESETS,
}


def preset_config(name: str, **settings: Any) -> FinetuneConfig:
    """The preset's configuration, overridden by `settings` (at least `from_`, `out`).

    Give a setting of one of the preset's choices as `{"distil.teacher": …}`. Raises
    UserError for an unknown preset or settings that cannot work.
    """
    merged = dict(find_preset(PRESETS, name).settings)
    for key, value in settings.items():
        choice, dot, setting = key.partition(".")
        if not dot:
            merged[key] = value
            continue
        for field in ("mode", "task", "methods"):
            if field in merged:
                merged[field] = _with(merged[field], choice, {setting: value})
    return FinetuneConfig(**merged)


def _with(chosen: Any, name: str, settings: Mapping[str, Any]) -> Any:
    """The choice, with these settings added if it has this name."""
    if isinstance(chosen, tuple):
        return tuple(_with(one, name, settings) for one in chosen)
    own = {"name": chosen} if isinstance(chosen, str) else chosen
    return {**own, **settings} if own["name"] == name else chosen
