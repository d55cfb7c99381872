"""Named settings for pretraining, each measured only where stated."""

from collections.abc import Mapping
from typing import Any

from afterimage.presets import Measured, Preset, find_preset
from afterimage.pretrain.config import PretrainConfig

_MASKED = {
    "objective": {"name": "masked", "ratio": 0.6, "patch": 4, "target": "hog"},
}
# For model `conv` only, chosen on held-out images of CIFAR-10 and MNIST: better than
# `hierarchical` after the same number of steps, in half the time
# (docs/design/representations.md).
_CONV_MASKED = {**_MASKED, "decoder": "block"}
PRESETS: Mapping[str, Preset] = {
    "digits": Preset(
        about="8x8 digits, embedded: a first run, no download",
        command="afterimage pretrain --preset digits --out runs/digits",
        settings={
            "data": "digits",
            "model": "conv",
            "width": 0.5,
            "steps": 900,
            "batch_size": 128,
            "lr": 4e-3,
            "objective": {
                "name": "plain",
                "corruption": "erasing",
                "corruption_strength": 0.5,
            },
            "augment": "shift",
        },
        cost="900 steps of 128 = 115,200 images",
    ),
    "small-images": Preset(
        about="28 to 32 pixels (MNIST, CIFAR and the like), any channels",
        command=(
            "afterimage pretrain --preset small-images --data tfds:cifar10 "
            "--out runs/cifar10"
        ),
        settings={
            "model": "conv",
            "image_size": 32,
            "epochs": 50.0,
            "batch_size": 256,
            "objective": {
                "name": "plain",
                "corruption": "gaussian",
                "corruption_strength": 1.0,
            },
            "augment": "shift",
            "ema": 0.999,
        },
        cost="50 epochs; of 60,000 images: 3 million images, 11,719 steps of 256",
    ),
    "small-images-masked": Preset(
        about="the same images, masked: edges are predicted from the visible patches",
        command=(
            "afterimage pretrain --preset small-images-masked --data tfds:cifar10 "
            "--out runs/cifar10-masked"
        ),
        settings={
            "model": "conv",
            "image_size": 32,
            "epochs": 50.0,
            "batch_size": 256,
            **_CONV_MASKED,
            "augment": "shift",
            "ema": 0.999,
        },
        cost="50 epochs; of 60,000 images: 3 million images, 11,719 steps of 256",
    ),
    "mnist-masked": Preset(
        about="MNIST and images like it, 28 pixels: masked, for few labels afterwards",
        command=(
            "afterimage pretrain --preset mnist-masked --data tfds:mnist "
            "--out runs/mnist-masked"
        ),
        settings={
            "model": "conv",
            "steps": 20_000,
            "batch_size": 64,
            "lr": 3e-3,
            **_CONV_MASKED,
            "augment": "shift",
            "ema": 0.999,
        },
        cost="20,000 steps of 64 = 1.3 million images",
        measured=(
            Measured(
                result=(
                    "MNIST; afterwards finetune --preset mnist-masked --steps 2000: "
                    "test error at 100 labels 4.1 ± 1.0 %, at 1,000 1.3 ± 0.1 %, "
                    "5 seeds"
                ),
                time="19 to 25 minutes a seed",
                device="one core of an AMD EPYC, beside other work",
                date="2026-11-24",
            ),
        ),
    ),
    "cifar-masked": Preset(
        about="CIFAR and images like it, 32 pixels: a masked ResNet-18, bfloat16",
        command=(
            "afterimage pretrain --preset cifar-masked --data tfds:cifar10 "
            "--out runs/cifar-masked"
        ),
        settings={
            "model": "resnet18",
            "steps": 40_000,
            **_MASKED,
            "augment": "crop-flip",
            "ema": 0.999,
            "precision": "bfloat16",
        },
        cost="40,000 steps of 256 = 10.2 million images: for an accelerator",
    ),
    "small-photos": Preset(
        about="the same photos on a CPU, in minutes: masked, histograms as the target",
        command=(
            "afterimage pretrain --preset small-photos --data tfds:cifar10 "
            "--out runs/small-photos"
        ),
        settings={
            "model": "conv",
            "steps": 2_400,
            "batch_size": 64,
            "lr": 3e-3,
            **_CONV_MASKED,
            "augment": "crop-flip",
            "ema": 0.999,
        },
        cost="2,400 steps of 64 = 153,600 images",
        measured=(
            Measured(
                result=(
                    "CIFAR-10, JPEG-compressed, with --steps 12000 linear probe "
                    "63.1 ± 0.4 % (untrained 48.0 ± 0.6), 5 seeds"
                ),
                time="15 to 19 minutes a seed",
                device="one core of an Intel Xeon, beside other work",
                date="2026-11-28",
            ),
        ),
    ),
    "photos-64": Preset(
        about="a folder of photos at 64 pixels, on a laptop or one accelerator",
        command=(
            "afterimage pretrain --preset photos-64 --data folder:photos "
            "--out runs/photos"
        ),
        settings={
            "model": "resnet18",
            "image_size": 64,
            "channels": 3,
            "epochs": 100.0,
            "batch_size": 128,
            "objective": {
                "name": "plain",
                "corruption": "erasing",
                "corruption_strength": 0.25,
            },
            "augment": "crop-flip",
            "on_bad_image": "skip",
            "ema": 0.999,
        },
        cost="100 epochs; of 10,000 images: 1 million images, 7,812 steps of 128",
    ),
    "photos-224": Preset(
        about="photos at 224 pixels on an accelerator, bfloat16",
        command=(
            "afterimage pretrain --preset photos-224 --data folder:photos "
            "--out runs/photos-224"
        ),
        settings={
            "model": "convnext-tiny",
            "image_size": 224,
            "channels": 3,
            "epochs": 100.0,
            "batch_size": 256,
            "precision": "bfloat16",
            "objective": {
                "name": "plain",
                "target": "image",
                "corruption": "erasing",
                "corruption_strength": 0.4,
            },
            "augment": "crop-flip",
            "on_bad_image": "skip",
            "ema": 0.9995,
        },
        cost="100 epochs; of 100,000 images: 10 million images, 39,062 steps of 256",
    ),
    "patches": Preset(
        about="32 pixels: features for a linear classifier, in minutes on a CPU",
        command=(
            "afterimage pretrain --preset patches --data tfds:cifar10 "
            "--out runs/cifar10-patches"
        ),
        settings={
            "model": "conv-patches",
            "objective": "dictionary",
            "image_size": 32,
            "steps": 300,
            "batch_size": 64,
            "lr": 3e-3,
        },
        cost="300 steps of 64 = 19,200 images",
        measured=(
            Measured(
                result=(
                    "CIFAR-10, JPEG-compressed: a linear probe with all labels reads "
                    "71.2 ± 0.4 % of the test images (untrained 68.4 ± 0.5), with "
                    "evaluate --views flip --grid-3 --most 50000 74.9 ± 0.3 "
                    "(73.6 ± 0.4), with --width 1.5 as well 75.7 ± 0.1 (74.2 ± 0.2), "
                    "5 seeds"
                ),
                time="3:30 a run, 1:17 with --probe-images 0",
                device="one core of an AMD EPYC, beside other work",
                date="2026-11-28",
            ),
        ),
    ),
    "classic": Preset(
        about="the classic convolutional autoencoder: pooling, unpooling, no noise",
        command=(
            "afterimage pretrain --preset classic --data npz:mnist.npz "
            "--out runs/classic"
        ),
        settings={"model": "conv-classic", "epochs": 20.0, "batch_size": 128},
        cost="20 epochs; of 60,000 images: 1.2 million images, 9,375 steps of 128",
    ),
}


def preset_config(name: str, **settings: Any) -> PretrainConfig:
    """The preset's configuration; `settings` (at least `out`) override its own.

    Raises UserError for an unknown preset or invalid settings.
    """
    return PretrainConfig(**{**find_preset(PRESETS, name).settings, **settings})
