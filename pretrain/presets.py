"""Named settings for pretraining."""

from collections.abc import Mapping
from typing import Any

from afterimage.presets import Preset, find_preset
from afterimage.pretrain.config import PretrainConfig

_MASKED = {
    "objective": {"name": "masked", "ratio": 0.6, "patch": 4, "target": "hog"},
}
PRESETS: Mapping[str, Preset] = {
    "digits": Preset(
        about="8x8 digits, included: a first run, no download",
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
        cost="50 epochs; for 60,000 images 11,719 steps of 256 = 3 million images",
    ),
    "small-images-masked": Preset(
        about="28 to 32 pixels, masked; edges are predicted from the visible patches",
        command=(
            "afterimage pretrain --preset small-images-masked --data tfds:cifar10 "
            "--out runs/cifar10-masked"
        ),
        settings={
            "model": "conv",
            "image_size": 32,
            "epochs": 50.0,
            "batch_size": 256,
            **_MASKED,
            "augment": "shift",
            "ema": 0.999,
        },
        cost="50 epochs; for 60,000 images 11,719 steps of 256 = 3 million images",
    ),
    "mnist-masked": Preset(
        about="28 pixels (MNIST and the like), masked; then few labels",
        command=(
            "afterimage pretrain --preset mnist-masked --data tfds:mnist "
            "--out runs/mnist-masked"
        ),
        settings={
            "model": "conv",
            "steps": 20_000,
            "batch_size": 64,
            "lr": 3e-3,
            **_MASKED,
            "augment": "shift",
            "ema": 0.999,
        },
        cost=(
            "20,000 steps of 64 = 1.3 million images; 19 to 25 minutes on one CPU core"
        ),
        results="representations.md#mnist-labels",
    ),
    "cifar-masked": Preset(
        about="32 pixels (CIFAR and the like): a masked ResNet-18 in bfloat16",
        command=(
            "afterimage pretrain --preset cifar-masked --data tfds:cifar10 "
            "--out runs/cifar-masked"
        ),
        settings={
            "model": "resnet18",
            "steps": 40_000,
            **_MASKED,
            "decoder": "hierarchical",
            "augment": "crop-flip",
            "ema": 0.999,
            "precision": "bfloat16",
        },
        cost="40,000 steps of 256 = 10.2 million images; needs an accelerator",
    ),
    "cifar-contrastive": Preset(
        about="32 pixels: SimCLR with a ResNet-18 in bfloat16, on an accelerator",
        command=(
            "afterimage pretrain --preset cifar-contrastive --data tfds:cifar10 "
            "--out runs/cifar-contrastive"
        ),
        settings={
            "model": "resnet18",
            "epochs": 200.0,
            "batch_size": 512,
            "objective": "simclr",
            "augment": "crop:0.2,flip,color,grey",
            # As `recipe` has them, for any batch size.
            "normalise": "image",
            "lr": 2e-3,
            "precision": "bfloat16",
        },
        cost="200 epochs; for CIFAR-10 19,500 steps of 512 = 10 million images",
    ),
    "small-photos": Preset(
        about="32 pixels on a CPU, in minutes; predicts histograms of masked patches",
        command=(
            "afterimage pretrain --preset small-photos --data tfds:cifar10 "
            "--out runs/small-photos"
        ),
        settings={
            "model": "conv",
            "steps": 2_400,
            "batch_size": 64,
            "lr": 3e-3,
            **_MASKED,
            "decoder": "block",
            "augment": "crop-flip",
            "ema": 0.999,
        },
        cost=(
            "2,400 steps of 64 = 153,600 images; --steps 12000 takes 15 to 19 minutes"
            " on one CPU core"
        ),
        results="representations.md#cifar10",
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
        cost="100 epochs; for 10,000 images 7,812 steps of 128 = 1 million images",
    ),
    "photos-224": Preset(
        about="photos at 224 pixels in bfloat16, on an accelerator",
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
        cost="100 epochs; for 100,000 images 39,062 steps of 256 = 10 million images",
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
        cost="300 steps of 64 = 19,200 images; 3.5 minutes on one CPU core",
        results="representations.md#cifar10-patches",
    ),
    "classic": Preset(
        about="the classic convolutional autoencoder: pooling, unpooling, no noise",
        command=(
            "afterimage pretrain --preset classic --data npz:mnist.npz "
            "--out runs/classic"
        ),
        settings={"model": "conv-classic", "epochs": 20.0, "batch_size": 128},
        cost="20 epochs; for 60,000 images 9,375 steps of 128 = 1.2 million images",
    ),
}


def preset_config(name: str, **settings: Any) -> PretrainConfig:
    """The preset's configuration; `settings` (at least `out`) override its own.

    Raises UserError for an unknown preset or invalid settings.
    """
    return PretrainConfig(**{**find_preset(PRESETS, name).settings, **settings})
