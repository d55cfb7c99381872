"""Presets for one domain and one task, by number of labels and kind of source."""

from collections.abc import Mapping
from typing import Any

from afterimage.presets import Preset

# Chosen on 8,000 held-out training images of MNIST, 100 labels, seed 11, 400 steps.
_MNIST: Mapping[str, Any] = {
    "mode": "full",
    "steps": 3000,
    "lr": 3e-3,
    "augment": "affine",
    "ema": 0.99,
}
# Chosen on 5,000 held-out training images of MNIST, 100 labels, three seeds.
PSEUDO_LABELS: Mapping[str, Any] = {
    "name": "pseudo-labels",
    "weak_augment": "shift",
    "strong_augment": "strong-affine",
    "distribution_alignment": True,
    "alignment_momentum": 0.99,
}
# Scored on the training labels that two of the five runs of `mnist-labels` did not use:
# 97.5 and 97.4 % correct without it, 98.8 and 98.6 % with it (`afterimage evaluate`).
PROPAGATION = 0.5
PRESETS: Mapping[str, Preset] = {
    "digits": Preset(
        about="after pretrain --preset digits: 10 labels per class",
        command=(
            "afterimage finetune --preset digits --from runs/digits "
            "--out runs/digits-100"
        ),
        settings={
            "data": "digits",
            "labels_per_class": 10,
            "mode": "two-phase",
            "steps": 150,
            "lr": 3e-3,
        },
        cost="150 steps of 64 = 9,600 images; seconds",
        results="digits.md",
    ),
    "mnist-masked": Preset(
        about="after pretrain --preset mnist-masked: MNIST, few labels or all",
        command=(
            "afterimage finetune --preset mnist-masked --from runs/mnist-masked --data "
            "tfds:mnist --labels-per-class 10 --out runs/mnist-100"
        ),
        settings=_MNIST,
        cost="3,000 steps of 64 = 192,000 images; 2,000 take 3 minutes on one CPU core",
        results="representations.md#mnist-labels",
    ),
    "mnist-pseudo-labels": Preset(
        about="after pretrain --preset mnist-masked: few labels and unlabelled images",
        command=(
            "afterimage finetune --preset mnist-pseudo-labels --from runs/mnist-masked "
            "--data tfds:mnist --out runs/mnist-100"
        ),
        settings={
            **_MNIST,
            "labels_per_class": 10,
            "steps": 4000,
            "methods": ({**PSEUDO_LABELS, "propagation": PROPAGATION},),
        },
        cost=(
            "a graph of all images, then 4,000 steps of 64 labelled and 64 unlabelled"
            " images in two views; 8 to 12 minutes on one CPU core"
        ),
        results="representations.md#mnist-labels",
    ),
    "cifar-masked": Preset(
        about="after pretrain --preset cifar-masked: thousands of labels",
        command=(
            "afterimage finetune --preset cifar-masked --from runs/cifar-masked --data "
            "tfds:cifar10 --out runs/cifar"
        ),
        settings={
            "mode": "full",
            "steps": 10_000,
            "batch_size": 256,
            "augment": "crop-flip",
            "ema": 0.999,
            "precision": "bfloat16",
            "layer_decay": 0.75,
        },
        cost="10,000 steps of 256 = 2.6 million images; needs an accelerator",
    ),
    "small-photos": Preset(
        about="after pretrain --preset small-photos, on a CPU",
        command=(
            "afterimage finetune --preset small-photos --from runs/small-photos --data "
            "tfds:cifar10 --out runs/cls"
        ),
        settings={
            "mode": "full",
            "steps": 2_000,
            "batch_size": 64,
            # The better of 1e-3 and 3e-3 on 5,000 held-out images of CIFAR-10.
            "lr": 3e-3,
            "augment": "crop-flip",
            "ema": 0.999,
            "layer_decay": 0.75,
        },
        cost=(
            "2,000 steps of 64 = 128,000 images; 10,000 take 8 to 11 minutes on one "
            "CPU core"
        ),
        results="representations.md#cifar10",
    ),
    "few-labels": Preset(
        about="at most ten labels per class: first the head, then everything",
        command=(
            "afterimage finetune --preset few-labels --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={
            "mode": "two-phase",
            "labels_per_class": 10,
            "label_smoothing": 0.1,
            "layer_decay": 0.75,
        },
        cost="100 epochs, at least 300 steps of 64",
    ),
    "pseudo-labels": Preset(
        about="few labels, and learn from confident predictions on all images",
        command=(
            "afterimage finetune --preset pseudo-labels --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={
            "mode": "full",
            "labels_per_class": 10,
            "methods": ("pseudo-labels",),
        },
        cost="100 epochs, at least 300 steps of 64 + 64 images, with three passes each",
    ),
    "many-labels": Preset(
        about="thousands of labels: everything learns from the first step",
        command=(
            "afterimage finetune --preset many-labels --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={
            "mode": "full",
            "batch_size": 256,
            "epochs": 30.0,
            "label_smoothing": 0.1,
            "layer_decay": 0.75,
            "augment": "crop-flip",
            "ema": 0.999,
        },
        cost="30 epochs; for 50,000 images 5,859 steps of 256 = 1.5 million images",
    ),
    "photos": Preset(
        about="photos: the usual regularisation; far behind the default in a short run",
        command=(
            "afterimage finetune --preset photos --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        # As is usual for ImageNet; not tuned here. docs/guide/photos.md has what was
        # measured.
        settings={
            "mode": "full",
            "methods": (
                {"name": "stochastic-depth", "rate": 0.1},
                {"name": "dropout", "rate": 0.2},
                {"name": "mixup", "alpha": 0.2, "cutmix": 0.5},
            ),
            "augment": "crop:0.35,flip,randaugment",
            "label_smoothing": 0.1,
            "layer_decay": 0.75,
            "ema": 0.99,
        },
        cost="100 epochs, at least 300 steps of 64",
    ),
    "probe": Preset(
        about="a linear classifier on the frozen encoder",
        command=(
            "afterimage finetune --preset probe --from runs/photos "
            "--data folder:labelled --out runs/probe"
        ),
        settings={"mode": "probe", "augment": "none", "lr": 3e-3, "weight_decay": 0.0},
        cost="100 epochs, at least 300 steps of 64; forward passes only in the encoder",
    ),
    "selected": Preset(
        about="few labels, many features: a linear classifier on the 64 best",
        command=(
            "afterimage finetune --preset selected --from runs/photos "
            "--data folder:labelled --out runs/selected"
        ),
        settings={
            "mode": "probe",
            "features": "pyramid-grid",
            "methods": ("feature-selection",),
            "augment": "none",
            "lr": 3e-3,
            "weight_decay": 0.0,
        },
        cost="as a probe, after one pass over up to 5,000 training images",
    ),
    "gradual": Preset(
        about="few labels, related source: unfreeze one stage after another",
        command=(
            "afterimage finetune --preset gradual --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={"mode": "gradual", "label_smoothing": 0.1},
        cost="100 epochs, at least 300 steps of 64, in equal phases",
    ),
    "l2-sp": Preset(
        about="few labels, close source: keep parameters near the source's",
        command=(
            "afterimage finetune --preset l2-sp --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={
            "mode": "two-phase",
            "methods": ({"name": "l2-sp", "weight": 0.01, "head": 0.01},),
            "weight_decay": 0.0,
        },
        cost="as two-phase; a second copy of the encoder in memory",
    ),
    "keep-source": Preset(
        about="a fine-tuned source whose own predictions must last",
        command=(
            "afterimage finetune --preset keep-source --from runs/cls "
            "--data folder:others --out runs/cls-2"
        ),
        settings={"mode": "two-phase", "methods": ("kl-to-source",)},
        cost="as two-phase, plus one forward pass per step",
    ),
    "delta": Preset(
        about="few labels: keep feature maps near the source's",
        command=(
            "afterimage finetune --preset delta --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={"mode": "two-phase", "methods": ("delta",)},
        cost="as two-phase, plus one forward pass per step",
    ),
    "resnet50-two-phase": Preset(
        about="an imported ResNet-50: the head at 1e-3, then everything at 1e-4",
        command=(
            "afterimage finetune --preset resnet50-two-phase --from encoders/resnet50 "
            "--data folder:labelled --out runs/resnet50"
        ),
        settings={
            "mode": {"name": "two-phase", "head_lr": 1e-3},
            "lr": 1e-4,
            "augment": "crop-flip",
        },
        cost="100 epochs, at least 300 steps of 64",
    ),
    "distil": Preset(
        about="a smaller network that learns from a finished, larger one",
        command=(
            "afterimage distil --preset distil --from runs/cls "
            "--distil.teacher runs/cls --data folder:labelled --out runs/small"
        ),
        settings={
            "mode": {"name": "scratch", "width": 0.5},
            "methods": ({"name": "distil", "kinds": ("logits", "relational")},),
            "augment": "light",
        },
        cost="as scratch, plus one forward pass of the teacher per step",
    ),
    "born-again": Preset(
        about="the same network again, from an earlier run's predictions",
        command=(
            "afterimage distil --preset born-again --from runs/cls "
            "--distil.teacher runs/cls --data folder:labelled --out runs/again"
        ),
        settings={
            "mode": "scratch",
            "methods": ({"name": "distil", "temperature": 1.0},),
        },
        cost="as scratch, plus one forward pass per step",
    ),
}
