"""Presets for one domain and one task, by number of labels and kind of source."""

from collections.abc import Mapping
from typing import Any

from afterimage.presets import Measured, Preset

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
        about="8x8 digits, embedded, 10 labels a class: a first run",
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
        cost="150 steps of 64 = 9,600 images",
        measured=(
            Measured(
                result="test accuracy 86.2 ± 0.4 % (from scratch 83.1 ± 2.1), 3 seeds",
                time="46 s for all of make demo, after installation (2026-11-27)",
                device="AMD EPYC, 2 cores",
                date="2026-11-28",
            ),
        ),
    ),
    "mnist-masked": Preset(
        about="after that preset of pretraining: MNIST, few labels or all",
        command=(
            "afterimage finetune --preset mnist-masked --from runs/mnist-masked --data "
            "tfds:mnist --labels-per-class 10 --out runs/mnist-100"
        ),
        settings=_MNIST,
        cost="3,000 steps of 64 = 192,000 images",
        measured=(
            Measured(
                result=(
                    "2,000 steps in place of 3,000, MNIST, test error at 100 labels "
                    "4.1 ± 1.0 % (from scratch 5.9 ± 1.5), at 1,000 labels "
                    "1.3 ± 0.1 % (1.7 ± 0.1); after 6,000 steps with all labels "
                    "0.47 ± 0.04 % (0.57 ± 0.09), then evaluate --views shift "
                    "0.40 ± 0.04 % (0.48 ± 0.02); 5 seeds"
                ),
                time="3 minutes a seed, after 25 of pretraining; 6 with all labels",
                device="one core of an AMD EPYC, beside other work",
                date="2026-11-23, 2026-11-24 and 2026-11-28",
            ),
        ),
    ),
    "mnist-pseudo-labels": Preset(
        about="the same with few labels, the other images without theirs beside them",
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
            "a graph of all images, then 4,000 steps of 64 labelled and 64 other "
            "images, those in two views"
        ),
        measured=(
            Measured(
                result=(
                    "MNIST, test error at 100 labels 0.93 ± 0.16 % (from scratch 1.2 ± "
                    "0.1); without propagation 1.4 ± 0.7 % (1.6 ± 0.7), at 1,000 "
                    "0.61 ± 0.03 % (0.85 ± 0.04), 5 seeds each"
                ),
                time="8 to 12 minutes a seed, after 25 of pretraining",
                device="one core of an AMD EPYC, beside other work",
                date="2026-11-27",
            ),
        ),
    ),
    "cifar-masked": Preset(
        about="after that preset of pretraining: CIFAR, thousands of labels",
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
        cost="10,000 steps of 256 = 2.6 million images: for an accelerator",
    ),
    "small-photos": Preset(
        about="after that preset of pretraining: small photos on a CPU, in minutes",
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
        cost="2,000 steps of 64 = 128,000 images",
        measured=(
            Measured(
                result=(
                    "CIFAR-10, JPEG-compressed, pretrained with --steps 12000: with "
                    "--steps 10000 test accuracy 78.6 ± 0.4 % (from scratch "
                    "74.6 ± 0.5); with --labels 4000 --steps 4000 --ema 0.99 test "
                    "error 33.3 ± 0.7 % (40.5 ± 0.6), 5 seeds"
                ),
                time="8 to 11 minutes a seed with all labels, 3 to 5 with 4,000",
                device="one core of an Intel Xeon, beside other work",
                date="2026-11-28",
            ),
        ),
    ),
    "few-labels": Preset(
        about="ten labels a class or fewer: head first, then everything",
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
        about="few labels, and the other images once more: sure predictions teach",
        command=(
            "afterimage finetune --preset pseudo-labels --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={
            "mode": "full",
            "labels_per_class": 10,
            "methods": ("pseudo-labels",),
        },
        cost="100 epochs, at least 300 steps, of 64 + 64 images, three passes each",
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
        cost="30 epochs; of 50,000 images: 1.5 million images, 5,859 steps of 256",
    ),
    "probe": Preset(
        about="what the frozen features are worth: a linear layer on them",
        command=(
            "afterimage finetune --preset probe --from runs/photos "
            "--data folder:labelled --out runs/probe"
        ),
        settings={"mode": "probe", "augment": "none", "lr": 3e-3, "weight_decay": 0.0},
        cost="100 epochs, at least 300 steps of 64; the encoder only runs forward",
    ),
    "selected": Preset(
        about="few labels, many features: a linear layer on the 64 that say most",
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
        cost="as a probe, after one look at up to 5,000 training images",
    ),
    "gradual": Preset(
        about="a related source and few labels: thaw one stage after the other",
        command=(
            "afterimage finetune --preset gradual --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={"mode": "gradual", "label_smoothing": 0.1},
        cost="100 epochs, at least 300 steps of 64, in equal phases",
    ),
    "l2-sp": Preset(
        about="few labels, and the source close by: stay near where it began",
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
        about="a fine-tuned source whose own predictions must last (distilled on)",
        command=(
            "afterimage finetune --preset keep-source --from runs/cls "
            "--data folder:others --out runs/cls-2"
        ),
        settings={"mode": "two-phase", "methods": ("kl-to-source",)},
        cost="as two-phase, and one more forward pass a step",
    ),
    "delta": Preset(
        about="few labels: feature maps stay near the source's",
        command=(
            "afterimage finetune --preset delta --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={"mode": "two-phase", "methods": ("delta",)},
        cost="as two-phase, and one more forward pass a step",
    ),
    "resnet50-two-phase": Preset(
        about="an imported ResNet-50: a new head at 1e-3, then everything at 1e-4",
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
        cost="as scratch, and one forward pass of the teacher a step",
    ),
    "born-again": Preset(
        about="the same network once more, from its own earlier run's predictions",
        command=(
            "afterimage distil --preset born-again --from runs/cls "
            "--distil.teacher runs/cls --data folder:labelled --out runs/again"
        ),
        settings={
            "mode": "scratch",
            "methods": ({"name": "distil", "temperature": 1.0},),
        },
        cost="as scratch, and one more forward pass a step",
    ),
}
