"""Presets for labels in one domain, or several, and none in another."""

from collections.abc import Mapping

from afterimage.cli import Preset

PRESETS: Mapping[str, Preset] = {
    "adapt": Preset(
        about="labels in one domain, none in another: CDAN+E, step by source labels",
        command=(
            "afterimage finetune --preset adapt --from runs/photos --data "
            "folder:labelled --target folder:others --out runs/adapted"
        ),
        settings={"mode": "two-phase", "align": ("cdan-e",), "weight_decay": 0.01},
        cost="100 epochs of 64 + 64 images: up to twice a run without a target",
    ),
    "adapt-mmd": Preset(
        about="the same by a distance in place of an adversary: steadier",
        command=(
            "afterimage finetune --preset adapt-mmd --from runs/photos --data "
            "folder:labelled --target folder:others --out runs/adapted"
        ),
        settings={"mode": "two-phase", "align": ("jmmd",), "weight_decay": 0.01},
        cost="100 epochs of 64 + 64 images: up to twice a run without a target",
    ),
    "adapt-pseudo-labels": Preset(
        about="the same for digits and letters: MMD, and the target's sure predictions",
        command=(
            "afterimage finetune --preset adapt-pseudo-labels --from runs/letters "
            "--data folder:labelled --target folder:others --out runs/adapted"
        ),
        settings={
            "mode": "two-phase",
            "align": ("mmd",),
            "unlabelled": "target",
            "augment": "affine",
            "weight_decay": 0.01,
        },
        cost="100 epochs of 64 labelled and 3 x 64 target images, one view strong",
    ),
    "adapt-sources": Preset(
        about="labels in several domains, none in another: MDAN, one adversary each",
        command=(
            "afterimage finetune --preset adapt-sources --from runs/photos --data "
            "folder:one --sources folder:two --target folder:others --out runs/adapted"
        ),
        settings={"mode": "two-phase", "align": ("mdan",), "weight_decay": 0.01},
        cost="100 epochs of 64 + 64 images: up to twice a run without a target",
    ),
}
