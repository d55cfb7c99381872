"""Named settings for fine-tuning; each measured where it says so, and only there."""

from collections.abc import Mapping
from typing import Any

from afterimage.cli import Measured, Preset, find_preset
from finetune.config import FinetuneConfig

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
                result="test accuracy 84.5 ± 0.7 % (from scratch 79.8 ± 3.0), 3 seeds",
                time="90 s for all of make demo",
                device="Intel Xeon at 2.5 GHz, 2 cores",
                date="2026-11-21",
            ),
        ),
    ),
    "mnist-masked": Preset(
        about="after that preset of pretraining: MNIST, few labels or all",
        command=(
            "afterimage finetune --preset mnist-masked --from runs/mnist-masked --data "
            "tfds:mnist --labels-per-class 10 --out runs/mnist-100"
        ),
        # Chosen on 8,000 training images held out, 100 labels, seed 11, 400 steps.
        settings={
            "mode": "full",
            "steps": 3000,
            "lr": 3e-3,
            "augment": "affine",
            "ema": 0.99,
        },
        cost="3,000 steps of 64 = 192,000 images",
        measured=(
            Measured(
                result=(
                    "600 + 400 steps in place of 20,000 + 3,000, MNIST, test error at "
                    "100 labels 7.2 ± 2.0 % (from scratch 7.6 ± 1.6), at 1,000 labels "
                    "2.6 ± 0.2 % (3.3 ± 0.1), 5 seeds"
                ),
                time="10 to 17 minutes a seed",
                device="one core of an Intel Xeon at 2.5 GHz, beside other work",
                date="2026-11-21",
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
    "few-labels": Preset(
        about="up to about a hundred labels a class: head first, then everything",
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
        settings={"mode": "two-phase", "labels_per_class": 10, "unlabelled": "rest"},
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
            "l2_sp": 0.01,
            "l2_head": 0.01,
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
        settings={"mode": "two-phase", "kl": 1.0},
        cost="as two-phase, and one more forward pass a step",
    ),
    "delta": Preset(
        about="few labels: feature maps stay near the source's",
        command=(
            "afterimage finetune --preset delta --from runs/photos "
            "--data folder:labelled --out runs/cls"
        ),
        settings={"mode": "two-phase", "delta": 0.1},
        cost="as two-phase, and one more forward pass a step",
    ),
    "adapt": Preset(
        about="labels in one domain, none in another: CDAN+E, step by source labels",
        command=(
            "afterimage finetune --preset adapt --from runs/photos --data "
            "folder:labelled --target folder:others --out runs/adapted"
        ),
        settings={"mode": "two-phase", "align": ("cdan-e",), "weight_decay": 0.01},
        cost="100 epochs of 64 + 64 images: twice a step without a target",
    ),
    "adapt-mmd": Preset(
        about="the same by a distance in place of an adversary: steadier",
        command=(
            "afterimage finetune --preset adapt-mmd --from runs/photos --data "
            "folder:labelled --target folder:others --out runs/adapted"
        ),
        settings={"mode": "two-phase", "align": ("jmmd",), "weight_decay": 0.01},
        cost="100 epochs of 64 + 64 images: twice a step without a target",
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
        cost="100 epochs of 64 + 3 x 64 images: three to four times a step without",
    ),
    "distil": Preset(
        about="a smaller network that learns from a finished, larger one",
        command=(
            "afterimage finetune --preset distil --from runs/cls --teacher runs/cls "
            "--data folder:labelled --out runs/small"
        ),
        settings={
            "mode": "scratch",
            "width": 0.5,
            "distil": ("logits", "relational"),
            "distil_temperature": 4.0,
            "augment": "light",
        },
        cost="as scratch, and one forward pass of the teacher a step",
    ),
    "born-again": Preset(
        about="the same network once more, from its own earlier run's predictions",
        command=(
            "afterimage finetune --preset born-again --from runs/cls --teacher "
            "runs/cls --data folder:labelled --out runs/again"
        ),
        settings={"mode": "scratch", "distil": ("logits",), "distil_temperature": 1.0},
        cost="as scratch, and one more forward pass a step",
    ),
    "replay": Preset(
        about="classes that come one group after the other: some earlier images again",
        command=(
            "afterimage finetune --preset replay --from runs/photos --data "
            "folder:labelled --sequence cat,dog car,ship --out runs/sequence"
        ),
        settings={"mode": "full", "continual": "replay", "memory": 20},
        cost="100 epochs, at least 300 steps of 64 + 64 images, shared by the tasks",
    ),
    "ewc": Preset(
        about="tasks one after the other, a head each, without keeping images",
        command=(
            "afterimage finetune --preset ewc --from runs/photos --data "
            "folder:labelled --sequence cat,dog car,ship --out runs/sequence"
        ),
        settings={
            "mode": "full",
            "scenario": "task",
            "continual": "ewc",
            "weight_decay": 0.0,
        },
        cost="as full, two copies of the model, 256 backward passes a task",
    ),
    "lwf": Preset(
        about="the same by keeping the earlier model's predictions on new images",
        command=(
            "afterimage finetune --preset lwf --from runs/photos --data "
            "folder:labelled --sequence cat,dog car,ship --out runs/sequence"
        ),
        settings={"mode": "full", "scenario": "task", "continual": "lwf"},
        cost="as full, and one more forward pass a step",
    ),
    "maml": Preset(
        about="a start from which a few steps on a few images learn new classes",
        command=(
            "afterimage finetune --preset maml --from runs/letters --data "
            "folder:letters --out runs/maml"
        ),
        settings={
            "meta": "maml",
            "mode": "full",
            "features": "grid",
            "steps": 2_000,
            "inner_lr": 0.1,
            "inner_steps": 1,
            "test_inner_steps": 3,
            "weight_decay": 0.0,
        },
        cost="2,000 steps of 4 episodes: 640,000 images, each differentiated twice",
    ),
    "prototypical": Preset(
        about="features in which the mean of a few images stands for their class",
        command=(
            "afterimage finetune --preset prototypical --from runs/letters --data "
            "folder:letters --out runs/prototypes"
        ),
        settings={
            "meta": "prototypical",
            "mode": "full",
            "steps": 2_000,
            "weight_decay": 0.0,
        },
        cost="2,000 steps of 4 episodes: 640,000 images",
    ),
    "reptile": Preset(
        about="as maml, without its derivatives: cheaper a step",
        command=(
            "afterimage finetune --preset reptile --from runs/letters --data "
            "folder:letters --out runs/reptile"
        ),
        settings={
            "meta": "reptile",
            "mode": "full",
            "steps": 2_000,
            "inner_steps": 5,
            "inner_lr": 0.05,
            "weight_decay": 0.0,
        },
        cost="2,000 steps of 4 episodes, 5 gradients each",
    ),
    "adapt-sources": Preset(
        about="labels in several domains, none in another: MDAN, one adversary each",
        command=(
            "afterimage finetune --preset adapt-sources --from runs/photos --data "
            "folder:one --sources folder:two --target folder:others --out runs/adapted"
        ),
        settings={"mode": "two-phase", "align": ("mdan",), "weight_decay": 0.01},
        cost="100 epochs of 64 + 64 images: twice a step without a target",
    ),
    "tasks": Preset(
        about="several tasks on one encoder, their conflicting gradients projected",
        command=(
            "afterimage finetune --preset tasks --from runs/photos "
            "--data csv:labels.csv --tasks colour --out runs/tasks"
        ),
        settings={"mode": "two-phase", "task_weighting": "pcgrad"},
        cost="as two-phase, and one more backward pass a task",
    ),
    "tasks-uncertainty": Preset(
        about="several tasks on one encoder, each task's weight learned",
        command=(
            "afterimage finetune --preset tasks-uncertainty --from runs/photos "
            "--data csv:labels.csv --tasks colour --out runs/tasks"
        ),
        settings={"mode": "two-phase", "task_weighting": "uncertainty"},
        cost="as two-phase",
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
            "feature_selection": "mutual-information",
            "keep_features": 64,
            "augment": "none",
            "lr": 3e-3,
            "weight_decay": 0.0,
        },
        cost="as a probe, after one look at up to 5,000 training images",
    ),
    "resnet50-two-phase": Preset(
        about="an imported ResNet-50: a new head at 1e-3, then everything at 1e-4",
        command=(
            "afterimage finetune --preset resnet50-two-phase --from encoders/resnet50 "
            "--data folder:labelled --out runs/resnet50"
        ),
        settings={
            "mode": "two-phase",
            "head_lr": 1e-3,
            "lr": 1e-4,
            "augment": "crop-flip",
        },
        cost="100 epochs, at least 300 steps of 64",
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
}


def preset_config(name: str, **settings: Any) -> FinetuneConfig:
    """The preset's configuration; `settings` (at least `from_`, `out`) win over it.

    Raises UserError for an unknown preset or settings that cannot work.
    """
    return FinetuneConfig(**{**find_preset(PRESETS, name).settings, **settings})
