"""Presets for labels in one or more domains, and none in the target domain."""

from collections.abc import Mapping
from typing import Any

from afterimage.presets import Preset

# Chosen on 1,500 held-out training images of USPS, seed 7, 400 steps.
_LETTERS: Mapping[str, Any] = {
    "mode": "full",
    "lr": 3e-3,
    "ema": 0.99,
    "augment": "affine",
    "weight_decay": 0.01,
}
_PSEUDO_LABELS: Mapping[str, Any] = {
    "name": "pseudo-labels",
    "images": "target",
    "distribution_alignment": True,
}
PRESETS: Mapping[str, Preset] = {
    "adapt": Preset(
        about="align two domains by an adversary (CDAN+E)",
        command=(
            "afterimage adapt --preset adapt --from runs/photos --data "
            "folder:labelled --target folder:others --out runs/adapted"
        ),
        settings={
            "mode": "two-phase",
            "methods": ({"name": "cdan", "entropy": True},),
            "weight_decay": 0.01,
        },
        cost="100 epochs of 64 + 64 images; up to twice a run without a target",
    ),
    "adapt-mmd": Preset(
        about="align two domains by a distance (JMMD), steadier than an adversary",
        command=(
            "afterimage adapt --preset adapt-mmd --from runs/photos --data "
            "folder:labelled --target folder:others --out runs/adapted"
        ),
        settings={"mode": "two-phase", "methods": ("jmmd",), "weight_decay": 0.01},
        cost="100 epochs of 64 + 64 images; up to twice a run without a target",
    ),
    "adapt-pseudo-labels": Preset(
        about="digits and letters: learn from confident predictions on the target",
        command=(
            "afterimage adapt --preset adapt-pseudo-labels --from runs/letters "
            "--data folder:labelled --target folder:others --out runs/adapted"
        ),
        settings={
            **_LETTERS,
            "methods": (
                {
                    **_PSEUDO_LABELS,
                    "alignment_momentum": 0.99,
                    "alignment_frequencies": "predicted",
                },
            ),
        },
        cost=(
            "100 epochs of 64 labelled and 2 x 64 target images; 2,000 steps take 4 "
            "minutes on one CPU core"
        ),
        results="transfer.md#mnist-usps",
    ),
    "adapt-ink": Preset(
        about="letters on black to letters on photos: drawn with the target's pixels",
        command=(
            "afterimage adapt --preset adapt-ink --from runs/letters --data "
            "folder:letters --target folder:signs --out runs/adapted"
        ),
        # The confidence was set without tuning; the rate, the missing augmentation and
        # the ink settings were chosen on 3,000 held-out training images of the coloured
        # digits, seed 11.
        settings={
            **_LETTERS,
            "lr": 1e-2,
            "augment": "none",
            "methods": (
                {**_PSEUDO_LABELS, "confidence": 0.8},
                {"name": "compose", "kind": "ink"},
            ),
            "select": "infomax",
        },
        cost=(
            "100 epochs of 64 labelled and 2 x 64 target images; 4,000 steps take 17 "
            "to 25 minutes on one CPU core"
        ),
        results="transfer.md#mnist-coloured",
    ),
    "covariate-shift": Preset(
        about="the same kinds of image in other proportions: weights by density ratio",
        command=(
            "afterimage adapt --preset covariate-shift --from runs/photos --data "
            "folder:labelled --target folder:others --out runs/weighed"
        ),
        settings={"mode": "two-phase", "methods": ("density-ratio",)},
        cost="as two-phase, after one pass over both domains",
    ),
    "label-shift": Preset(
        about="other class frequencies: corrects the classifier's bias",
        command=(
            "afterimage adapt --preset label-shift --from runs/photos --data "
            "folder:labelled --target folder:others --out runs/corrected"
        ),
        settings={"mode": "two-phase", "methods": ("label-shift",)},
        cost="as two-phase, plus one pass over the target",
    ),
    "adapt-sources": Preset(
        about="labels in several domains, none in the target: an adversary for each",
        command=(
            "afterimage adapt --preset adapt-sources --from runs/photos --data "
            "folder:one --sources.images folder:two --target folder:others --out "
            "runs/adapted"
        ),
        settings={
            "mode": "two-phase",
            "methods": ("sources", "mdan"),
            "weight_decay": 0.01,
        },
        cost="100 epochs of 64 + 64 images; up to twice a run without a target",
    ),
}
